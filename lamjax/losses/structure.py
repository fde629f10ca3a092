"""How far a relaxation ends from where it should, and a loss of it that trains the potential through the relaxation."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import ase.data
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lamjax import numerics
from lamjax.relaxation import Relaxation, RelaxConfig, Unrolled, UntilConverged, relax
from lamjax.system import System, real

MASSES = np.where(np.arange(119) > 0, np.nan_to_num(ase.data.atomic_masses, nan=1.0), 0.0)  # amu, 0 for padding
_NEAR = np.array(list(itertools.product((-1, 0, 1), repeat=3)))
_STEPS = np.array([s for s in itertools.product((-1, 0, 1), repeat=2) if any(s)])


class StructureError(NamedTuple):
    """Distance of two structures of the same atoms and cell; with a leading axis for a batch."""

    dq: Float[Array, "*batch"]  # amu^1/2 Å, mass-weighted
    rmsd: Float[Array, "*batch"]  # Å, all atoms alike
    largest: Float[Array, "*batch"]  # Å, the atom that is farthest off


@dataclass(frozen=True)
class StructureLossConfig:
    """What the structure loss relaxes and how it weighs the distance of the end from the target.

    `kind`: "dq" the mass-weighted distance; "squared" dq²; "bounded" dq/(scale + dq), which keeps the huge gradients
    next to a switch of basins from deciding a batch.
    """

    relax: RelaxConfig = field(default_factory=lambda: RelaxConfig(adjoint=Unrolled(50)))
    kind: Literal["dq", "squared", "bounded"] = "dq"
    scale: float = 1.0  # amu^1/2 Å, where "bounded" is one half
    max_motion: float = 10.0  # Å; an atom that moved farther than this from its start has exploded: dropped, counted
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def structure_loss(potential, config: StructureLossConfig | None = None) -> Callable:
    """The loss `(params, batch, lr_ratio) -> (scalar, metrics)` of relaxing `batch.start` towards `batch.target`.

    The batch is a `data.pairs.StructureBatch`. The scalar is the mean over its structures; rows without atoms do not
    count, and structures whose relaxation became infinite, NaN or exploded are left out of value and gradient and
    counted in the metrics (means and a median over the kept ones; the numbers n_* are sums).
    Dramko et al., arXiv 2512.01067.
    """
    config = StructureLossConfig() if config is None else config
    if isinstance(config.relax.adjoint, UntilConverged):
        raise ValueError(
            "structure_loss differentiates the relaxation and UntilConverged cannot be. Use adjoint=Unrolled(steps)."
        )
    shape = _shape(config)

    def loss(params, batch, lr_ratio=1.0):  # the ratio is for losses whose weights follow the learning rate
        relaxed = relax(potential, params, batch.start, batch.neighbors, config.relax)
        present = jnp.any(real(batch.start), axis=-1)
        kept = present & relaxed.finite & (_motion(relaxed, batch.start) <= config.max_motion)
        # a dropped structure is judged at its target, where every derivative is finite, and then not counted
        positions = jnp.where(kept[..., None, None], relaxed.system.positions, batch.target)
        error = structure_error(relaxed.system._replace(positions=positions), batch.target)
        value = jnp.sum(jnp.where(kept, shape(error.dq), 0)) / jnp.maximum(jnp.sum(kept), 1)
        return value, _metrics(error, relaxed, kept, present)

    return loss


def structure_error(system: System, target: Float[Array, "*batch n_atoms 3"]) -> StructureError:
    """Dq = sqrt(Σ_j m_j |x*_j - x_j|²) (amu^1/2 Å), RMSD and largest displacement (Å) of positions from `target`.

    Each displacement is the shortest over all periodic images, exact in skewed cells. A common translation, the
    mass-weighted mean displacement, is removed in all three directions; rotations are not (in a crystal they are no
    freedom; two molecules must be aligned beforehand). Padded atoms do not count. Dramko et al., arXiv 2512.01067.
    """
    system, target = jax.tree.map(jnp.asarray, (system, target))
    if system.positions.ndim == 3:
        return jax.vmap(structure_error)(system, target)
    mass = jnp.asarray(MASSES, system.positions.dtype)[system.numbers]
    d = displacement(system, target, mass)
    squared = jnp.sum(d * d, axis=-1)
    n_real = jnp.maximum(jnp.sum(mass > 0), 1)
    return StructureError(
        dq=numerics.safe_sqrt(jnp.sum(mass * squared)),
        rmsd=numerics.safe_sqrt(jnp.sum(squared) / n_real),
        largest=numerics.safe_sqrt(jnp.max(squared, initial=0)),
    )


def displacement(system: System, target, mass) -> Float[Array, "n_atoms 3"]:
    """x* - x (Å) by minimum image, its weighted mean removed, 0 on padding.

    The mean is found twice: once it is gone, an atom near half a lattice vector may have a nearer image.
    """
    raw = jnp.where((mass > 0)[:, None], target - system.positions, 0)
    weight = (mass / jnp.maximum(jnp.sum(mass), 1))[:, None]
    reduction = reduced_lattice(system.cell, system.pbc)
    first = raw + nearest_image(raw, system.cell, system.pbc, reduction) @ system.cell
    mean = jnp.sum(weight * first, axis=0)
    images = nearest_image(raw - mean, system.cell, system.pbc, reduction)
    d = raw + images @ system.cell
    return jnp.where((mass > 0)[:, None], d - jnp.sum(weight * d, axis=0), 0)


def nearest_image(d, cell, pbc, reduction) -> Float[Array, "n 3"]:
    """The integers S (as floats) that make d + S cell shortest, for each row of `d` (Å); no gradient.

    In a Minkowski-reduced basis the shortest is among the 27 images around the rounded one.
    """
    d, cell = jax.lax.stop_gradient((d, cell))
    reduction = reduction.astype(cell.dtype)
    basis = reduction @ jnp.where(pbc[:, None], cell, 0)
    rounded = -jnp.round(d @ jnp.linalg.pinv(basis))
    candidates = rounded[:, None, :] + jnp.asarray(_NEAR, cell.dtype)
    length = jnp.sum((d[:, None, :] + candidates @ basis) ** 2, axis=-1)
    best = jnp.take_along_axis(candidates, jnp.argmin(length, axis=1)[:, None, None], axis=1)[:, 0]
    return jnp.where(pbc, best @ reduction, 0)


def reduced_lattice(cell, pbc) -> Int[Array, "3 3"]:
    """Integers T so that T cell is a Minkowski-reduced basis of the lattice of the periodic directions; no gradient.

    While a lattice vector can be shortened by adding (or taking away) others, it is.
    """
    cell = jnp.where(pbc[:, None], jax.lax.stop_gradient(cell), 0)

    def shorten(state):
        transform, _, n = state
        changed = jnp.zeros((), bool)
        for k in range(3):
            transform, better = _shorten_row(transform, cell, pbc, k)
            changed = changed | better
        return transform, changed, n + 1

    start = (jnp.eye(3, dtype=jnp.int32), jnp.ones((), bool), 0)
    # a lattice takes a few rounds; the limit is for vectors that span none
    return jax.lax.while_loop(lambda state: state[1] & (state[2] < 100), shorten, start)[0]


def _shorten_row(transform, cell, pbc, k: int):
    """Row k replaced by the shortest of row + s i + t j, s and t being -1, 0, 1 or the rounded projections."""
    i, j = [axis for axis in range(3) if axis != k]
    rows = transform.astype(cell.dtype) @ cell
    square = jnp.sum(rows * rows, axis=1)
    s, t = (-jnp.round(rows[k] @ rows[axis] / jnp.maximum(square[axis], 1e-12)).astype(jnp.int32) for axis in (i, j))
    zero = jnp.zeros_like(s)
    steps = jnp.concatenate([jnp.asarray(_STEPS, jnp.int32), jnp.stack([jnp.stack([s, zero]), jnp.stack([zero, t])])])
    steps = jnp.where(pbc[jnp.array([i, j])] & pbc[k], steps, 0)
    options = transform[k] + steps @ transform[jnp.array([i, j])]
    length = jnp.sum((options.astype(cell.dtype) @ cell) ** 2, axis=1)
    best = jnp.argmin(length)
    better = length[best] < square[k] * (1 - 1e-5)
    return transform.at[k].set(jnp.where(better, options[best], transform[k])), better


def _shape(config: StructureLossConfig) -> Callable:
    match config.kind:
        case "dq":
            return lambda dq: dq
        case "squared":
            return jnp.square
        case "bounded":
            return lambda dq: dq / (config.scale + dq)
    raise ValueError(f"Unknown kind of structure loss {config.kind!r}; known: dq, squared, bounded.")


def _motion(relaxed: Relaxation, start: System) -> Bool[Array, "*batch"]:
    """How far the farthest atom went from its start (Å); positions are unwrapped."""
    moved = jax.lax.stop_gradient(relaxed.system.positions) - start.positions
    return jnp.sqrt(jnp.max(jnp.sum(moved * moved, axis=-1), axis=-1, initial=0))


def _metrics(error: StructureError, relaxed: Relaxation, kept, present) -> dict:
    n_kept = jnp.maximum(jnp.sum(kept), 1)
    mean = lambda x: jnp.sum(jnp.where(kept, x, 0)) / n_kept  # noqa: E731
    return {
        "dq_mean": mean(error.dq),
        "dq_median": _median(error.dq, kept),
        "rmsd": mean(error.rmsd),
        "largest_displacement": jnp.max(jnp.where(kept, error.largest, 0)),
        "fmax": mean(relaxed.fmax),
        "n_steps": mean(relaxed.n_steps.astype(relaxed.fmax.dtype)),
        "converged": mean(relaxed.converged),
        "n_structures": jnp.sum(kept),
        "n_dropped": jnp.sum(present & ~kept),
        "n_overflow": jnp.sum(present & relaxed.overflow),
    }


def _median(x, kept):
    """Median over the kept ones; 0 if there are none."""
    ordered = jnp.sort(jnp.where(kept, jnp.ravel(x), jnp.inf))
    n = jnp.sum(kept)
    low, high = jnp.maximum(n - 1, 0) // 2, jnp.minimum(n // 2, len(ordered) - 1)
    return jnp.where(n > 0, (ordered[low] + ordered[high]) / 2, 0)
