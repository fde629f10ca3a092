"""Label structures with a second, stronger teacher: the public weights nequix-mp-1, evaluated by lamjax in batches.

    nice python -m experiments.universal.nequix_labels nequix-mp-1.nqx STRUCTURES.h5 [MORE.h5] --output FOLDER

The frames of all files are taken in one random order and written in chunks, chunk_00000.h5 and so on: what is there
after any time is a fair sample, a killed run loses one chunk, and the same command goes on. Float32; labels that the
files had are dropped.

`lamjax label` gives the same labels, in their order and each kept at once, in about a third more time.
"""

import argparse
import time
from pathlib import Path

import numpy as np

import lamjax
from experiments import workflow
from experiments.universal.teacher_set import admitted
from lamjax import data
from lamjax.data import Frame, Store, write_store
from lamjax.evaluation.errors import predictions
from lamjax.system import Labels

CHUNK = 2000  # frames
BATCH = "auto:128"
PROGRAMS = 6


def with_labels(frame: Frame, prediction) -> Frame:
    """The frame with these energies (eV), forces (eV/Å) and virial (eV)."""
    labels = Labels(
        np.float64(prediction.energy), np.asarray(prediction.forces), np.asarray(prediction.virial), np.ones(3)
    )
    return frame._replace(labels=labels, keys=("energy", "forces", "stress"))


def main(weights: Path, files: list[Path], output: Path, first: int, last: int | None) -> None:
    """Label the chunks from `first` to `last` that are not there yet."""
    potential, params = lamjax.load(weights, dtype=np.float32)
    every = data.join([Store(path) for path in files])
    order = np.random.default_rng(0).permutation(len(every)).tolist()
    plan = data.plan([every[k] for k in order[: 30 * CHUNK]], potential.shells, PROGRAMS, batch_size=BATCH)
    output.mkdir(parents=True, exist_ok=True)
    for chunk in list(range(-(-len(order) // CHUNK)))[first:last]:
        path = output / f"chunk_{chunk:05d}.h5"
        if path.exists():
            continue
        began = time.time()
        frames = [every[k] for k in order[chunk * CHUNK : (chunk + 1) * CHUNK]]
        predicted = predictions(potential, params, data.pack(frames, plan, np.float32), BATCH)
        kept = [
            with_labels(frame, one)
            for frame, one in zip(frames, predicted, strict=True)
            if admitted(one.energy, one.forces, one.virial)
        ]
        write_store(path, kept, np.float32)
        atoms = sum(len(frame.system.numbers) for frame in frames)
        print(f"{path}: {len(kept)} of {len(frames)} frames, {atoms} atoms, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path, help="nequix-mp-1.nqx")
    parser.add_argument("files", type=Path, nargs="+", help="stores (.h5)")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--chunks", type=int, nargs=2, default=(0, None), metavar=("FIRST", "LAST"))
    options = parser.parse_args()
    workflow.begin(options.output, options.output / "programs")
    main(options.weights, options.files, options.output, *options.chunks)
