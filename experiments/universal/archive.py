"""Keep the labels of the teacher's set in one small file, as integers, and read them back.

    python -m experiments.universal.archive     # build/universal/teacher_set -> teacher_set.npz.xz beside this file

Forces are kept to 1 meV/Å, positions to 1/65,536 of a cell vector (some 1e-4 Å): labels take hours, reading seconds.
"""

import argparse
import io
import lzma
import os
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ARCHIVE = HERE / "teacher_set.npz.xz"
BLOCKS = HERE.parents[1] / "build" / "universal" / "teacher_set"
FORCE, PLACES = 1e-3, 65536  # eV/Å; parts of a cell vector
UPPER = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)  # of a symmetric tensor, Voigt's order
PLAIN = ("sample", "kind", "n_atoms", "numbers", "energy")


def numbered(folder: Path) -> dict[int, Path]:
    """The finished blocks of a folder by number."""
    return {int(path.stem.removeprefix("block_")): path for path in sorted(folder.glob("block_[0-9]*[0-9].npz"))}


def compact(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of a block as small integers, where nothing is lost that a model could learn."""
    owner = np.repeat(np.arange(len(block["n_atoms"])), block["n_atoms"])
    inverse = np.linalg.inv(block["cell"].astype(np.float64)).reshape(-1, 3, 3)
    places = np.einsum("ni,nij->nj", block["positions"].astype(np.float64), inverse[owner])
    return {name: block[name] for name in PLAIN} | {
        "places": (np.round(places * PLACES).astype(np.int64) % PLACES).astype(np.uint16),
        "forces": np.round(block["forces"] / FORCE).astype(np.int16),
        "cell": block["cell"].astype(np.float32),
        "stress": block["stress"][:, *UPPER].astype(np.float32),
    }


def whole(kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `compact`: Å, eV/Å, eV/Å³."""
    owner = np.repeat(np.arange(len(kept["n_atoms"])), kept["n_atoms"])
    cell = kept["cell"].astype(np.float64)
    stress = np.zeros((len(cell), 3, 3))
    stress[:, UPPER[0], UPPER[1]] = stress[:, UPPER[1], UPPER[0]] = kept["stress"]
    return {name: kept[name] for name in PLAIN} | {
        "positions": np.einsum("ni,nij->nj", kept["places"] / PLACES, cell[owner]),
        "forces": kept["forces"] * FORCE,
        "cell": cell,
        "stress": stress,
    }


def read(path: Path = ARCHIVE) -> dict[int, dict[str, np.ndarray]]:
    """The blocks in the archive by number; none if there is no archive."""
    if not path.is_file():
        return {}
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as file:
        arrays = {name: _whole_numbers(file, name) for name in file.files if not name.endswith("/high")}
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        number, field = name.split("/", 1)
        found.setdefault(int(number), {})[field] = array
    return {number: whole(kept) for number, kept in sorted(found.items())}


def write(path: Path, blocks: Path) -> int:
    """All blocks of the folder, and those that the archive holds already; the number of frames."""
    kept = {number: compact(block) for number, block in read(path).items()}
    for number, one in numbered(blocks).items():
        with np.load(one) as file:
            kept[number] = compact(dict(file))
    content = io.BytesIO()
    np.savez(content, **{f"{n}/{name}": a for n in sorted(kept) for name, a in _bytes_apart(kept[n]).items()})
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(lzma.compress(content.getvalue(), preset=9))
    os.replace(unfinished, path)
    return sum(len(block["energy"]) for block in kept.values())


def _bytes_apart(kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Low and high bytes of 16-bit numbers as arrays of their own: they compress better."""
    found = {name: array for name, array in kept.items() if array.dtype.itemsize != 2}
    for name in kept.keys() - found.keys():
        pairs = np.ascontiguousarray(kept[name]).view(np.uint8).reshape(*kept[name].shape, 2)
        found |= {name: pairs[..., 0], f"{name}/high": pairs[..., 1]}
    return found


def _whole_numbers(file, name: str) -> np.ndarray:
    if f"{name}/high" not in file.files:
        return file[name]
    pairs = np.stack([file[name], file[f"{name}/high"]], axis=-1)
    return np.ascontiguousarray(pairs).view(np.int16 if name.endswith("/forces") else np.uint16)[..., 0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=Path, default=BLOCKS)
    parser.add_argument("--output", type=Path, default=ARCHIVE)
    options = parser.parse_args()
    n = write(options.output, options.blocks)
    print(f"{options.output}: {n:,} frames, {options.output.stat().st_size / 1e6:.1f} MB")
