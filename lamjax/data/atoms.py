"""The frame of one ASE structure: its labels, what is held, and everything that makes it unusable."""

from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from jax.typing import DTypeLike

from lamjax.arguments import expect
from lamjax.data import labels
from lamjax.data.labels import ReadOptions
from lamjax.frames import Frame
from lamjax.neighbors.host import pairs
from lamjax.system import MASSES, Labels, System, fixed_components, host_system, other_constraints

PARTIAL = 1e-3  # an occupancy nearer to 1 than this is 1
CLOSEST = 1e-3  # Å; atoms nearer than this are two atoms on one place
SHORT = 0.4  # Å; no bond is as short, and no model has learned of one: H2, the shortest, has 0.74 Å
NEAR = 1.0  # Å; the cutoff of the search for them: one within less takes longer
SHOWN = 8  # sites that a message lists
_DEFAULT = ReadOptions()


class Remark(NamedTuple):
    """A remark on a file: an oddity that does not keep it from being read, or something that was left out."""

    severity: str  # warning, or note, which only `lamjax data check` lists
    path: Path
    source: str  # the first frame, or the file
    n: int  # frames
    what: str
    remedy: str
    about: str = "file"  # or labels

    def __str__(self) -> str:
        more = f" (and {self.n - 1} more)" if self.n > 1 else ""
        return f"{self.source}{more}: {self.what}. {self.remedy}"


class Remarks:
    """The remarks on a file, each kind once, with its number of frames."""

    def __init__(self, path: Path) -> None:
        self.path, self.hits = path, {}

    def add(self, severity: str, what: str, remedy: str, n: int = 1, source: str = "", about: str = "file") -> None:
        first = self.hits.setdefault((severity, what, remedy, about), [source or str(self.path), 0])
        first[1] += n

    def all(self) -> list[Remark]:
        return [Remark(k[0], self.path, source, n, *k[1:]) for k, (source, n) in self.hits.items()]


def from_atoms(
    atoms: ase.Atoms, dtype: DTypeLike | None = np.float64, source: str = "structure", options: ReadOptions = _DEFAULT
) -> Frame:
    """The frame of one ASE structure with whatever labels it carries; ValueError if it cannot be used."""
    expect(atoms, ase.Atoms, "from_atoms takes one ASE structure", "Of several, make a frame of each.")
    return frame_of(atoms, dtype, source, options, Remarks(Path(source)))


def frame_of(atoms: ase.Atoms, dtype: DTypeLike | None, source: str, options: ReadOptions, remarks: Remarks) -> Frame:
    """As `from_atoms`; what is odd goes into the remarks of the file."""
    system = host_system(atoms, dtype)
    if _least_distance(system) < SHORT:
        remarks.add("warning", *_TOO_NEAR, source=source)
    _check_occupancy(atoms)
    entries = labels.find(atoms, options)
    values = (entries.energy, entries.forces, entries.virial)
    kept = Labels(
        energy=np.asarray(_checked(entries.energy.value, (), "energy"), np.float64),
        forces=np.asarray(_checked(entries.forces.value, (len(atoms), 3), "forces"), dtype),
        virial=np.asarray(_checked(entries.virial.value, (3, 3), "virial"), dtype),
        weights=np.array([label.value is not None for label in values], dtype),
    )
    for key in entries.unused:
        remarks.add("warning", *_not_taken(key, atoms, entries), source=source, about="labels")
    if labels.is_free(entries.energy.key) and labels.has_energy(atoms):
        remarks.add("note", *_FREE, source=source, about="labels")
    for what in _other_masses(atoms):
        remarks.add("warning", what, _MASSES, source=source)
    more = {k: v for k, v in atoms.arrays.items() if k not in ("positions", "numbers", "fixed")}
    info = {k: v for k, v in (atoms.info | more).items() if k not in entries.used and k != "fixed"}
    keys = tuple(label.key for label in values)
    return Frame(system, kept, source, keys, info | _constraints(atoms, remarks, source))


_FREE = (
    "the free energy is taken as the energy, not E(sigma -> 0): forces are its derivative",
    "Right for training; --energy-key energy takes the other one.",
)


_TOO_NEAR = (
    f"two atoms are nearer than {SHORT} Å, shorter than any bond",
    "Are the positions in Å (1 nm = 10 Å, 1 bohr = 0.529 Å)? What a model says of such a structure means nothing.",
)


_MASSES = "Energies and forces do not depend on masses; simulations and phonons are those of the usual ones."


def _other_masses(atoms: ase.Atoms) -> list[str]:
    """A message for each element whose atoms have another mass than is usual: isotopes, or heavy hydrogen."""
    if "masses" not in atoms.arrays:
        return []
    masses, usual = np.asarray(atoms.arrays["masses"], float), MASSES[atoms.numbers]
    away = np.abs(masses - usual) > 0.1 * usual
    first = {atoms.symbols[k]: masses[k] for k in np.flatnonzero(away)[::-1]}
    return [f"{symbol} has the mass {mass:.4g} amu in the file, which is not used" for symbol, mass in first.items()]


def add_labels(atoms: ase.Atoms, known: Labels) -> None:
    """Write the labels that there are to a structure, under the names that are looked for first: REF_energy, ..."""
    energy, forces, virial = known.weights > 0
    if energy:
        atoms.info["REF_energy"] = float(known.energy)
    if forces:
        atoms.arrays["REF_forces"] = np.asarray(known.forces, np.float64)
    if virial:
        atoms.info["REF_virial"] = np.asarray(known.virial, np.float64).ravel()


def _not_taken(key: str, atoms: ase.Atoms, entries: labels.FoundLabels) -> tuple[str, str]:
    """Message and remedy for a key that looks like a label."""
    spelled, kind = labels.quantity(key), labels.kind_of(key)
    if spelled is not None and spelled[0] in ("virial", "stress") and not atoms.pbc.all():
        what = f"{key} is not taken: pbc is {atoms.pbc.tolist()}"
        return what, "A stress needs a cell that is periodic in all three directions."
    taken = {"energy": entries.energy, "forces": entries.forces}.get(kind, entries.virial).key
    option = f"--{kind}-key {key} ({kind}_key in a config or ReadOptions)"
    what = f"{key} looks like a label and is not taken"
    if spelled is not None and taken:
        law = " (a virial is -V stress)" if entries.virial.key == taken else ""
        return f"{what}: {taken} is, and they do not agree{law}", f"To take it: {option}; else ignore this."
    if kind == "gradient":
        return what, "If it is one: forces are minus the gradient of the energy; write them as forces."
    if key in atoms.arrays and atoms.arrays[key].shape != (len(atoms), 3):
        return what, (
            "It has no three numbers for each atom, as forces have (forces:R:3); energy and virial are those of the "
            "frame, energy= and virial= in its header."
        )
    return what, f"If it is one, name it: {option}; else ignore this."


def _check_occupancy(atoms: ase.Atoms) -> None:
    """ValueError that lists the sites which are partly occupied."""
    kinds = atoms.info.get("occupancy")
    partial: list[str] = []
    if isinstance(kinds, dict):
        sites = {k: v for k, v in kinds.items() if isinstance(v, dict)}
        partial = [
            f"{k} ({', '.join(f'{e} {float(x):g}' for e, x in v.items())})"
            for k, v in sites.items()
            if len(v) > 1 or any(abs(float(x) - 1) > PARTIAL for x in v.values())
        ]
    for name in ("occupancy", "occupancies"):
        values = np.asarray(atoms.arrays.get(name, 1.0))
        if values.dtype.kind in "if" and values.any():  # zeros alone are an empty column
            partial += [f"atom {k} ({values[k]:g})" for k in np.flatnonzero(np.abs(values - 1) > PARTIAL)]
    if partial:
        raise ValueError(
            f"{len(partial)} sites are partly occupied: {', '.join(partial[:SHOWN])}"
            f"{', ...' if len(partial) > SHOWN else ''}. Choose an ordered structure (a supercell with whole atoms)."
        )


def _constraints(atoms: ase.Atoms, remarks: Remarks, source: str) -> dict:
    """`fixed` (n_atoms, 3) and the kinds of `other_constraints`, each only where something says so.

    Fixed is what FixAtoms, FixCartesian (`move_mask` of extxyz) or a per-atom array `fixed` hold.
    """
    fixed, others = fixed_components(atoms), ", ".join(other_constraints(atoms))
    declared = atoms.arrays.get("fixed")
    if declared is None and "fixed" in atoms.info:
        declared = np.asarray(atoms.info["fixed"])
        if declared.size not in (len(atoms), 3 * len(atoms)) or declared.ndim == 0:
            what = f"fixed={atoms.info['fixed']} in the header says nothing of single atoms and is ignored"
            remarks.add("note", what, "Atoms are held by a per-atom array fixed or move_mask.", source=source)
            declared = None
        else:
            declared = declared.reshape(len(atoms), -1)
    if declared is not None:
        fixed = fixed | fixed_mask(declared, len(atoms))
    facts = {"fixed": fixed} if fixed.any() or declared is not None else {}
    return facts | ({"other_constraints": others} if others else {})


def fixed_mask(fixed: np.ndarray | None, n_atoms: int) -> np.ndarray:
    """The fixed components (n_atoms, 3) of an array `fixed`: a truth value for each atom, or three of them."""
    fixed = np.asarray(fixed)
    shapes = ((n_atoms,), (n_atoms, 1), (n_atoms, 3))
    if fixed.shape not in shapes or fixed.dtype.kind not in "biuf" or not np.isin(fixed, (0, 1)).all():
        raise ValueError(
            f"the array `fixed` has shape {fixed.shape} and type {fixed.dtype}; needs a truth value for each of "
            f"{n_atoms} atoms, or three of them."
        )
    return np.broadcast_to(fixed.reshape(n_atoms, -1).astype(bool), (n_atoms, 3)).copy()


def held(atoms: ase.Atoms) -> set[str]:
    """The keys of whatever a structure carries."""
    keys = (*atoms.info, *atoms.arrays, *(getattr(atoms.calc, "results", None) or {}))
    return {key for key in keys if isinstance(key, str)} - {"numbers", "positions"}


def _checked(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The label as a finite array of its shape; zeros where it is missing."""
    if value is None:
        return np.zeros(shape)
    try:
        value = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"The {name} label is not a number: {value!r}. Repair or remove the frame.") from None
    if value.shape != shape:
        raise ValueError(f"The {name} label has shape {value.shape}, expected {shape}. Repair or remove the frame.")
    if not np.isfinite(value).all():
        raise ValueError(f"The {name} label holds a value that is not finite (NaN or infinity). Remove the frame.")
    return value


def _least_distance(system: System) -> float:
    """The least distance (Å) of two atoms, inf beyond `NEAR`; ValueError if they share a place.

    Of atoms of different index: a cell cannot be that short.
    """
    i, j, _, r = pairs(system, NEAR)
    r = np.where(i == j, np.inf, r)
    if (closest := r.min(initial=np.inf)) < CLOSEST:
        k = int(np.argmin(r))
        raise ValueError(
            f"Atoms {i[k]} and {j[k]} are {closest:.2g} Å apart: two atoms on one place. "
            "Remove one of them or the frame."
        )
    return closest
