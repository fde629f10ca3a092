# %% [markdown]
# # Fine-tune on relaxed structures
#
# Thirty cells, relaxed at another level of theory, change where a model relaxes structures to. The gradient goes back
# through every step of the relaxation; no forces of the other level are needed.
#
# The other level of theory is ASE's EMT here, so that the tutorial needs nothing else. With your own data, begin at
# "The pairs" with a file of relaxations ([file formats](../files.md#relaxations)).

# %%
import ase.build
import ase.io
import numpy as np
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

import lamjax
from lamjax import data, losses, relaxation, training
from lamjax.relaxation import CellConfig, RelaxConfig, Unrolled

MODEL = "small"  # a model that comes with lamjax, or a file
CELLS = 30
HELD_OUT = 6
STEPS = 40  # of the relaxation, that are differentiated
EPOCHS = 4

# %% [markdown]
# ## Relaxed cells
#
# Random alloys of four atoms, whose atoms and cells EMT relaxes.

# %%
draw = np.random.default_rng(0)
frames = []
for number in range(CELLS):
    start = ase.build.bulk("Cu", cubic=True, a=3.9)
    start.symbols[:] = draw.choice(["Cu", "Au", "Pd"], 4)
    start.rattle(0.05, rng=draw)
    end = start.copy()
    end.calc = EMT()
    FIRE(FrechetCellFilter(end), logfile=None).run(fmax=0.01, steps=300)
    for role, atoms in (("start", start), ("target", end)):
        atoms = ase.Atoms(atoms.symbols, atoms.positions, cell=atoms.cell, pbc=True)
        atoms.info |= {"pair_id": number, "role": role}
        frames.append(atoms)
ase.io.write("pairs.extxyz", frames)

# %% [markdown]
# ## The pairs
#
# A pair that cannot be used is named and left out. The last ones are held out.

# %%
pairs = data.read_pairs("pairs.extxyz", variable_cell=True)
learned, held_out = pairs[:-HELD_OUT], pairs[-HELD_OUT:]

# %% [markdown]
# ## Before
#
# The held-out starts are relaxed to convergence, and compared with where they should be: Dq in amu^½ Å, strain
# without unit.

# %%
potential, params = lamjax.load(MODEL)
judge = RelaxConfig(fmax=0.02, max_steps=300, cell=CellConfig())


def judged(params) -> dict[str, float]:
    """Medians over the held-out pairs."""
    relaxed = relaxation.relax_structures(potential, params, [pair.start for pair in held_out], judge)
    errors = [losses.structure_error(r.system, pair.target) for r, pair in zip(relaxed, held_out, strict=True)]
    return {name: float(np.median([getattr(e, name) for e in errors])) for name in ("dq", "strain")}


before = judged(params)

# %% [markdown]
# ## Train
#
# The loss relaxes a batch of starts for `STEPS` steps and measures the distance of the ends from the targets, the
# strain of the cell included.

# %%
relax = RelaxConfig(cell=CellConfig(), adjoint=Unrolled(STEPS))
config = losses.StructureLossConfig(relax=relax, distance=losses.DistanceConfig(cell=10.0))
loss = losses.structure_loss(potential, config)
packed = data.pack_pairs(learned, potential.shells, max_programs=1)
optimizer = training.optimizer(training.OptimizerConfig("adam", max_norm=1.0), 5e-4)
state = training.init(params, optimizer)
batches = (batch for epoch in range(EPOCHS) for batch in data.pair_batches(packed, batch_size=4, seed=epoch))
for step, (state, metrics) in enumerate(training.fit(loss, state, optimizer, batches)):
    print(step, {name: float(metrics[name]) for name in ("loss", "dq_mean")})

# %% [markdown]
# ## After

# %%
after = judged(state.params)
print(before, after, sep="\n")
lamjax.save("tuned.lamjax", potential, state.params)

# %% [markdown]
# ## The same by command
#
# ```sh
# lamjax finetune-structures small pairs.extxyz --variable-cell --epochs 4 --output tuned
# ```
#
# It also validates after every epoch, keeps the best model, goes on after a kill (`--resume`), and tells what the
# tuning cost in forces. Against forgetting mix in labels with `--replay`. Which gradient to choose, and what it costs:
# [Choose an adjoint](../how-to/adjoints.md).
