"""Lists of structures of any sizes: bucketed, relaxed in batches, grown where neighbours overflow. On the host."""

import functools
import math
import warnings
from collections.abc import Sequence

import jax
import numpy as np

from lamjax import neighbors as neighbor_lists
from lamjax import pytree
from lamjax.neighbors.types import round_up
from lamjax.potential import check_elements
from lamjax.relaxation.relax import Relaxation, RelaxConfig, relax
from lamjax.system import System, pad

HEADROOM = 1.25  # slots for neighbours that come closer on the way, relative to what the start needs


def relax_structures(
    potential,
    params,
    systems: Sequence[System],
    config: RelaxConfig | None = None,
    *,
    batch_size: int = 16,
    names: Sequence[str] | None = None,
) -> list[Relaxation]:
    """Every structure relaxed, in the order given and without padding, as numpy arrays.

    Structures of similar size share a compiled program and are relaxed `batch_size` at a time. Where an atom gains
    more neighbours than there are slots, the list grows and the structure is relaxed anew from its start. Warns, with
    `names` (default: numbers), of structures that did not converge and of those whose forces became infinite or NaN;
    both are in the results, as `converged` and `finite`. Raises ValueError for elements the potential does not know.
    """
    config = RelaxConfig() if config is None else config
    systems = [jax.tree.map(np.asarray, s) for s in systems]
    for system in systems:
        check_elements(potential, system)
    results: list = [None] * len(systems)
    needed = [neighbor_lists.count(s, potential.shells) for s in systems]
    pending = list(range(len(systems)))
    while pending:
        for members in _groups(systems, pending, batch_size):
            widths = _capacities(potential.shells, [needed[i] for i in members])
            batch = _batch([systems[i] for i in members], potential.shells, widths, batch_size)
            out = jax.tree.map(np.asarray, _compiled(potential, config)(params, *batch))
            for row, i in enumerate(members):
                results[i] = _unpadded(pytree.take(out, row), systems[i].n_atoms)
        pending = [i for i in pending if _grow(results[i], needed, i)]
    _report(results, config, [f"number {i}" for i in range(len(systems))] if names is None else names)
    return results


@functools.lru_cache(maxsize=32)
def _compiled(potential, config: RelaxConfig):
    return jax.jit(lambda params, system, neighbors: relax(potential, params, system, neighbors, config))


def _groups(systems, members, batch_size: int):
    """Batches of structures that are padded to the same number of atoms, small ones first."""
    by_size: dict[int, list[int]] = {}
    for i in members:
        by_size.setdefault(_ladder(systems[i].n_atoms), []).append(i)
    for _, group in sorted(by_size.items()):
        yield from (group[k : k + batch_size] for k in range(0, len(group), batch_size))


def _ladder(n: int) -> int:
    """The next of a few sizes: multiples of 4, for larger structures of an eighth of the next power of two."""
    return round_up(n, max(4, 2 ** math.ceil(math.log2(max(n, 1))) // 8))


def _capacities(shells, found) -> tuple[int, ...]:
    """Slots for each shell with headroom, rounded so that few widths occur."""
    roomy = tuple(math.ceil(HEADROOM * max(f[k] for f in found)) + 2 for k in range(len(shells)))
    return neighbor_lists.plan_capacities(roomy, shells, multiple=16)


def _batch(systems, shells, widths, batch_size: int):
    """Systems and neighbours stacked to (batch_size, ...); rows that are missing hold no atoms."""
    size = max(_ladder(s.n_atoms) for s in systems)
    n_offsets = max(len(neighbor_lists.image_offsets(s.cell, s.pbc, shells[0].cutoff)) for s in systems)
    padded = [pad(s, size) for s in systems]
    lists = [neighbor_lists.host_neighbors(s, shells, widths, n_offsets) for s in padded]
    empty = batch_size - len(systems)
    padded += [jax.tree.map(np.zeros_like, padded[0])] * empty
    lists += [jax.tree.map(np.zeros_like, lists[0])] * empty
    return pytree.stack(padded), pytree.stack(lists)


def _unpadded(result: Relaxation, n_atoms: int) -> Relaxation:
    system = result.system
    return result._replace(
        system=system._replace(positions=system.positions[:n_atoms], numbers=system.numbers[:n_atoms]),
        forces=result.forces[:n_atoms],
    )


def _grow(result: Relaxation, needed: list, i: int) -> bool:
    """True, with a larger need noted, if structure `i` must be relaxed again because neighbours were missing."""
    if not result.overflow:
        return False
    found = tuple(int(f) for f in result.found)
    if all(f <= n for f, n in zip(found, needed[i], strict=True)):
        return False  # not for want of slots: an atom left the range of the integer images, see `finite` and `overflow`
    needed[i] = found
    return True


def _report(results, config: RelaxConfig, names) -> None:
    broken = [n for n, r in zip(names, results, strict=True) if not r.finite]
    slow = [(n, r) for n, r in zip(names, results, strict=True) if r.finite and not r.converged]
    if broken:
        warnings.warn(
            f"Energy or forces became infinite or NaN in {len(broken)} of {len(results)} structures: "
            f"{', '.join(broken)}. Check their starting distances, or use a smaller fire.max_step.",
            stacklevel=3,
        )
    if slow:
        worst = max(float(r.fmax) for _, r in slow)
        warnings.warn(
            f"{len(slow)} of {len(results)} structures did not converge to {config.fmax:g} eV/Å "
            f"(largest force {worst:.3g} eV/Å): {', '.join(n for n, _ in slow)}. Raise max_steps or fmax.",
            stacklevel=3,
        )
