"""Barriers: a band of images between two minima, relaxed side by side (nudged elastic band).

Improved tangent: Henkelman, Jónsson, J. Chem. Phys. 113, 9978 (2000); climbing image: Henkelman, Uberuaga, Jónsson,
ibid. 9901; first guess: Smidstrup et al., ibid. 140, 214106 (2014).
"""

from collections.abc import Callable
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PyTree
from pydantic import Field

from lamjax import pytree
from lamjax.arguments import ArgumentError, expect
from lamjax.config import configuration
from lamjax.lattice import complete_cell, shortest
from lamjax.neighbors import Neighbors, check_shells
from lamjax.neighbors.verlet import SKIN
from lamjax.numerics import safe_norm
from lamjax.potential import Potential
from lamjax.relaxation.layouts import Padded
from lamjax.relaxation.minimisers import FireConfig, MinimiserConfig, minimiser
from lamjax.relaxation.surface import over
from lamjax.system import System, as_system, check_single, fixed_mask, real

SAME = 1e-4  # Å; images whose cells, or fixed atoms whose places are nearer have the same
MEET = 0.05  # Å; atoms nearer than this in a first guess are on one place


@configuration
class NebConfig:
    """The forces of a band, and when it has settled."""

    spring: Annotated[float, Field(gt=0, description="eV/Å², between images")] = 0.1
    climb: Annotated[bool, Field(description="the highest image climbs to the saddle")] = True
    climb_below: Annotated[float, Field(gt=0, description="eV/Å: it begins to when no force on the band is larger")] = (
        0.5
    )
    fmax: Annotated[
        float, Field(gt=0, description="eV/Å: converged when no force of the band on an atom of any image is larger")
    ] = 0.05
    max_steps: Annotated[int, Field(ge=0)] = 1000
    minimiser: MinimiserConfig = field(default_factory=FireConfig)
    skin: Annotated[float, Field(ge=0, description="Å")] = SKIN


class Band(NamedTuple):
    """A path between two minima."""

    images: System  # leading axis, both ends included
    energies: Float[Array, " n_images"]  # eV
    forces: Float[Array, "n_images n_atoms 3"]  # eV/Å, those of the potential
    distances: Float[Array, " n_images"]  # Å, along the path
    barrier: Float[Array, ""]  # eV, of the highest image above the first
    reverse_barrier: Float[Array, ""]  # eV, above the last
    highest: Int[Array, ""]  # image
    fmax: Float[Array, ""]  # eV/Å, of the band
    saddle_fmax: Float[Array, ""]  # eV/Å, of the potential at the highest image
    ends_fmax: Float[Array, ""]  # eV/Å, of the potential at the ends; large where they are no minima: no barrier then
    n_steps: Int[Array, ""]
    converged: Bool[Array, ""]  # fmax <= config.fmax, climbing if it should, with complete neighbour lists
    overflow: Bool[Array, ""]  # neighbours were missing on the way


class _State(NamedTuple):
    walker: Any
    lists: Any
    energies: Float[Array, " n_images"]
    true: Float[Array, "n_images n_atoms 3"]
    fmax: Float[Array, ""]
    climbing: Bool[Array, ""]
    n_steps: Int[Array, ""]
    overflow: Bool[Array, ""]


def neb(
    potential: Potential,
    params: PyTree,
    images: System,
    neighbors: Neighbors,
    config: NebConfig = NebConfig(),
    *,
    fixed: Bool[Array, "n_atoms 3"] | None = None,
) -> Band:
    """A band of images relaxed to a path of least energy, its highest image to the saddle. Pure: jit it outside.

    `images` have a leading axis; the first and the last are minima and stay (see `interpolate`). All are evaluated in
    one batch. `neighbors` is the list of one image, or one for each; they are searched anew on the way, in its shapes
    (`overflow`). The cell is fixed. Gradients: a barrier's is that of the energies, see `saddles.at_saddle`.
    """
    expect(config, NebConfig, "neb takes a NebConfig", "Leave it out for the defaults.")
    _check(images)
    images, neighbors = jax.tree.map(jnp.asarray, (images, neighbors))
    check_shells(neighbors, potential.shells, anew=True)
    n = len(images.numbers)
    if neighbors.indices.ndim == 2:
        neighbors = jax.tree.map(lambda x: jnp.broadcast_to(x, (n, *x.shape)), neighbors)
    if fixed is not None:
        fixed = fixed_mask(fixed, images.numbers[0])
        _check_still(images.positions, fixed)
    held = None if fixed is None else jnp.broadcast_to(fixed, (n, images.n_atoms, 3))
    surface = jax.lax.stop_gradient(over(potential, images, held, None))
    params, layout = jax.lax.stop_gradient(params), Padded(neighbors.capacities, config.skin)

    def evaluate(lists, positions):
        z = jnp.concatenate([positions, jnp.zeros((n, 3, 3), positions.dtype)], axis=1)
        lists = layout.refresh(surface, lists, z)
        evaluated = layout.evaluate(surface, params, z, lists)
        energy, force, _ = evaluated.evaluation
        return lists, energy, force[:, :-3], jnp.any(evaluated.overflow)

    end = _relaxed(evaluate, images.positions, layout.empty(surface, neighbors), config)
    return _result(images, end, config)


def _relaxed(evaluate: Callable, positions: Float[Array, "n n_atoms 3"], lists: Any, config: NebConfig) -> _State:
    """The band walked downhill by FIRE with one time step for all images."""
    n, n_atoms, _ = positions.shape
    method = minimiser(config.minimiser)
    numbers = method.numbers(positions.dtype)
    flat = lambda x: x.reshape(n * n_atoms, 3)  # noqa: E731
    blank = jnp.zeros(n * n_atoms, jnp.int32)

    def continues(state: _State) -> Bool[Array, ""]:
        settled = (state.fmax <= config.fmax) & (state.climbing | (not config.climb))
        return ~settled & (state.n_steps <= config.max_steps) & jnp.isfinite(jnp.sum(state.energies))

    def step(state: _State) -> _State:
        first = state.n_steps == 0
        place = jnp.where(first, flat(positions), method.propose(numbers, state.walker, blank))
        lists, energies, true, overflow = evaluate(state.lists, place.reshape(positions.shape))
        force = band_forces(place.reshape(positions.shape), energies, true, config.spring, state.climbing)
        fmax = jnp.sqrt(jnp.max(jnp.sum(force**2, axis=-1)))
        rested = method.init(numbers, place, flat(force))
        walked = method.step(numbers, state.walker, place, flat(force))
        return _State(
            pytree.where(first, rested, walked),
            lists,
            energies,
            true,
            fmax,
            state.climbing | (config.climb & (fmax < max(config.climb_below, config.fmax))),
            state.n_steps + 1,
            state.overflow | overflow,
        )

    state = _State(
        walker=method.init(numbers, flat(positions), jnp.zeros_like(flat(positions))),
        lists=lists,
        energies=jnp.zeros(n, jax.eval_shape(evaluate, lists, positions)[1].dtype),
        true=jnp.zeros_like(positions),
        fmax=jnp.full((), jnp.inf, positions.dtype),
        climbing=jnp.zeros((), bool),
        n_steps=jnp.zeros((), jnp.int32),
        overflow=jnp.zeros((), bool),
    )
    return jax.lax.while_loop(continues, step, state)


def band_forces(
    positions: Float[Array, "n n_atoms 3"],
    energies: Float[Array, " n"],
    forces: Float[Array, "n n_atoms 3"],
    spring: float,
    climbing: Bool[Array, ""],
) -> Float[Array, "n n_atoms 3"]:
    """Forces on the images (eV/Å): the potential's across the path, the springs' along it; 0 on the ends.

    While it is `climbing`, the highest image feels no spring and the potential's force along the path reversed.
    """
    ahead, behind = positions[2:] - positions[1:-1], positions[1:-1] - positions[:-2]
    tangent = _tangents(ahead, behind, energies)
    inner = forces[1:-1]
    along = jnp.sum(inner * tangent, axis=(1, 2), keepdims=True)
    pull = spring * (_norm(ahead) - _norm(behind))
    highest = jnp.arange(len(inner)) == jnp.argmax(energies[1:-1])
    climbs = (highest & climbing)[:, None, None]
    nudged = inner - along * tangent + pull * tangent
    return jnp.zeros_like(forces).at[1:-1].set(jnp.where(climbs, inner - 2 * along * tangent, nudged))


def _tangents(
    ahead: Float[Array, "n n_atoms 3"], behind: Float[Array, "n n_atoms 3"], energies: Float[Array, " n"]
) -> Float[Array, "n n_atoms 3"]:
    """Unit vectors along the path at the inner images, towards the neighbour of higher energy."""
    low, middle, high = energies[:-2], energies[1:-1], energies[2:]
    up, down = (high > middle) & (middle > low), (high < middle) & (middle < low)
    most = jnp.maximum(jnp.abs(high - middle), jnp.abs(low - middle))
    least = jnp.minimum(jnp.abs(high - middle), jnp.abs(low - middle))
    rising = high > low
    column = lambda x: x[:, None, None].astype(ahead.dtype)  # noqa: E731
    mixed = column(jnp.where(rising, most, least)) * ahead + column(jnp.where(rising, least, most)) * behind
    mixed = jnp.where(column(most) > 0, mixed, ahead + behind)
    tangent = jnp.where(up[:, None, None], ahead, jnp.where(down[:, None, None], behind, mixed))
    size = _norm(tangent)
    return tangent / jnp.where(size > 0, size, 1)


def _result(images: System, end: _State, config: NebConfig) -> Band:
    positions = end.walker.position.reshape(images.positions.shape)
    highest = jnp.argmax(end.energies)
    distances = jnp.concatenate([jnp.zeros(1), jnp.cumsum(_norm(positions[1:] - positions[:-1])[:, 0, 0])])
    settled = (end.fmax <= config.fmax) & (end.climbing | (not config.climb))
    return Band(
        images=images._replace(positions=positions),
        energies=end.energies,
        forces=end.true,
        distances=distances,
        barrier=end.energies[highest] - end.energies[0],
        reverse_barrier=end.energies[highest] - end.energies[-1],
        highest=highest,
        fmax=end.fmax,
        saddle_fmax=jnp.sqrt(jnp.max(jnp.sum(end.true[highest] ** 2, axis=-1))),
        ends_fmax=jnp.sqrt(jnp.max(jnp.sum(end.true[jnp.array([0, -1])] ** 2, axis=-1))),
        n_steps=jnp.maximum(end.n_steps - 1, 0),
        converged=settled & ~end.overflow & jnp.all(jnp.isfinite(end.energies)),
        overflow=end.overflow,
    )


def interpolate(
    start: System, end: System, n_images: int = 7, method: Literal["idpp", "linear"] = "idpp", *, steps: int = 300
) -> System:
    """`n_images` structures from start to end (both included): straight lines, or distances that change evenly (IDPP).

    Each atom goes to the nearest image of where it ends; atoms are in the same order in both. On the host. Raises
    ValueError for structures of different atoms or cells, and for a path on which two atoms meet.
    """
    start, end = (jax.tree.map(np.asarray, as_system(s)) for s in (start, end))
    _check_ends(start, end, n_images)
    change = shortest(end.positions - start.positions, start.cell, start.pbc)
    line = np.linspace(0, 1, n_images)[:, None, None]
    positions = start.positions + line * change
    match method:
        case "idpp":
            positions = np.asarray(_idpp(jnp.asarray(positions), start, steps))
        case "linear":
            pass
        case _:
            raise ArgumentError(f"method is {method!r}; known: idpp, linear.")
    _check_apart(positions, start)
    images = pytree.stack([start] * n_images)
    return images._replace(positions=np.asarray(positions, start.positions.dtype))


def _idpp(positions: Float[Array, "n n_atoms 3"], system: System, steps: int) -> Float[Array, "n n_atoms 3"]:
    """The band on the sum of squared differences from interpolated distances, weighted by their fourth power."""
    n, n_atoms, _ = positions.shape
    cell, pbc = complete_cell(system.cell, system.pbc), np.asarray(system.pbc)
    inverse = np.linalg.inv(cell)
    pairs = np.asarray(real(system))[:, None] & np.asarray(real(system)) & ~np.eye(n_atoms, dtype=bool)

    def distances(x):
        d = x[None] - x[:, None]
        d = d - jax.lax.stop_gradient(jnp.where(pbc, jnp.round(d @ inverse), 0)) @ cell
        return jnp.where(pairs, safe_norm(d), 1)

    ends = distances(positions[0]), distances(positions[-1])
    wanted = ends[0] + np.linspace(0, 1, n)[:, None, None] * (ends[1] - ends[0])

    def energy(x, target):
        r = jnp.maximum(distances(x), 1e-2)
        return jnp.sum(jnp.where(pairs, (target - r) ** 2 / r**4, 0)) / 2

    def evaluate(lists, x):
        energies, slopes = jax.vmap(jax.value_and_grad(energy))(x, wanted)
        return lists, energies, -slopes, jnp.zeros((), bool)

    config = NebConfig(spring=0.1, climb=False, fmax=0.01, max_steps=steps)
    return jax.jit(lambda x: _relaxed(evaluate, x, (), config).walker.position)(positions).reshape(positions.shape)


def _check(images: System) -> None:
    """ValueError for what is no band: too few images, or images of different atoms or cells."""
    remedy = "Make a band with relaxation.interpolate(start, end, n_images)."
    expect(images, System, "neb takes images as one System with a leading axis", remedy)
    if np.ndim(images.numbers) != 2 or len(images.numbers) < 3:
        raise ValueError(
            "A band has at least 3 images along a leading axis, got numbers of shape "
            f"{np.shape(images.numbers)}. {remedy}"
        )
    for name, what in (("numbers", "atoms"), ("cell", "a cell"), ("pbc", "a periodicity")):
        values = getattr(images, name)
        if isinstance(values, Tracer):
            continue
        away = np.abs(np.asarray(values, float) - np.asarray(values[0], float)).reshape(len(values), -1).max(axis=1)
        if (others := np.flatnonzero(away > SAME)).size:
            raise ValueError(f"Image {others[0]} of the band has {what} unlike those of image 0. {remedy}")


def _check_still(positions: Float[Array, "n n_atoms 3"], fixed: Bool[Array, "n_atoms 3"]) -> None:
    """ValueError for atoms that are fixed, and in other places at other images."""
    if isinstance(positions, Tracer) or isinstance(fixed, Tracer):
        return
    moved = np.where(fixed, np.abs(np.asarray(positions) - np.asarray(positions[0])), 0).max(axis=(0, 2))
    if (atoms := np.flatnonzero(moved > SAME)).size:
        raise ValueError(
            f"Atom {atoms[0]} is fixed, and {moved[atoms[0]]:.3g} Å away along the band. Relax both ends with the same "
            "atoms fixed in the same places, or leave it free."
        )


def _check_apart(positions: Float[np.ndarray, "n n_atoms 3"], system: System) -> None:
    """ValueError for an image with two atoms on one place, where no potential has a force."""
    for k, x in enumerate(positions):
        change = shortest(x[None] - x[:, None], system.cell, system.pbc)
        r = np.where(
            np.asarray(real(system))[:, None] & np.asarray(real(system)), np.linalg.norm(change, axis=-1), np.inf
        )
        np.fill_diagonal(r, np.inf)
        if r.min(initial=np.inf) < MEET:
            i, j = sorted(map(int, np.unravel_index(np.argmin(r), r.shape)))
            raise ValueError(
                f"Atoms {i} and {j} are {r.min():.2g} Å apart in image {k}: on their straight ways they meet. Displace "
                "one of the ends a little, or join two paths by a structure in which they pass each other."
            )


def _check_ends(start: System, end: System, n_images: int) -> None:
    check_single(start, "interpolate")
    check_single(end, "interpolate")
    if not isinstance(n_images, int | np.integer) or n_images < 3:
        raise ArgumentError(f"A band has at least 3 images, both ends included; got n_images={n_images!r}.")
    if start.numbers.shape != end.numbers.shape or np.any(start.numbers != end.numbers):
        differ = "numbers of atoms that differ" if start.n_atoms != end.n_atoms else "elements in another order"
        raise ValueError(f"Start and end of a path have {differ}: each atom must be at the same place in both lists.")
    if np.any(start.pbc != end.pbc) or np.abs(start.cell - end.cell).max() > 1e-6:
        raise ValueError("Start and end of a path have different cells; relax both in one cell.")


def _norm(x: Float[Array, "n n_atoms 3"]) -> Float[Array, "n 1 1"]:
    return safe_norm(x.reshape(len(x), -1))[:, None, None]
