# %% [markdown]
# # Distil, then simulate
#
# A large model labels structures around the ones you care about, a small student learns them, and runs molecular
# dynamics at a fraction of the cost. `lamjax distill` does this in rounds, with a committee that says where more
# labels are needed; here is one round by hand.

# %%
import ase.build
import jax
import numpy as np

import lamjax
from lamjax import data, dynamics, losses, training, units
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig

TEACHER = "small"  # a model that comes with lamjax, or a file
NET = (8, 16, 32)  # radial net of the student
FRAMES = 60
EPOCHS = 40
MD_STEPS = 1000
REPEAT = 2

# %% [markdown]
# ## Explore
#
# Displaced and strained silicon. The command also runs simulations and relaxations of the student.

# %%
draw = np.random.default_rng(0)
structures = []
for _ in range(FRAMES):
    atoms = ase.build.bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell @ (np.eye(3) + draw.normal(0, 0.02, (3, 3))), scale_atoms=True)
    atoms.rattle(draw.uniform(0.02, 0.15), rng=draw)
    structures.append(atoms)

# %% [markdown]
# ## Label
#
# The teacher through ASE's calculator. `lamjax label` does this for files, resumes, and takes any other ASE
# calculator, too.

# %%
calculator = lamjax.Calculator(TEACHER)
for atoms in structures:
    atoms.calc = calculator
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc = None
    atoms.info |= {"REF_energy": energy, "REF_stress": stress}
    atoms.arrays["REF_forces"] = forces
frames = [data.from_atoms(atoms) for atoms in structures]
learned, fresh = frames[: -FRAMES // 5], frames[-FRAMES // 5 :]

# %% [markdown]
# ## Learn
#
# The student is a DPA-1 without attention, as in the DPA-2 paper. Its statistics and its energy per element come from
# the data.

# %%
descriptor = DPA1Config(rcut=5.0, sel=60, neuron=NET, axis_neuron=4, tebd_dim=4)
config = lamjax.PotentialConfig(("Si",), descriptor, (("silicon", EnergyHeadConfig(neuron=(32, 32))),))
student = lamjax.build(config)
params = data.set_statistics(student, student.init(jax.random.key(0)), learned)
packed = data.pack(learned, data.plan(learned, student.shells, max_programs=1))
measured = data.pack(fresh, data.plan(fresh, student.shells, max_programs=1))
loss = losses.label_loss(student)
n_steps = EPOCHS * -(-len(learned) // 4)
rate = training.schedule(
    training.ScheduleConfig(start_lr=5e-3, stop_lr=5e-5, decay_steps=max(n_steps // 20, 1)), n_steps
)
optimizer = training.optimizer(training.OptimizerConfig("adam"), rate)
state = training.init(params, optimizer)
for state, metrics in training.fit(loss, state, optimizer, data.batches(packed, 4, seed=0, epochs=EPOCHS)):
    pass
errors = training.evaluate(loss, state.params, data.batches(measured, 4, seed=None, epochs=1))
print({name: float(errors[name]) for name in ("rmse_e", "rmse_f")})  # eV/atom, eV/Å on frames it has never seen
lamjax.save("student.lamjax", student, state.params)

# %% [markdown]
# ## Simulate
#
# Chunks of steps run on the device; `seen` is a record with a value for each frame.

# %%
system = lamjax.from_ase(ase.build.bulk("Si", cubic=True).repeat(REPEAT))
ensemble = dynamics.nvt(student, dynamics.NVTConfig(timestep=1.0, temperature=300.0))
simulation = dynamics.begin(ensemble, state.params, system, seed=0)
for simulation, seen in dynamics.simulate(ensemble, state.params, simulation, n_steps=MD_STEPS, every=10):
    print(f"step {seen.step[-1]}: {seen.temperature[-1]:.0f} K, {seen.pressure[-1] / units.GPA:.2f} GPa")

# %% [markdown]
# ## The same by command
#
# ```sh
# lamjax distill small --student student.yaml --start silicon.extxyz --output distilled
# lamjax md distilled/student.lamjax silicon.extxyz --temperature 300 --time 1 --output run.h5
# ```
#
# See [Distil and learn actively](../how-to/distil.md), [Run molecular dynamics](../how-to/simulate.md).
