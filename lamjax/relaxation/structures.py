"""Lists of structures, relaxed by `stream` and given back in their order."""

import warnings
from collections.abc import Iterable, Sequence

import ase
from jaxtyping import PyTree

from lamjax.potential import Potential
from lamjax.relaxation.relax import Relaxation, RelaxConfig
from lamjax.relaxation.stream import sequences, stream
from lamjax.system import System, check_single, to_ase


def relax_structures(
    potential: Potential,
    params: PyTree,
    systems: Iterable[System | ase.Atoms] | System | ase.Atoms,
    config: RelaxConfig | None = None,
    *,
    slots: int | None = None,
    fixed: Sequence | None = None,
    names: Sequence[str] | None = None,
) -> list[Relaxation]:
    """Every structure relaxed, in the order given and without padding, as numpy arrays.

    `slots` structures at a time (default: as many as keep the device busy) share a compiled program, with others of
    about their size; see `stream`. Warns, with `names` (default: numbers), of structures that did not converge and of
    those whose forces became infinite or NaN; both are in the results, as `converged` and `finite`. Raises ValueError,
    with its name, for a structure that cannot begin: elements that the potential does not know, two atoms on one place.
    """
    config = RelaxConfig() if config is None else config
    systems, fixed = sequences(systems, fixed)
    if names is not None and len(names) != len(systems):
        raise ValueError(f"There are {len(names)} names for {len(systems)} structures.")
    names = [f"number {i}" for i in range(len(systems))] if names is None else names
    results: list = [None] * len(systems)
    for outcome in stream(potential, params, systems, config, fixed=fixed, slots=slots):
        if outcome.relaxation is None:
            raise ValueError(f"{names[outcome.number]}: {outcome.error}")
        results[outcome.number] = outcome.relaxation
    _report(results, config, names)
    return results


def row(relaxed: Relaxation) -> dict[str, str | int | float | bool | None]:
    """The result of one structure as plain Python values: a row of a table, of pandas or csv, or JSON.

    Formula, n_atoms, energy (eV), energy_per_atom, volume (Å³, None where not periodic in all directions), fmax (eV/Å),
    n_steps, converged, finite, overflow, truncated. Raises ValueError for a batch.
    """
    check_single(relaxed.system, "row")
    atoms = to_ase(relaxed.system)
    energy = float(relaxed.energy)
    flags = {name: bool(getattr(relaxed, name)) for name in ("converged", "finite", "overflow", "truncated")}
    return {
        "formula": atoms.get_chemical_formula("metal"),
        "n_atoms": len(atoms),
        "energy": energy,
        "energy_per_atom": energy / len(atoms),
        "volume": float(atoms.get_volume()) if atoms.pbc.all() else None,
        "fmax": float(relaxed.fmax),
        "n_steps": int(relaxed.n_steps),
        **flags,
    }


def _report(results, config: RelaxConfig, names) -> None:
    broken = [n for n, r in zip(names, results, strict=True) if not r.finite]
    slow = [(n, r) for n, r in zip(names, results, strict=True) if r.finite and not r.converged]
    if broken:
        warnings.warn(
            f"Energy or forces became infinite or NaN in {len(broken)} of {len(results)} structures: "
            f"{', '.join(broken)}. Check their starting distances, or use a smaller max_step of the minimiser.",
            stacklevel=3,
        )
    if slow:
        worst = max(float(r.fmax) for _, r in slow)
        warnings.warn(
            f"{len(slow)} of {len(results)} structures did not converge to {config.fmax:g} eV/Å "
            f"(largest force {worst:.3g} eV/Å): {', '.join(n for n, _ in slow)}. Raise max_steps or fmax.",
            stacklevel=3,
        )
