"""Keep the labels of the teacher's set in one small file, as integers, and read them back.

    python -m experiments.universal.archive --part defects --from 200000   # -> teacher_set_defects.npz.xz

takes the finished blocks below build/universal/teacher_set whose samples begin there, as far as no archive has them.

Forces are kept to 1 meV/Å, positions to 1/65,536 of a cell vector (some 1e-4 Å): labels take hours, reading seconds.
"""

import argparse
import io
import lzma
import os
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PARTS = "teacher_set*.npz.xz"  # beside this file
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


def read() -> dict[int, dict[str, np.ndarray]]:
    """The blocks in all archives by number; none if there is no archive."""
    blocks: dict[int, dict[str, np.ndarray]] = {}
    for part in sorted(HERE.glob(PARTS)):
        blocks |= read_part(part)
    return blocks


def read_part(path: Path) -> dict[int, dict[str, np.ndarray]]:
    """The blocks of one archive by number."""
    with np.load(io.BytesIO(lzma.decompress(path.read_bytes()))) as file:
        arrays = {name: _whole_numbers(file, name) for name in file.files if not name.endswith("/high")}
    blocks: dict[int, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        number, field = name.split("/", 1)
        blocks.setdefault(int(number), {})[field] = array
    return {number: whole(kept) for number, kept in sorted(blocks.items())}


def write(path: Path, blocks: Path, first: int) -> int:
    """Archive the blocks of a folder whose samples are numbered from `first` on, those of other archives left out.

    What the archive holds already stays in it. Returns its number of frames.
    """
    kept = {number: compact(block) for number, block in read_part(path).items()} if path.is_file() else {}
    for number in numbered(blocks).keys() - read().keys():
        with np.load(numbered(blocks)[number]) as file:
            block = dict(file)
        if len(block["sample"]) and block["sample"][0] >= first:
            kept[number] = compact(block)
    content = io.BytesIO()
    np.savez(content, **{f"{n}/{name}": a for n in sorted(kept) for name, a in _bytes_apart(kept[n]).items()})
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(lzma.compress(content.getvalue(), preset=9))
    os.replace(unfinished, path)
    return sum(len(block["energy"]) for block in kept.values())


def _bytes_apart(kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Low and high bytes of 16-bit numbers as arrays of their own: they compress better."""
    arrays = {name: array for name, array in kept.items() if array.dtype.itemsize != 2}
    for name in kept.keys() - arrays.keys():
        pairs = np.ascontiguousarray(kept[name]).view(np.uint8).reshape(*kept[name].shape, 2)
        arrays |= {name: pairs[..., 0], f"{name}/high": pairs[..., 1]}
    return arrays


def _whole_numbers(file, name: str) -> np.ndarray:
    if f"{name}/high" not in file.files:
        return file[name]
    pairs = np.stack([file[name], file[f"{name}/high"]], axis=-1)
    return np.ascontiguousarray(pairs).view(np.int16 if name.endswith("/forces") else np.uint16)[..., 0]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=Path, default=BLOCKS)
    parser.add_argument("--part", default="more", help="names the archive: teacher_set_PART.npz.xz")
    parser.add_argument("--from", type=int, default=0, dest="first", help="number of the first sample")
    options = parser.parse_args()
    output = HERE / f"teacher_set_{options.part}.npz.xz"
    n = write(output, options.blocks, options.first)
    print(f"{output}: {n:,} frames, {output.stat().st_size / 1e6:.1f} MB")
