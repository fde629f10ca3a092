"""Which entries of a structure are its energy, forces and virial, in the spellings and units of many programs.

What looks like a label and is not taken is named, so that none is lost without a word.
"""

import functools
import re
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple

import ase
import ase.data
import numpy as np
from ase import units as _ase
from pydantic import Field

from lamjax import units
from lamjax.config import configuration

Key = Annotated[str, Field(min_length=1)]


@configuration
class ReadOptions:
    """Keys of the labels in a file, and the elements of its numbered types, where the file does not state them."""

    energy_key: Annotated[Key | None, Field(description="of the energy (eV); None: the usual spellings")] = None
    forces_key: Annotated[Key | None, Field(description="eV/Å")] = None
    stress_key: Annotated[Key | None, Field(description="eV/Å³, positive in tension")] = None
    virial_key: Annotated[Key | None, Field(description="eV, -V stress")] = None
    elements: Annotated[
        tuple[str, ...],
        Field(description="of the types of LAMMPS dumps, and of DeePMD sets whose types are no elements"),
    ] = ()

    def __post_init__(self) -> None:
        if wrong := [name for name in self.elements if name not in ase.data.chemical_symbols[1:]]:
            raise ValueError(
                f"elements: {wrong[0]!r} is no chemical element. Name those of types 1, 2, ... in order, as in Si, O."
            )

    def keys(self) -> dict[str, str]:
        """The keys that are chosen, by quantity."""
        chosen = {name: getattr(self, f"{name}_key") for name in QUANTITIES}
        return {name: key for name, key in chosen.items() if key is not None}


QUANTITIES = ("energy", "forces", "virial", "stress")
_SPELLINGS = {
    "energy": ("energy", "free_energy", "total_energy", "potential_energy"),
    "forces": ("forces", "force"),
    "virial": ("virial", "virials"),
    "stress": ("stress",),
}
_MARKS = {"ref": 0, "reference": 0, "dft": 1, "qm": 1, "target": 1, "label": 1}  # before or behind, and their rank
_PLAIN = 2  # rank of a key without a mark
_WORDS = {"energy", "energies", "force", "forces", "virial", "virials", "stress", "stresses", "gradient", "gradients"}
_WORDS |= {"etot", "etotal", "toten", "epot", "fx", "fy", "fz", "frc", "grad", "enthalpy"}
_OTHER = {"kinetic", "weight", "weights", "std", "sigma", "variance", "uncertainty", "error", "errors", "max", "rms"}
_OTHER |= {"unit", "units", "mean", "norm", "key", "type", "cutoff", "field", "convergence", "converged", "threshold"}
_OTHER |= {"hull", "fermi", "gap", "band", "above", "formation", "rate", "constant", "correction"}
_LETTERS = ({"e"}, {"f"}, {"e0"}, {"u0"})  # keys of one letter, and QM9's
_TOTAL = {"tot", "total", "pot", "scf"}  # which energy a letter is
_PARTS = {"energies": {"energy"}, "stresses": {"stress", "virial"}}  # what ASE calls the parts of atoms, and of what


class Label(NamedTuple):
    """A value in eV and Å, and the key it was found under: (None, "") if nowhere."""

    value: np.ndarray | None
    key: str


class FoundLabels(NamedTuple):
    """The labels of a structure."""

    energy: Label
    forces: Label
    virial: Label  # of a stress, too
    used: frozenset[str]  # keys of info and arrays that are labels or their units
    unused: tuple[str, ...]  # that look like labels and were not taken


class _Entry(NamedTuple):
    rank: tuple[int, int, int]  # mark, place, spelling: the smallest is taken
    key: str
    value: Any


def find(atoms: ase.Atoms, options: ReadOptions) -> FoundLabels:
    """The labels of a structure under the keys of `options`, or else under the usual ones.

    REF_<label> goes first, then dft_<label> and the like, then what ASE has as results (forces without constraints),
    then <label> in `info` and `arrays`; case does not count. Where there are forces, an energy and a free energy of
    the same rank, the free energy is taken, of which forces are the derivative. Units that the structure states
    (energy-unit=hartree) are converted. ValueError for units that are not known and values that are no numbers.
    """
    entries = {name: _entries(atoms, name, options.keys().get(name)) for name in QUANTITIES}
    forces = _first(entries["forces"])
    energy = _energy(entries["energy"], forces is not None)
    kind, tensor = _tensor(entries) if atoms.pbc.all() else ("virial", None)
    factors, stated = _factors({k: v for k, v in atoms.info.items() if isinstance(k, str)})
    taken = {name: entry for name, entry in (("energy", energy), ("forces", forces), (kind, tensor)) if entry}
    for name, entry in taken.items():
        factors = _of_key(entry.key, name) | factors
    _check_complete(factors, taken)
    shares = {name: _n_shares(entry.key, name, len(atoms)) for name, entry in taken.items()}
    labels = {
        name: Label(_number(entry, name) * factors.get(name, 1.0) * shares[name], entry.key)
        for name, entry in taken.items()
    }
    return FoundLabels(
        labels.get("energy", Label(None, "")),
        labels.get("forces", Label(None, "")),
        _virial(labels.get(kind), kind, atoms),
        frozenset({entry.key for some in entries.values() for entry in some} | stated),
        tuple(sorted(_unused(atoms, entries, taken, _chosen(options)))),
    )


@functools.lru_cache(4096)
def looks_like_label(key: str) -> bool:
    """True for a key that speaks of an energy, of forces, a stress or a virial."""
    words = set(_tokens(key))
    of_gap = _tokens(key)[:1] == ("gap",)  # of a Gaussian approximation potential: gap_energy, gap_force
    others = words & _OTHER - ({"gap"} if of_gap else set())
    return words - _MARKS.keys() - _TOTAL in _LETTERS or bool(words & _WORDS) and not others


def kind_of(key: str) -> str:
    """The quantity that a key speaks of: one of QUANTITIES, or gradient."""
    words = set(_tokens(key))
    kinds = (("gradient", {"gradient", "gradients", "grad"}), ("forces", {"force", "forces", "f", "frc"}))
    kinds += (("virial", {"virial", "virials"}), ("stress", {"stress", "stresses"}))
    return next((name for name, spellings in kinds if words & spellings), "energy")


def named(keys: Iterable[str], chosen: str) -> list[str]:
    """The keys that are called so: exactly, or else in another case."""
    keys = list(keys)
    return [chosen] if chosen in keys else [key for key in keys if key.lower() == chosen.lower()]


def is_free(key: str) -> bool:
    """True for the key of a free energy."""
    return "free" in _tokens(key)


def has_energy(atoms: ase.Atoms) -> bool:
    """Whether a structure carries an energy that is no free energy."""
    return any(not is_free(entry.key) for entry in _entries(atoms, "energy", None))


@functools.lru_cache(4096)
def quantity(key: str) -> tuple[str, int, int] | None:
    """Which label a key spells, the rank of its mark and of its spelling; None for other keys."""
    words = _tokens(key)
    marks = [word for word in (words[:1] + words[-1:]) if word in _MARKS]
    bare = "_".join(word for word in words if word not in marks)
    for name, spellings in _SPELLINGS.items():
        if bare in spellings:
            return name, min((_MARKS[mark] for mark in marks), default=_PLAIN), spellings.index(bare)
    return None


@functools.lru_cache(4096)
def _tokens(key: str) -> tuple[str, ...]:
    """The words of a key: ("dft", "energy") of dft_energy, DFT-energy and dftEnergy."""
    return tuple(w for w in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()) if w)


def _places(atoms: ase.Atoms) -> list[dict[str, Any]]:
    """Results, info and arrays of a structure; nothing is calculated."""
    results = {k: v for k, v in (getattr(atoms.calc, "results", None) or {}).items() if v is not None}
    if "forces" in results:
        results["forces"] = atoms.get_forces(apply_constraint=False)
    info = {k: v for k, v in atoms.info.items() if isinstance(k, str)}
    return [results, info, {k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")}]


def _entries(atoms: ase.Atoms, name: str, chosen: str | None) -> list[_Entry]:
    """The entries that may hold a label, the best one first."""
    entries = []
    for place, values in enumerate(_places(atoms)):
        if chosen is not None:
            entries += [_Entry((-1, place, int(key != chosen)), key, values[key]) for key in named(values, chosen)]
            continue
        for key, value in values.items():
            spelled = quantity(key)
            fits = np.ndim(value) > 0 if name == "forces" else place < 2  # of atoms, or of the frame
            if spelled is not None and spelled[0] == name and fits and not isinstance(value, bool | np.bool_):
                exact = 2 * spelled[2] + (key != key.lower() and not key.startswith("REF_"))
                entries.append(_Entry((spelled[1], place, exact), key, value))
    return sorted(entries, key=lambda entry: entry.rank)


def _first(entries: Iterable[_Entry]) -> _Entry | None:
    return min(entries, key=lambda entry: entry.rank, default=None)


def _tensor(entries: dict[str, list[_Entry]]) -> tuple[str, _Entry | None]:
    """ "virial" or "stress", and where it is: the better mark goes first, then a virial before a stress."""
    candidates = [
        (e.rank[0], k, e.rank[1:], name, e) for k, name in enumerate(("virial", "stress")) for e in entries[name]
    ]
    best = min(candidates, key=lambda one: one[:3], default=None)
    return ("virial", None) if best is None else best[3:]


def _energy(entries: list[_Entry], forces: bool) -> _Entry | None:
    """The energy; where there are forces and both are there and differ, the free energy."""
    first = _first(entries)
    if first is None or not forces or is_free(first.key):
        return first
    free = [e for e in entries if is_free(e.key) and e.rank[0] == first.rank[0]]
    return free[0] if free and not _equal(free[0].value, first.value) else first


def _agree(virial: _Entry, stress: _Entry, atoms: ase.Atoms) -> bool:
    """Whether a virial and a stress of one structure say the same."""
    a: Any = _virial(Label(_number(virial, "virial"), ""), "virial", atoms).value
    b: Any = _virial(Label(_number(stress, "stress"), ""), "stress", atoms).value
    return np.allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(a).max())


def _chosen(options: ReadOptions) -> set[str]:
    """The quantities whose keys were chosen; a stress stands for a virial and the other way round."""
    quantities = set(options.keys())
    return quantities | ({"virial", "stress"} if quantities & {"virial", "stress"} else set())


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(np.array_equal(np.asarray(a, float).ravel(), np.asarray(b, float).ravel()))
    except (TypeError, ValueError):
        return False


def _unused(atoms: ase.Atoms, entries: dict[str, list[_Entry]], taken: dict[str, _Entry], chosen: Any) -> set[str]:
    """Keys that look like labels: of no known spelling, or beside a label with another value."""
    usual, keys = {entry.key for entry in taken.values()}, set()
    for values in _places(atoms):
        keys |= {key for key, value in values.items() if looks_like_label(key) and _holds_numbers(value)}
    if "energy" in taken:  # those of atoms are its parts
        keys -= {key for key, value in atoms.arrays.items() if value.ndim == 1 and kind_of(key) == "energy"}
    keys -= usual | {parts for parts, whole in _PARTS.items() if whole & taken.keys()}
    keys -= {key for key in keys if (spelled := quantity(key)) is not None and spelled[0] in chosen}
    for name, some in entries.items():
        if name == "stress" and "virial" in taken:
            first = taken["virial"].rank[0] <= 0
            keys -= {entry.key for entry in some if first or _agree(taken["virial"], entry, atoms)}
        if (one := taken.get(name)) is None:
            continue
        # REF_ and a chosen key go before others by what they are, and a free energy before E(sigma -> 0)
        first = one.rank[0] <= 0 or is_free(one.key)
        keys -= {entry.key for entry in some if first or _equal(entry.value, one.value)}
    return keys


def _holds_numbers(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "if" and not isinstance(value, bool)


def _number(entry: _Entry, name: str) -> np.ndarray:
    try:
        if isinstance(entry.value, bool | np.bool_):
            raise ValueError
        return np.asarray(entry.value, np.float64)
    except (TypeError, ValueError):
        shown = f"The {name} label ({entry.key}) is not a number: {entry.value!r}."
        raise ValueError(f"{shown} Repair or remove the frame.") from None


def _virial(label: Label | None, kind: str, atoms: ase.Atoms) -> Label:
    """The virial in eV."""
    if label is None:
        return Label(None, "")
    value: Any = label.value
    if value.shape == (6,):
        tensor = units.from_voigt(value)
    elif value.shape in ((9,), (3, 3)):
        tensor = value.reshape(3, 3)
    else:
        raise ValueError(f"{label.key} has shape {value.shape}; expected (3, 3), 9 numbers, or 6 (xx yy zz yz xz xy).")
    return Label(tensor if kind == "virial" else units.stress_to_virial(tensor, atoms.cell.volume), label.key)


# ---- units

_ENERGY = {"ev": 1.0, "electronvolt": 1.0, "mev": 1e-3, "kev": 1e3, "j": _ase.J, "joule": _ase.J}
_ENERGY |= {name: _ase.Hartree for name in ("hartree", "ha", "eh", "hartrees", "e_h", "au", "a.u.")}
_ENERGY |= {"uev": 1e-6, "mha": 1e-3 * _ase.Hartree, "mhartree": 1e-3 * _ase.Hartree, "mry": 1e-3 * _ase.Rydberg}
_ENERGY |= {name: _ase.Rydberg for name in ("rydberg", "ry", "ryd", "rydbergs")}
_ENERGY |= {name: _ase.kcal / _ase.mol for name in ("kcal/mol", "kcalmol", "kcal_mol")}
_ENERGY |= {name: _ase.kJ / _ase.mol for name in ("kj/mol", "kjmol", "kj_mol")}
_LENGTH = {name: 1.0 for name in ("angstrom", "ang", "a", "å", "angstroms", "Å".lower())}
_LENGTH |= {name: _ase.Bohr for name in ("bohr", "a0", "bohrs", "au", "a.u.")} | {"nm": 10.0, "pm": 0.01}
_PRESSURE = {"gpa": _ase.GPa, "kbar": 0.1 * _ase.GPa, "kb": 0.1 * _ase.GPa, "bar": _ase.bar}
_PRESSURE |= {"pa": _ase.Pascal, "mpa": 1e-3 * _ase.GPa, "atm": 101325 * _ase.Pascal}
_BEFORE_UNIT = re.compile(r"(?i)energy|forces?(?!s)|stress(?!es)|virials?(?!s)")
_MEGA = re.compile("M[Ee][Vv]")  # with a capital M, which a thousandth of an eV has not
# words of a key that name a unit, alone or with others; not eV, in which numbers are right, nor what may mean much else
_NAMES_OF_UNITS = {*_ENERGY, *_PRESSURE, "bohr", "nm", "pm"} - {"ev", "electronvolt", "j", "au", "pa", "bar", "kb"}
_NAMES_OF_UNITS |= {"gev", "kcal", "cal", "kj", "erg", "kelvin", "cm", "newton", "nn", "dyn", "dyne", "torr", "psi"}
_UNITS = {"energy": "eV", "forces": "eV/Å", "virial": "eV", "stress": "eV/Å³"}
_KNOWN = {name: "eV, meV, hartree, rydberg, kcal_mol, kJ_mol" for name in ("energy", "virial")}
_KNOWN |= {"forces": "eV_A, hartree_bohr, kcal_mol_A", "stress": "eV_A3, GPa, kbar"}
_SETS = {"metal", "ase", "ev", "ev,angstrom", "ev/angstrom", "ev,a", "ev/a"}  # `units=` of all at once: nothing to do
_SHARE = re.compile(r"(?i)per[^a-z0-9]?atom")
_OF = {"energy": "energy", "energies": "energy", "e": "energy", "force": "forces", "forces": "forces", "f": "forces"}
_OF |= {"virial": "virial", "virials": "virial", "stress": "stress"}
_OF |= {name: "length" for name in ("length", "distance", "pos", "position", "positions", "coord", "coords", "lattice")}
_OF |= {"coordinate": "length", "coordinates": "length", "pressure": "pressure"}


def _factors(info: dict[str, Any]) -> tuple[dict[str, float], set[str]]:
    """Conversion factors of the labels, and the keys that state the units; ValueError for an unknown unit."""
    factors, keys = {}, set()
    for key, value in info.items():
        words = _tokens(re.sub(r"(?i)(?<=[a-z])units?$", r"_\g<0>", key))  # energyunit is energy_unit
        rest = [word for word in words if word not in ("unit", "units")]
        about = {_OF[word] for word in rest if word in _OF}
        behind = len(rest) < len(words) and (words[-1] not in rest or all(word in _OF for word in rest))
        if not behind or (rest and not about):
            continue  # of something that is no label, or not about units
        keys.add(key)
        factor = _factor(about.pop() if len(about) == 1 else "", str(value))
        if factor is None:
            raise ValueError(
                f"{key}={value}: this unit is not known here. Convert the file to eV, Å, eV/Å and eV/Å³ (known are eV, "
                "hartree, rydberg, kcal/mol, kJ/mol; angstrom, bohr, nm; GPa, kbar) and remove the key."
            )
        factors.update(factor)
    if (pressure := factors.pop("pressure", None)) is not None:  # that of the stress, where it has no unit of its own
        factors.setdefault("stress", pressure)
    if factors.pop("length", 1.0) != 1.0:
        raise ValueError(
            f"Lengths are not in Å ({', '.join(sorted(keys))}). Convert positions, cell and labels, and remove the key."
        )
    return factors, keys


def _of_key(key: str, name: str) -> dict[str, float]:
    """The unit that the key of a label states, as in stress_GPa: {quantity: factor}, empty if it states none."""
    apart = _BEFORE_UNIT.sub(r"\g<0>_", _SHARE.sub("", key))  # energyHa is energy_Ha
    words = [word for word in re.split(r"[^A-Za-z0-9]+", apart) if word and word.lower() != "per"]
    stated = (_factor(name, "/".join(words[k:])) for k in range(1, len(words)) if words[k:] not in (["j"], ["J"]))
    if factor := next((factor for factor in stated if factor), {}):
        return factor
    if unknown := [word for word in words[1:] if _MEGA.search(word) or word.lower() in _NAMES_OF_UNITS]:
        raise ValueError(
            f"{key}: by its name the {name} is in a unit with {unknown[0]!r}, which is not known here for {name}. "
            f"Convert it to {_UNITS[name]} and name it without a unit. Known are {_KNOWN[name]}."
        )
    return {}


def _n_shares(key: str, name: str, n_atoms: int) -> int:
    """The number of atoms for the key of an energy per atom, else 1; ValueError for other quantities per atom."""
    if _SHARE.search(key) is None:
        return 1
    if name != "energy":
        raise ValueError(f"{key} is called a value per atom: write the {name} of the whole structure.")
    return n_atoms


def _check_complete(factors: dict[str, float], taken: dict[str, _Entry]) -> None:
    """ValueError where the energy is in another unit than eV and nothing says what forces and virial are in."""
    others = sorted(taken.keys() - factors.keys() - {"energy"})
    if factors.get("energy", 1.0) != 1.0 and others:
        raise ValueError(
            f"The energy is stated in another unit than eV, and no unit of the {' and the '.join(others)} is. Add it "
            "(force-unit=hartree/bohr, virial-unit=hartree, stress-unit=hartree/bohr^3), or convert the file."
        )


def _factor(about: str, unit: str) -> dict[str, float] | None:
    """{quantity: factor} of one statement, None if it is not understood."""
    if _MEGA.search(unit):
        return None
    unit = re.sub(r"[\s()\[\]]", "", unit).replace("**", "^").replace("·", "*").lower()
    unit = unit.replace("angstroms", "angstrom").replace("å", "a")
    if about == "":
        return {} if unit in _SETS else None
    if about in ("energy", "virial"):
        return {about: _ENERGY[unit]} if unit in _ENERGY else None
    if about == "length":
        return {about: _LENGTH[unit]} if unit in _LENGTH else None
    if about == "forces" and unit in ("au", "a.u."):
        return {about: _ase.Hartree / _ase.Bohr}
    per_volume = about in ("stress", "pressure")
    if per_volume and unit in _PRESSURE:
        return {about: _PRESSURE[unit]}
    energy, _, length = unit.rpartition("/")
    power = "^3" if per_volume else ""
    per = length.removesuffix(power) if length.endswith(power) or not power else length.removesuffix("3")
    if energy in _ENERGY and per in _LENGTH and (about == "forces" or per != length):
        return {about: _ENERGY[energy] / _LENGTH[per] ** (3 if power else 1)}
    return None
