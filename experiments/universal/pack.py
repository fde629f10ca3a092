"""Pack the blocks of the teacher's set into stores that `lamjax train` maps: teacher.h5 and teacher_held_out.h5.

    python -m experiments.universal.pack

One sample in fifty is held out, with all its frames. Prints what the set holds.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.universal import archive
from lamjax import units
from lamjax.data import Frame, write_store
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


def main(blocks: Path, output: Path) -> None:
    """Write both stores."""
    every = list(frames(blocks))
    output.mkdir(parents=True, exist_ok=True)
    for name, held in (("teacher", False), ("teacher_held_out", True)):
        chosen = [frame for sample, frame in every if (sample % HELD_OUT == 0) == held]
        write_store(output / f"{name}.h5", chosen, np.float32)
        kinds = {kind: sum(frame.info["kind"] == kind for frame in chosen) for kind in KINDS}
        elements = {z for frame in chosen for z in frame.system.numbers.tolist()}
        n_atoms = sum(len(frame.system.numbers) for frame in chosen)
        print(f"{name}.h5: {len(chosen):,} frames, {n_atoms:,} atoms, {len(elements)} elements, {kinds}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=Path, default=archive.BLOCKS)
    parser.add_argument("--output", type=Path, default=archive.BLOCKS.parent)
    options = parser.parse_args()
    main(options.blocks, options.output)
