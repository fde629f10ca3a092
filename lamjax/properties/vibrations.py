"""Force constants and what follows from them: dynamical matrices, frequencies, densities of states, thermodynamics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase import units as ase_units
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Complex, Float, PyTree

from lamjax import numerics, units
from lamjax.neighbors import Neighbors
from lamjax.potential import Potential
from lamjax.properties import minimum
from lamjax.properties.minimum import BLOCK, RELAXED, Minimum, PropertyConfig
from lamjax.properties.supercells import Supercell, home, repeated
from lamjax.system import System, masses

THZ = 1e-12 * ase_units.s / (2 * np.pi)  # sqrt(eV/Å²/amu) as a frequency in THz: 15.633302
QUANTUM = ase_units._hplanck * 1e12 / ase_units._e  # eV of one quantum of 1 THz
SILENT = 1e-3  # THz: modes below it are translations and take no part in sums
IMAGINARY = 0.1  # THz: a mode with ω² < 0 whose |frequency| is larger makes a crystal unstable
BATCH = 64  # wave vectors whose matrices are diagonalised side by side


class ForceConstants(NamedTuple):
    """Second derivatives of the energy by positions in a supercell."""

    constants: Float[Array, "n_atoms n_super 3 3"]  # eV/Å², atoms of the cell and of the supercell; Σ_j Φ_ij = 0
    sum_rule: Float[Array, ""]  # eV/Å², the largest |Σ_j Φ_ij| before it was taken away; large: neighbours are missing
    fmax: Float[Array, ""]  # eV/Å
    converged: Bool[Array, ""]  # the largest force is below config.fmax


class Phonons(NamedTuple):
    """Frequencies on a mesh of wave vectors, equal weights."""

    qpoints: Float[Array, "n_q 3"]  # in reciprocal lattice vectors of the cell
    frequencies: Float[Array, "n_q n_modes"]  # THz, ascending; negative where ω² < 0
    constants: ForceConstants
    least: Float[Array, ""]  # THz, the lowest frequency
    stable: Bool[Array, ""]  # no frequency is imaginary, by more than `IMAGINARY`
    converged: Bool[Array, ""]


class Thermodynamics(NamedTuple):
    """Thermodynamic functions of the harmonic crystal, for one cell, at each temperature."""

    temperatures: Float[Array, " n_t"]  # K
    zero_point: Float[Array, ""]  # eV
    free_energy: Float[Array, " n_t"]  # eV, of the vibrations, the zero point included
    entropy: Float[Array, " n_t"]  # eV/K
    heat_capacity: Float[Array, " n_t"]  # eV/K, at constant volume; 96485.33 of it are J/(mol K)
    share_left_out: Float[Array, ""]  # of the modes: imaginary ones have no energy, and 3 translations at Γ


def force_constants(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    cells: Supercell,
    config: PropertyConfig = RELAXED,
) -> ForceConstants:
    """Φ_ij = ∂²E/∂x_i∂x_j of a supercell (eV/Å²), i in the cell, exact, by Hessian products.

    `system` is the relaxed cell with its `neighbors`, `cells` its supercell. The acoustic sum rule is imposed on the
    constant of an atom with itself. Pure, and differentiable by the parameters with the relaxed structure's response.
    """
    return force_constants_at(
        potential, params, minimum.at_minimum(potential, params, system, neighbors, config), cells
    )


def force_constants_at(potential: Potential, params: Any, relaxed: Minimum, cells: Supercell) -> ForceConstants:
    """As `force_constants`, of what `at_minimum` gives: for several properties of one crystal."""
    constants, residual = constants_of(potential, params, relaxed.system, cells)
    return ForceConstants(constants, jax.lax.stop_gradient(residual), relaxed.fmax, relaxed.converged)


def constants_of(
    potential: Potential, params: PyTree, system: System, cells: Supercell
) -> tuple[Float[Array, "n_atoms n_super 3 3"], Float[Array, ""]]:
    """Force constants (eV/Å²) of the supercell of a structure as it is, and the largest |Σ_j Φ_ij| that was left."""
    rows = columns(potential, params, system, cells, unit_displacements(cells, system.positions.dtype))
    return with_sum_rule(rows.reshape(len(home(cells)), 3, -1, 3).swapaxes(1, 2), cells)


def with_sum_rule(
    rows: Float[Array, "n_atoms n_super 3 3"], cells: Supercell
) -> tuple[Float[Array, "n_atoms n_super 3 3"], Float[Array, ""]]:
    """Constants whose sum over j vanishes, by that of an atom with itself; and the largest sum before (eV/Å²)."""
    total, atoms = jnp.sum(rows, axis=1), np.arange(len(home(cells)))
    return jnp.asarray(rows).at[atoms, home(cells)].add(-total), jnp.max(jnp.abs(total), initial=0)


def columns(
    potential: Potential, params: PyTree, system: System, cells: Supercell, along: Float[Array, "n n_super 3"]
) -> Float[Array, "n n_super 3"]:
    """H v for displacements v of the atoms of the supercell (eV/Å² times the unit of v), differentiable."""
    return hessian_products(potential, params, repeated(system, cells), cells.neighbors, along)


def hessian_products(
    potential: Potential, params: Any, system: System, neighbors: Neighbors, along: Float[Array, "n n_atoms 3"]
) -> Float[Array, "n n_atoms 3"]:
    """H v, H = ∂²E/∂x∂x of a structure as it is, for displacements v (eV/Å² times the unit of v), differentiable."""
    system, lists = jax.tree.map(jnp.asarray, (system, neighbors))

    def gradient(positions):
        return jax.grad(lambda x: potential.energy(params, system._replace(positions=x), lists))(positions)

    @jax.checkpoint
    def product(v):
        return jax.jvp(gradient, (system.positions,), (v,))[1]

    return jax.lax.map(product, along.astype(system.positions.dtype), batch_size=min(BLOCK, len(along)))


def unit_displacements(cells: Supercell, dtype: DTypeLike) -> Float[Array, "n n_super 3"]:
    """Unit displacements, one for each Cartesian component of each atom of the cell."""
    n_super = len(cells.atom)
    rows = 3 * home(cells)[:, None] + np.arange(3)
    return jax.nn.one_hot(rows.ravel(), 3 * n_super, dtype=dtype).reshape(-1, n_super, 3)


def dynamical_matrix(
    constants: Float[Array, "n_atoms n_super 3 3"], system: System, cells: Supercell, q: Float[Array, "3"]
) -> Complex[Array, "n n"]:
    """D(q) = Σ_R Φ_0i,Rj exp(2πi q·R)/√(m_i m_j) (eV/Å²/amu), q in reciprocal lattice vectors, R lattice vectors.

    A pair whose copies are equally near is shared by them, as phonopy does it. The phases are those of the cells; with
    those of the atoms, as in phonopy, the eigenvalues are the same.
    """
    n = constants.shape[0]
    turn = jnp.einsum("ijkx,x->ijk", cells.images.astype(constants.dtype), q)
    phase = jnp.sum(cells.weights * jnp.exp(2j * jnp.pi * turn), axis=-1)
    blocks = (constants * phase[..., None, None]).reshape(n, n, -1, 3, 3).sum(axis=2)
    root = jnp.sqrt(masses(system))
    blocks = blocks / (root[:, None] * root)[..., None, None]
    matrix = blocks.swapaxes(1, 2).reshape(3 * n, 3 * n)
    return (matrix + matrix.conj().T) / 2


def frequencies(
    constants: Float[Array, "n_atoms n_super 3 3"], system: System, cells: Supercell, qpoints: Float[Array, "n_q 3"]
) -> Float[Array, "n_q n_modes"]:
    """Frequencies (THz) at wave vectors, ascending; negative where ω² < 0. Differentiable but where one is 0."""
    return in_thz(squared_frequencies(constants, system, cells, qpoints))


def in_thz(squares: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """THz of ω² (eV/Å²/amu), negative where that is."""
    return THZ * jnp.sign(squares) * numerics.safe_sqrt(jnp.abs(squares))


def squared_frequencies(
    constants: Float[Array, "n_atoms n_super 3 3"], system: System, cells: Supercell, qpoints: Float[Array, "n_q 3"]
) -> Float[Array, "n_q n_modes"]:
    """ω² (eV/Å²/amu) at wave vectors, ascending; differentiable."""
    return jax.lax.map(
        lambda q: eigenvalues(dynamical_matrix(constants, system, cells, q)),
        jnp.asarray(qpoints, constants.dtype),
        batch_size=min(BATCH, len(qpoints)),
    )


@jax.custom_jvp
def eigenvalues(matrix: Complex[Array, "n n"]) -> Float[Array, " n"]:
    """Eigenvalues of a Hermitian matrix, ascending; symmetric functions of equal ones are differentiated correctly."""
    return jnp.linalg.eigvalsh(matrix)


@eigenvalues.defjvp
def _eigenvalues_jvp(primals, tangents):
    values, vectors = jnp.linalg.eigh(primals[0])
    return values, jnp.real(jnp.einsum("in,ij,jn->n", vectors.conj(), tangents[0], vectors))


def mesh(numbers: Sequence[int]) -> Float[np.ndarray, "n_q 3"]:
    """Wave vectors of Monkhorst and Pack, (2r - n - 1)/2n along each reciprocal lattice vector; Γ among odd ones."""
    counts = np.asarray(numbers)
    if counts.shape != (3,) or np.any(counts < 1) or np.any(counts != np.round(counts)):
        raise ValueError(f"A mesh has three whole numbers of at least 1, such as (10, 10, 10); got {counts.tolist()}.")
    axes = [(2 * np.arange(1, n + 1) - n - 1) / (2 * n) for n in counts]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def phonons(
    potential: Potential,
    params: Any,
    system: System,
    neighbors: Neighbors,
    cells: Supercell,
    qpoints: Float[Array, "n_q 3"],
    config: PropertyConfig = RELAXED,
) -> Phonons:
    """Frequencies of a relaxed crystal at wave vectors, such as those of `mesh` or of `path` (THz).

    As `force_constants`; without the splitting of longitudinal and transverse modes by charges.
    """
    relaxed = minimum.at_minimum(potential, params, system, neighbors, config)
    return phonons_at(potential, params, relaxed, cells, qpoints)


def phonons_at(
    potential: Potential, params: Any, relaxed: Minimum, cells: Supercell, qpoints: Float[Array, "n_q 3"]
) -> Phonons:
    """As `phonons`, of what `at_minimum` gives: for several properties of one crystal."""
    harmonic = force_constants_at(potential, params, relaxed, cells)
    values = frequencies(harmonic.constants, relaxed.system, cells, qpoints)
    least = jnp.min(values)
    stable = jax.lax.stop_gradient(least) > -IMAGINARY
    return Phonons(jnp.asarray(qpoints), values, harmonic, least, stable, harmonic.converged)


def thermodynamics(phonons: Phonons, temperatures: Float[Array, " n_t"]) -> Thermodynamics:
    """Zero-point energy, free energy, entropy and heat capacity of the harmonic crystal, from a mesh of wave vectors.

    Modes below `SILENT` are left out, imaginary ones too: where `phonons.stable` is False these are no properties of a
    crystal. F = Σ hν/2 + kT ln(1 - exp(-x)), C = k Σ x² eˣ/(eˣ - 1)², x = hν/kT.
    """
    modes = phonons.frequencies
    kept = modes > SILENT
    quanta = QUANTUM * jnp.where(kept, modes, 1)
    n_q = modes.shape[0]
    mean = lambda x: jnp.sum(jnp.where(kept, x, 0)) / n_q  # noqa: E731

    def at(t):
        warm = t > 0
        x = quanta / (units.KB * jnp.where(warm, t, 1))
        fall = jnp.exp(-x)  # (no exp(x), which overflows at low temperatures)
        free = mean(quanta / 2) + jnp.where(warm, units.KB * t * mean(jnp.log1p(-fall)), 0)
        entropy = jnp.where(warm, units.KB * mean(x * fall / (1 - fall) - jnp.log1p(-fall)), 0)
        capacity = jnp.where(warm, units.KB * mean(x**2 * fall / (1 - fall) ** 2), 0)
        return free, entropy, capacity

    temperatures = jnp.atleast_1d(jnp.asarray(temperatures, modes.dtype))
    free, entropy, capacity = jax.vmap(at)(temperatures)
    return Thermodynamics(temperatures, mean(quanta / 2), free, entropy, capacity, 1 - jnp.mean(kept))


def density_of_states(phonons: Phonons, grid: Float[Array, " n"], width: float = 0.1) -> Float[Array, " n"]:
    """Modes of a cell per THz at frequencies `grid` (THz), each mode a Gaussian of standard deviation `width` (THz)."""
    x = (grid[:, None] - phonons.frequencies.ravel()[None]) / width
    return jnp.sum(jnp.exp(-(x**2) / 2), axis=1) / (width * np.sqrt(2 * np.pi) * phonons.frequencies.shape[0])
