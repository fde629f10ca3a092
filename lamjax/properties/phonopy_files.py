"""Force constants for phonopy, in its own formats and written by itself. On the host."""

import importlib.util
from pathlib import Path

import ase.data
import numpy as np
from jaxtyping import Float

from lamjax.properties.supercells import Supercell, home, repeated
from lamjax.system import MASSES, System, check_single

MISSING = 'Files for phonopy are written by phonopy: pip install "lamjax[properties]", then again.'
APART = 1e-3  # Å: how far an atom of phonopy's supercell may be from one of ours


def check_phonopy() -> None:
    """ImportError, with what to install, where phonopy is not there: before any work."""
    if importlib.util.find_spec("phonopy") is None:
        raise ImportError(MISSING)


def to_phonopy(system: System, cells: Supercell, constants: Float[np.ndarray, "n_atoms n_super 3 3"]):
    """A phonopy.Phonopy of the cell (as its own primitive cell) with these force constants (eV/Å²).

    Raises ImportError without phonopy.
    """
    try:
        import phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError as error:
        raise ImportError(MISSING) from error
    check_single(system, "to_phonopy")
    numbers, cell = np.asarray(system.numbers), np.asarray(system.cell, np.float64)
    unit = PhonopyAtoms(
        symbols=[ase.data.chemical_symbols[z] for z in numbers],
        cell=cell,
        positions=np.asarray(system.positions, np.float64),
        masses=MASSES[numbers],
    )
    made = phonopy.Phonopy(unit, np.diag(np.asarray(cells.repeats)).tolist(), primitive_matrix=np.eye(3))
    made.force_constants = _ordered(made, system, cells, np.asarray(constants, np.float64))
    return made


def write_phonopy(folder: str | Path, system: System, cells: Supercell, constants) -> list[Path]:
    """FORCE_CONSTANTS and phonopy_params.yaml (which holds the structure and the constants) in a folder."""
    made = to_phonopy(system, cells, constants)
    from phonopy.file_IO import write_FORCE_CONSTANTS

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "FORCE_CONSTANTS", folder / "phonopy_params.yaml"]
    write_FORCE_CONSTANTS(np.asarray(made.force_constants), filename=files[0], p2s_map=made.primitive.p2s_map)
    made.save(files[1], settings={"force_constants": True})
    return files


def read_force_constants(path: str | Path) -> tuple[np.ndarray, Float[np.ndarray, "n_rows n_super 3 3"]]:
    """Atoms of the supercell (from 0) and their force constants (eV/Å²) in a file FORCE_CONSTANTS, compact or full.

    Raises FileNotFoundError, or ValueError for what is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. phonopy writes FORCE_CONSTANTS with --writefc.")
    try:
        first, _, rest = path.read_text().partition("\n")
        sizes, numbers = [int(x) for x in first.split()], np.array(rest.split(), float)
        n_rows, n_super = sizes if len(sizes) == 2 else (*sizes, *sizes)
        blocks = numbers.reshape(n_rows, n_super, 11)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: not a file FORCE_CONSTANTS of phonopy: numbers of atoms, then for each pair its numbers and "
            f"three lines of three constants ({error})."
        ) from error
    rows = blocks[:, 0, 0].astype(int) - 1
    if not np.array_equal(blocks[..., 0] - 1, np.repeat(rows[:, None], n_super, 1)):
        raise ValueError(f"{path}: the pairs are not in phonopy's order, row after row.")
    if not np.array_equal(blocks[..., 1], np.tile(np.arange(1, n_super + 1), (n_rows, 1))):
        raise ValueError(f"{path}: the pairs are not in phonopy's order, every atom of the supercell in each row.")
    return rows, blocks[..., 2:].reshape(n_rows, n_super, 3, 3)


def _ordered(made, system: System, cells: Supercell, constants) -> np.ndarray:
    """The constants with phonopy's numbers of atoms: rows of its primitive cell, columns of its supercell."""
    large = repeated(system, cells)
    inverse = np.linalg.inv(np.asarray(large.cell, np.float64))
    theirs, ours = made.supercell.positions @ inverse, np.asarray(large.positions, np.float64) @ inverse
    difference = theirs[:, None] - ours[None]
    distance = np.linalg.norm((difference - np.round(difference)) @ np.asarray(large.cell, np.float64), axis=-1)
    order = distance.argmin(axis=1)
    if distance.min(axis=1).max() > APART or len(set(order.tolist())) < len(order):
        raise ValueError(
            "phonopy's supercell has other atoms than ours: are two atoms on one place, or was the structure changed "
            "after its supercell was made?"
        )
    first = home(cells)
    rows = [
        int(np.flatnonzero(first == order[k] - order[k] % (len(order) // len(first)))[0])
        for k in made.primitive.p2s_map
    ]
    whole = [_row(constants[row], cells, order[k], order) for row, k in zip(rows, made.primitive.p2s_map, strict=True)]
    return np.ascontiguousarray(np.stack(whole))


def _row(constants, cells: Supercell, start: int, atoms) -> np.ndarray:
    """Φ between atom `start`, which may be a copy of that in the cell, and the `atoms` of the supercell."""
    away = np.asarray(cells.cells)[atoms] - np.asarray(cells.cells)[start]
    repeats, atom = np.asarray(cells.repeats), np.asarray(cells.atom)[atoms]
    inside = away % repeats
    number = inside[:, 0] + repeats[0] * (inside[:, 1] + repeats[1] * inside[:, 2])
    return constants[atom * int(np.prod(repeats)) + number]
