# %% [markdown]
# # From DeePMD-kit to LAMMPS
#
# A checkpoint of DeePMD-kit is opened, trained on a few labels more, and handed back, to DeePMD-kit and LAMMPS.
# Neither torch nor DeePMD-kit is needed for this but for the last step.

# %%
import ase.build
import ase.io
import jax
import numpy as np
from ase.calculators.emt import EMT

import lamjax
from lamjax import checkpoints, data, edit, losses, training
from lamjax.interop.deepmd.write import dp_bytes

CHECKPOINT = "model.ckpt.pt"  # yours: .pt, .pth, .pt2, .dp or .yaml
HEAD = None  # which of its heads; None where there is only one
FRAMES = 20
EPOCHS = 5

# %% [markdown]
# ## Open it
#
# The same as `lamjax show model.ckpt.pt`: every option and every tensor was matched, or the file was refused.

# %%
potential, params = lamjax.load(CHECKPOINT, head=HEAD)
print(potential.config.head_names, potential.elements, potential.cutoff)

# %% [markdown]
# ## Labels
#
# Here EMT's, of compressed and displaced copper; `data.read` takes your extxyz, OUTCAR, or DeePMD folders. A copper
# atom must be known to the model; if it is not, it becomes a new element of the type map, and is learned from nothing.

# %%
draw = np.random.default_rng(0)
images = []
for _ in range(FRAMES):
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell * draw.uniform(0.97, 1.03), scale_atoms=True)
    atoms.rattle(0.1, rng=draw)
    atoms.calc = EMT()
    labelled = ase.Atoms("Cu4", atoms.positions, cell=atoms.cell, pbc=True)
    labelled.info["REF_energy"] = atoms.get_potential_energy()
    labelled.info["REF_stress"] = atoms.get_stress()
    labelled.arrays["REF_forces"] = atoms.get_forces()
    images.append(labelled)
ase.io.write("copper.extxyz", images)

if "Cu" not in potential.elements:
    potential, params = edit.extend_elements(potential, params, ["Cu"], key=jax.random.key(0))
frames = data.read("copper.extxyz", require=("energy", "forces", "virial"))

# %% [markdown]
# ## Train
#
# First the energy per element, by least squares: the zero of EMT's energy is not that of the model. The command
# (`lamjax finetune`) does it by itself.

# %%
packed = data.pack(frames, data.plan(frames, potential.shells, max_programs=1))
params = data.set_bias(potential, params, frames)
loss = losses.label_loss(potential)
optimizer = training.optimizer(training.OptimizerConfig("adam", max_norm=1.0), 1e-3)
state = training.init(params, optimizer)
for state, metrics in training.fit(loss, state, optimizer, data.batches(packed, 4, seed=0, epochs=EPOCHS)):
    print(f"forces: {losses.errors(metrics)['rmse_f']:.3f} eV/Å")
print(training.evaluate(loss, state.params, data.batches(packed, 4, seed=None, epochs=1)))

# %% [markdown]
# ## Back to DeePMD-kit
#
# One head a file. `lamjax convert tuned.lamjax tuned.dp --heads NAME` does the same.

# %%
lamjax.save("tuned.lamjax", potential, state.params)
checkpoints.write_atomically("tuned.dp", dp_bytes(potential.config, state.params, potential.head))
again, same = lamjax.load("tuned.dp")
print(again.elements == potential.elements)

# %% [markdown]
# ## To LAMMPS
#
# DeePMD-kit 3.2 freezes the `.dp`:
#
# ```sh
# dp convert-backend tuned.dp tuned.pth
# ```
#
# and its plug-in of LAMMPS runs it:
#
# ```
# units      metal
# pair_style deepmd tuned.pth
# pair_coeff * * Cu
# ```
#
# Key by key and command by command: [Coming from DeePMD-kit](../coming-from/deepmd.md).
