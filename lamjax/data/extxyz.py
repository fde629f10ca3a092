"""Extended xyz in the dialects that are in use: keys in any case, blank lines between frames, errors that name a line.

The format is that of https://github.com/libAtoms/extxyz; what ASE makes of a file is what comes out here.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ase
import ase.data
import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator

from lamjax import units
from lamjax.data.symbols import ISOTOPE_MASSES, ISOTOPES
from lamjax.data.text import attempted
from lamjax.system import constraints

_BOOLEANS = {"T": True, "F": False} | {w: True for w in ("true", "True", "TRUE")}
_BOOLEANS |= {w: False for w in ("false", "False", "FALSE")}
_CLOSES = {'"': '"', "'": "'", "{": "}", "[": "]"}
_COLUMNS = {"pos": "positions", "position": "positions", "positions": "positions"}
_COLUMNS |= {name: "numbers" for name in ("z", "numbers", "atomic_numbers", "atomic_number")}
_COLUMNS |= {name: "symbols" for name in ("species", "symbols", "symbol", "element", "elements")}
_COLUMNS |= {"types": "type", "charge": "charges", "move_mask": "move_mask"}
_PER_ATOM = {"energies", "forces", "stresses", "charges", "magmoms", "bec"}
_PLAIN = "species:S:1:pos:R:3"
_PLAIN_RUN, _QUOTED_RUN = re.compile(r"""[^\s="'{\[\\]+"""), re.compile(r"""[^"'{}\[\]\\]+""")
_ENERGY_IN_TEXT = re.compile(r"(?i)(?<![\w-])energy\s*:?\s+[-+]?\d+\.\d+")  # as xtb and others write it
_FORTRAN = re.compile(r"^([-+]?(?:\d+\.\d*|\.\d+))[dD](?=[-+]?\d+$)")  # 1.0D-3; without a point it may be a name
_TENSORS = ("virial", "stress")  # nine numbers, column after column


def frames(
    lines: Iterator[str], note: Callable[..., Any] | None = None, elements: Sequence[str] = ()
) -> Iterator[ase.Atoms | ValueError]:
    """The structures of the lines of a file; of one that cannot be read the ValueError that names its line.

    Raises ValueError where it is not known where the next one begins.
    `note(severity, what, remedy)` is called for what is odd but readable. `elements` are those of types 1, 2, ... where
    atoms have numbers instead of elements, as in LAMMPS's xyz files.
    """
    numbered = enumerate(lines, 1)
    for number, line in numbered:
        if not line.strip():
            continue
        if not re.fullmatch(r"\s*\d+\s*", line):
            raise ValueError(f"line {number}: expected the number of atoms of a frame, got {line.strip()[:60]!r}.")
        n = int(line)
        rows = [row for _, row in itertools.islice(numbered, n + 1)]
        if len(rows) < n + 1:
            raise ValueError(
                f"line {number}: {n} atoms are announced, {max(len(rows) - 1, 0)} lines of atoms follow: the file is "
                "cut short."
            )
        yield attempted(_frame, rows[0], rows[1:], number + 2, note, elements)


def header(text: str) -> dict[str, Any]:
    """The keys and values of a comment line, values as numbers, truth values, arrays or text."""
    entries: dict[str, Any] = {}
    for key, value in _pairs(text):
        if not key:
            continue
        value = value if key.lower() == "uid" else _value(value)
        if key in entries and not np.array_equal(entries[key], value):
            raise ValueError(f"the key {key!r} is there twice, as {entries[key]} and as {value}. Keep one.")
        entries[key] = value
    return entries


def _frame(comment: str, rows: list[str], first: int, note: Callable[..., Any], elements: Sequence[str]) -> ase.Atoms:
    """One structure; `first` is the number of the first row's line."""
    try:
        info = header(comment)
        cell, pbc, properties = _reserved(info)
        layout = _layout(_PLAIN if properties is None else properties)
    except ValueError as error:
        raise ValueError(f"line {first - 1}: {error}") from error
    words = [row.split() for row in rows]
    width = sum(n for _, _, n in layout)
    for k, row in enumerate(words):
        if len(row) < width or (len(row) > width and properties is not None):
            expected = f"{len(row)} values, Properties announces {width}"
            raise ValueError(f"line {first + k}: {expected}: {rows[k].strip()[:60]!r}.")
    if properties is None and note is not None and any(len(row) > width for row in words):
        what = f"atoms have more than the {width} values of a plain xyz file, and no Properties says what they are"
        note("warning", what, 'If they are forces, add Properties="species:S:1:pos:R:3:forces:R:3" to the frames.')
    arrays = _arrays(layout, words, first)
    if note is not None and "energy" not in map(str.lower, info) and (lost := _ENERGY_IN_TEXT.search(comment)):
        what = f"the comment tells an energy that is not read: {lost[0].strip()!r}"
        note("warning", what, "If it is a label, write it as energy=NUMBER, in eV.", about="labels")
    if "numbers" not in arrays:
        column = arrays.pop("symbols") if "symbols" in arrays else arrays["type"].astype(int).astype(str)
        symbols = list(map(str, column))
        arrays["numbers"] = [_number(symbol, elements, first + k) for k, symbol in enumerate(symbols)]
        if not ISOTOPE_MASSES.keys().isdisjoint(symbols):
            usual = arrays.get("masses", ase.data.atomic_masses[arrays["numbers"]])
            arrays["masses"] = np.array([ISOTOPE_MASSES.get(s, mass) for s, mass in zip(symbols, usual, strict=True)])
    return _atoms(arrays, cell, pbc, info)


def _reserved(info: dict[str, Any]) -> tuple[np.ndarray | None, Any, str | None]:
    """Cell, pbc and Properties, taken out of the header whatever their case."""
    taken: dict[str, Any] = {}
    for key in [key for key in info if key.lower() in ("lattice", "pbc", "properties")]:
        if key.lower() in taken:
            raise ValueError(f"the key {key.lower()!r} is there twice. Keep one.")
        taken[key.lower()] = info.pop(key)
    cell = taken.get("lattice")
    if cell is not None:
        cell = np.asarray(cell)
        if cell.size != 9 or cell.dtype.kind not in "if":
            raise ValueError(
                f"Lattice is {np.asarray(taken['lattice']).tolist()!r}; expected nine numbers: ax ay az bx by bz cx cy "
                'cz. Write out a box of lengths a, b, c as "a 0 0 0 b 0 0 0 c"; leave it out where there is no cell.'
            )
        cell = cell.reshape(3, 3).astype(float)
    pbc = taken.get("pbc", cell is not None)
    if np.size(pbc) not in (1, 3) or not np.isin(pbc, (0, 1)).all():
        raise ValueError(f'pbc is {np.asarray(pbc).tolist()!r}; expected three truth values: pbc="T T F".')
    return cell, np.broadcast_to(np.asarray(pbc, bool), 3), taken.get("properties")


def _layout(properties: str) -> list[tuple[str, str, int]]:
    """(name, type R I S L, number of columns) of "species:S:1:pos:R:3"."""
    words = str(properties).split(":")
    try:
        layout = [(name, kind.upper(), int(n)) for name, kind, n in zip(*[iter(words)] * 3, strict=True)]
    except ValueError:
        layout = []
    if not layout or any(kind not in "RISL" or n < 1 for _, kind, n in layout):
        raise ValueError(f"Properties is {properties!r}; expected name:type:columns again and again, as {_PLAIN}.")
    layout = [(_COLUMNS.get(name.lower(), name), kind, n) for name, kind, n in layout]
    names = [name for name, _, _ in layout]
    if len(set(names)) < len(names):
        raise ValueError(f"Properties names a column twice: {properties}.")
    if ("positions", 3) not in [(name, n) for name, _, n in layout] or not {"symbols", "numbers", "type"} & set(names):
        raise ValueError(f"Properties is {properties!r}: without elements (species:S:1) or positions (pos:R:3).")
    return layout


def _arrays(layout: Any, words: list[list[str]], first: int) -> dict[str, np.ndarray]:
    """The columns by name; ValueError that names the line of a value that is not of its type."""
    columns, start = {}, 0
    for name, kind, n in layout:
        text = [row[start : start + n] for row in words]
        start += n
        try:
            values = np.array([list(map(_CONVERT[kind], row)) for row in text])
        except (ValueError, KeyError):
            k, word = next((k, w) for k, row in enumerate(text) for w in row if not _is(kind, w))
            raise ValueError(f"line {first + k}: {word!r} in column {name} is not {_MEANING[kind]}.") from None
        values = values.reshape(len(words), n)
        columns[name] = values[:, 0] if n == 1 else values
    return columns


def _real(word: str) -> float:
    """The number; Fortran's 1.0D-3 is one, too."""
    try:
        return float(word)
    except ValueError:
        return float(re.sub("[dD]", "e", word))


_CONVERT = {"R": _real, "I": int, "S": str, "L": {**_BOOLEANS, "1": True, "0": False}.__getitem__}
_MEANING = {"R": "a number", "I": "an integer", "S": "text", "L": "a truth value (T or F)"}


def _is(kind: str, word: str) -> bool:
    try:
        _CONVERT[kind](word)
    except (ValueError, KeyError):
        return False
    return True


def _atoms(arrays: dict[str, np.ndarray], cell: np.ndarray | None, pbc: np.ndarray, info: dict[str, Any]) -> ase.Atoms:
    arrays.pop("symbols", None)
    atoms = ase.Atoms(numbers=arrays.pop("numbers"), positions=arrays.pop("positions"), cell=cell, pbc=pbc)
    if (move := arrays.pop("move_mask", None)) is not None:
        atoms.set_constraint(constraints(~np.broadcast_to(move.reshape(len(atoms), -1).astype(bool), (len(atoms), 3))))
    if (charges := arrays.pop("initial_charges", None)) is not None:
        atoms.set_initial_charges(charges)
    results = {name: arrays.pop(name) for name in _PER_ATOM & arrays.keys()}
    for name, values in arrays.items():
        atoms.new_array(name, values)
    of_frame = (set(all_properties) - _PER_ATOM) & info.keys()
    results |= {key: info.pop(key) for key in of_frame if _is_result(key, info[key])}
    for key in _TENSORS:
        if np.size(info.get(key, ())) == 9:
            info[key] = np.reshape(info[key], (3, 3), order="F")
    if np.size(results.get("stress", ())) == 9:
        # six numbers hold a symmetric one; of another all nine are kept, and `lamjax data check` names the frame
        tensor = np.reshape(results["stress"], (3, 3), order="F")
        results["stress"] = units.to_voigt(tensor) if np.array_equal(tensor, tensor.T) else tensor
    atoms.info = info
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def _is_result(key: str, value: Any) -> bool:
    return np.asarray(value).dtype.kind in "if" and (key != "stress" or np.size(value) in (6, 9))


def _number(symbol: str, elements: Sequence[str], line: int) -> int:
    """The atomic number of a symbol in any case, or of a type 1, 2, ... by the elements of the types."""
    if symbol.isdigit() and 1 <= int(symbol) <= len(elements):
        symbol = elements[int(symbol) - 1]
    number = ase.data.atomic_numbers.get(ISOTOPES.get(symbol, symbol.capitalize()), 0)
    if not number:
        remedy = "Write elements, as in H, O, Si."
        if symbol.isdigit():  # LAMMPS's types, or atomic numbers
            remedy = "Give the elements of types 1, 2, ... (--elements Si,O), or call a column of atomic numbers Z:I:1."
        raise ValueError(f"line {line}: {symbol!r} is no chemical element. {remedy}")
    return number


# ---- the comment line


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Keys and raw values; a key without a value has the value T."""
    text, place = text.strip(), 0
    while place < len(text):
        key, place = _token(text, place, "=")
        place = _spaces(text, place)
        if text[place : place + 1] == "=":
            value, place = _token(text, _spaces(text, place + 1), "")
            yield key, value
        else:
            yield key, "T"
        place = _spaces(text, place)


def _token(text: str, place: int, stop: str) -> tuple[str, int]:
    """The text up to the next space outside of quotes and brackets, without these, and its end."""
    characters: list[str] = []
    while place < len(text) and not text[place].isspace() and text[place] not in (stop or ()):
        plain = _PLAIN_RUN.match(text, place)
        if plain or text[place] == "=":
            characters.append(plain[0] if plain else "=")
            place = plain.end() if plain else place + 1
        elif text[place] == "\\":
            characters.append(text[place + 1 : place + 2])
            place += 2
        else:
            inside, place = _quoted(text, place + 1, text[place])
            characters.append(inside)
    return "".join(characters), place


def _quoted(text: str, place: int, opened: str) -> tuple[str, int]:
    """The text up to the end of the quotes or brackets (which may be nested), and the place behind them."""
    closes, depth, characters = _CLOSES[opened], 1, []
    while place < len(text):
        plain = _QUOTED_RUN.match(text, place)
        if plain:
            characters.append(plain[0])
            place = plain.end()
            continue
        character = text[place]
        if character == "\\":
            characters.append(text[place + 1 : place + 2])
            place += 2
            continue
        place += 1
        depth += (character == opened != closes) - (character == closes)
        if depth == 0:
            break
        characters.append(character if opened in "\"'" else " ")
    return "".join(characters), place


def _spaces(text: str, place: int) -> int:
    while place < len(text) and text[place].isspace():
        place += 1
    return place


def _numbers(words: list[str]) -> np.ndarray | None:
    """The words as whole or real numbers, also as Fortran writes them; None if they are none."""
    for kind in (int, float):
        try:
            return np.array(words, kind)
        except (ValueError, OverflowError):
            continue
    plain = [_FORTRAN.sub(r"\1e", word) for word in words]
    return None if plain == words else _numbers(plain)


def _value(text: str) -> Any:
    """Numbers, truth values, JSON, or the text itself."""
    parts = re.findall(r"[^\s,]+", text)
    if (values := _numbers(parts)) is not None:
        return values[0] if len(values) == 1 else values
    if all(part in _BOOLEANS for part in parts):
        parsed = [_BOOLEANS[part] for part in parts]
        return parsed[0] if len(parsed) == 1 else parsed
    if not text.startswith("_JSON "):
        return text
    value = json.loads(text.removeprefix("_JSON "))
    try:
        array = np.array(value)
    except ValueError:  # of lists of several lengths
        return value
    return array if array.dtype.kind in "ifb" else value
