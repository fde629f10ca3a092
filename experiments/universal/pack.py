"""Pack the labels of both teachers into stores that `lamjax train` maps: teacher.h5, nequix.h5, and what is held out.

    python -m experiments.universal.pack            # CHGNet's blocks -> teacher.h5, teacher_held_out.h5
    python -m experiments.universal.pack --nequix   # the chunks of `nequix_labels` -> nequix.h5, nequix_held_out.h5

One sample in fifty is held out, with all its frames. Prints what the set holds.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.universal import archive
from lamjax import units
from lamjax.data import Frame, Store, write_store
from lamjax.system import Labels, System

HELD_OUT = 50  # one sample in so many
KINDS = ("relaxation", "first steps", "perturbation", "hot")  # as in teacher_set.KINDS


def frames(folder: Path) -> Iterator[tuple[int, Frame]]:
    """The sample number and the frame of every frame of the archive and the folder."""
    archived, fresh = archive.read(), archive.numbered(folder)
    for number in sorted(archived.keys() | fresh.keys()):
        block = archived.get(number)
        if block is None:
            with np.load(fresh[number]) as file:
                block = dict(file)
        ends = np.cumsum(block["n_atoms"].astype(int))
        for k, last in enumerate(ends):
            atoms = slice(last - int(block["n_atoms"][k]), last)
            yield int(block["sample"][k]), _frame(block, k, atoms, f"block {number}")


def _frame(block: dict[str, np.ndarray], k: int, atoms: slice, name: str) -> Frame:
    cell = block["cell"][k]
    system = System(
        positions=block["positions"][atoms].astype(np.float64),
        numbers=block["numbers"][atoms].astype(np.int32),
        cell=cell,
        pbc=np.ones(3, bool),
    )
    virial = units.stress_to_virial(block["stress"][k].astype(np.float64), abs(np.linalg.det(cell)))
    labels = Labels(block["energy"][k], block["forces"][atoms].astype(np.float64), virial, np.ones(3))
    info = {"sample": int(block["sample"][k]), "kind": KINDS[block["kind"][k]]}
    return Frame(system, labels, f"{name} frame {k}", ("energy", "forces", "stress"), info)


def labelled_by_nequix(folder: Path) -> Iterator[tuple[int, Frame]]:
    """The sample number and the frame of every frame of the chunks below a folder."""
    for path in sorted(folder.glob("*/chunk_[0-9]*[0-9].h5")):
        for frame in Store(path):
            yield int(frame.info["sample"]), frame


def main(every: list[tuple[int, Frame]], name: str, output: Path) -> None:
    """Write both stores."""
    output.mkdir(parents=True, exist_ok=True)
    for stem, held in ((name, False), (f"{name}_held_out", True)):
        chosen = [frame for sample, frame in every if (sample % HELD_OUT == 0) == held]
        write_store(output / f"{stem}.h5", chosen, np.float32)
        kinds = {kind: sum(frame.info["kind"] == kind for frame in chosen) for kind in KINDS}
        elements = {z for frame in chosen for z in frame.system.numbers.tolist()}
        n_atoms = sum(len(frame.system.numbers) for frame in chosen)
        print(f"{stem}.h5: {len(chosen):,} frames, {n_atoms:,} atoms, {len(elements)} elements, {kinds}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=Path, default=archive.BLOCKS)
    parser.add_argument("--nequix", action="store_true", help="the second teacher's labels")
    parser.add_argument("--output", type=Path, default=archive.BLOCKS.parent)
    options = parser.parse_args()
    if options.nequix:
        main(list(labelled_by_nequix(options.output / "nequix")), "nequix", options.output)
    else:
        main(list(frames(options.blocks)), "teacher", options.output)
