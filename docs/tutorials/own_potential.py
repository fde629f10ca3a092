# %% [markdown]
# # Your own potential and loss
#
# Anything with a function `atomic_energies(params, system, neighbors)` and a cutoff is a `Potential`: it is relaxed,
# trained, simulated, differentiated and put into the calculator like DPA-2. Here it is an embedded-atom formula,
#
# \[ E = \sum_i \Big( \sum_j A\, e^{-p\,(r_{ij}/r_0 - 1)} - \xi \sqrt{\textstyle\sum_j
# e^{-2q\,(r_{ij}/r_0 - 1)}} \Big) \]
#
# (Cleri and Rosato, Phys. Rev. B 48, 22 (1993)), with the paper's numbers for copper.

# %%
import ase.build
import jax
import jax.numpy as jnp

import lamjax
from lamjax import dynamics, neighbors, numerics, relaxation, training
from lamjax.neighbors import Shell
from lamjax.relaxation import CellConfig, Implicit, RelaxConfig

CUTOFF = 5.5  # Å
MD_STEPS = 200
TRAINING_STEPS = 20

# %% [markdown]
# ## The potential
#
# `neighbors.displacements` are the vectors \(r_{ij}\), images included; empty slots are masked on the *inputs* of
# roots and norms, because a NaN that is masked afterwards still reaches the gradient. Padding needs no care beyond
# that.

# %%
INITIAL = {"A": 0.0855, "xi": 1.224, "p": 10.960, "q": 2.278, "r0": 2.556}  # eV, eV, 1, 1, Å


def init(key=None, dtype=None):
    return {name: jnp.asarray(value, dtype or float) for name, value in INITIAL.items()}


def atomic_energies(params, system, nbrs):
    r = numerics.safe_norm(neighbors.displacements(system, nbrs))  # (n_atoms, capacity) Å
    r = jnp.where(nbrs.mask, r, CUTOFF)
    smooth = numerics.switch(r, 0.8 * CUTOFF, CUTOFF)
    x = r / params["r0"] - 1
    repulsion = jnp.sum(smooth * params["A"] * jnp.exp(-params["p"] * x), axis=1)
    density = jnp.sum(smooth**2 * jnp.exp(-2 * params["q"] * x), axis=1)
    return repulsion - params["xi"] * jnp.sqrt(density)


potential = lamjax.Potential("Cleri-Rosato Cu", (Shell(CUTOFF),), init, atomic_energies, elements=("Cu",))
params = potential.init()

# %% [markdown]
# ## Relaxed, in ASE, simulated

# %%
copper = ase.build.bulk("Cu", a=3.7)
(result,) = relaxation.relax_structures(potential, params, [copper], RelaxConfig(fmax=1e-3, cell=CellConfig()))
a = (4 * lamjax.to_ase(result).get_volume()) ** (1 / 3)
print(f"lattice constant {a:.3f} Å, energy {float(result.energy):.3f} eV")  # the paper: 3.615 Å, -3.544 eV

copper.calc = lamjax.Calculator((potential, params))
print(copper.get_stress())

ensemble = dynamics.nve(potential, dynamics.NVEConfig(timestep=2.0))
simulation = dynamics.begin(ensemble, params, lamjax.from_ase(copper.repeat(2)), temperature=300.0, seed=0)
for simulation, seen in dynamics.simulate(ensemble, params, simulation, n_steps=MD_STEPS, every=20):
    print(seen.step[-1], seen.conserved[-1])

# %% [markdown]
# ## A loss of your own, through the relaxation
#
# A loss is a function (params, batch, lr_ratio) -> (scalar, metrics); `lr_ratio` is the learning rate over its first
# value, by which losses of labels change their prefactors. This one wants another lattice constant, 3.65 Å, of the
# *relaxed* crystal; the implicit adjoint differentiates the minimum itself.

# %%
TARGET = 3.65
system = lamjax.from_ase(copper)
nbrs = lamjax.allocate(potential, system, capacity=80)  # wider than now: the cell will shrink
relax = RelaxConfig(fmax=1e-3, max_steps=300, cell=CellConfig(), adjoint=Implicit())


def lattice_loss(params, batch, lr_ratio=1.0):
    end = lamjax.relax(potential, params, batch, nbrs, relax)
    found = (4 * jnp.abs(jnp.linalg.det(end.system.cell))) ** (1 / 3)
    return (found - TARGET) ** 2, {"a": found, "converged": end.converged}


optimizer = training.optimizer(training.OptimizerConfig("adam"), 2e-3)
state = training.init(params, optimizer)
for state, metrics in training.fit(lattice_loss, state, optimizer, [system] * TRAINING_STEPS):
    print(float(metrics["a"]), bool(metrics["converged"]))

# %% [markdown]
# `losses.weighted_sum` adds losses; `losses.label_loss(potential)` and `losses.structure_loss(potential)` take this
# potential as any other. Gradients of whatever you compute are `jax.grad` as usual: here of the relaxed energy with
# respect to every parameter.

# %%
gradient = jax.jit(jax.grad(lambda p: lamjax.relax(potential, p, system, nbrs, relax).energy))(state.params)
print(gradient)
