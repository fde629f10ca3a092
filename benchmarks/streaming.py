"""Training on a set larger than the memory that the process may have, against the same from memory.

`python benchmarks/streaming.py [--gigabytes 1.6] [--limit 1.0] [--steps 150] [--rounds 3] [--folder FOLDER]`:
prints a table and writes results/streaming.json. The set is made once: rattled clusters of 256 argon atoms with
Lennard-Jones labels.
"""

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import hardware, usable_cores, versions, write_results

from lamjax import data, losses, training
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import Potential, PotentialConfig, build
from lamjax.reports import console, table
from lamjax.system import Labels, System

N_ATOMS, SIGMA, EPSILON = 256, 3.4, 0.0104  # Å, eV: argon
BATCH = 4
BLOCK = 64  # frames that are made at once
FLOATS = 2 * 3 * 8 + 1  # bytes of one atom in the file: positions, forces, number
SMALL = 400  # frames of the set that is held in memory
CASES = {  # name: (held in memory, prefetched)
    "from the store, prefetched": (False, True),
    "from the store, no prefetch": (False, False),
    "from memory, prefetched": (True, True),
    "from memory, no prefetch": (True, False),
}


def main() -> None:
    """Make the set, run every case in a process of its own, print and write the results."""
    args = arguments()
    if args.case:
        print(json.dumps(train(args)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(args.folder or temporary) / "clusters.h5"
        args.store = path
        made = {"write_s": None}
        if not path.is_file():
            begin = time.monotonic()
            data.write_store(path, clusters(round(args.gigabytes * 1e9 / (N_ATOMS * FLOATS))))
            made["write_s"] = round(time.monotonic() - begin, 1)
        store = data.Store(path)
        begin = time.monotonic()
        data.plan(store, model().shells)
        made |= {
            "count_s": round(time.monotonic() - begin, 1) if made["write_s"] else None,
            "frames": len(store),
            "bytes": path.stat().st_size,
        }
        rounds = [{name: run_case(name, args) for name in CASES} for _ in range(args.rounds)]
        results = {name: middle([one[name] for one in rounds]) for name in CASES}
    report(made, results, args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.6)
    parser.add_argument("--limit", type=float, default=1.0, help="GB of private memory that a process may have")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3, help="every case so often, in turn; the median is reported")
    parser.add_argument("--folder", help="where the set lies, or is to lie, for further runs")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    return parser.parse_args()


def clusters(n: int, seed: int = 0) -> Iterator[data.Frame]:
    """n rattled pieces of face-centred cubic argon with Lennard-Jones energies and forces."""
    rng = np.random.default_rng(seed)
    cells = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    grid = (cells + corners).reshape(-1, 3)
    numbers, cell, pbc = np.full(N_ATOMS, 18, np.int32), np.zeros((3, 3)), np.zeros(3, bool)
    weights = np.array([1.0, 1.0, 0.0])
    for start in range(0, n, BLOCK):
        edges = rng.uniform(5.15, 5.5, (BLOCK, 1, 1))
        positions = (grid * edges + 0.12 * rng.normal(size=(BLOCK, N_ATOMS, 3))).astype(np.float32)
        energy, gradient = jax.device_get(labels(positions))
        for k in range(min(BLOCK, n - start)):
            frame_labels = Labels(np.float64(energy[k]), -gradient[k].astype(np.float64), cell, weights)
            system = System(positions[k].astype(np.float64), numbers, cell, pbc)
            yield data.Frame(system, frame_labels, f"clusters frame {start + k}", ("energy", "forces", ""), {})


@jax.jit
def labels(positions):
    """Lennard-Jones energies (eV) of clusters (n, n_atoms, 3), and their gradients."""

    def energy(x):
        d = x[:, None] - x
        squared = jnp.sum(d * d, axis=-1) + 1e6 * jnp.eye(len(x))
        sixth = (SIGMA**2 / squared) ** 3
        return 2 * EPSILON * jnp.sum(sixth**2 - sixth)

    return jax.vmap(jax.value_and_grad(energy))(positions)


def copied(store: data.Store) -> bool:
    """True if positions and forces of the whole set fit into the memory that the process may have."""
    try:
        return bool([np.array(store.arrays[name]).nbytes for name in ("positions", "forces")])
    except MemoryError:
        return False


def model() -> Potential:
    """A small DPA-1."""
    descriptor = DPA1Config(rcut=5.0, rcut_smth=1.0, sel=32, neuron=(8, 16), axis_neuron=4)
    return build(PotentialConfig(("Ar",), descriptor, (("argon", EnergyHeadConfig(neuron=(32, 32))),)), "argon")


def run_case(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One case in a process of its own, under the limit if it streams."""
    console.print(f"{name} ...")
    options = ("--case", name, "--store", args.store, "--steps", args.steps, "--limit", args.limit)
    done = subprocess.run([sys.executable, __file__, *map(str, options)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The run with the median speed; the largest memory of all."""
    ordered = sorted(runs, key=lambda one: one["structures_per_s"])
    speeds = [round(one["structures_per_s"], 1) for one in runs]
    peak = max(one["peak_private_gb"] for one in runs)
    return {**ordered[len(runs) // 2], "peak_private_gb": peak, "structures_per_s_of_all": speeds}


def train(args: argparse.Namespace) -> dict[str, Any]:
    """What one case measures. The first steps, which compile, do not count."""
    held, ahead = CASES[args.case]
    if not held:
        resource.setrlimit(resource.RLIMIT_DATA, (int(args.limit * 1e9), resource.RLIM_INFINITY))
    potential, watch = model(), Peak()
    store = data.Store(args.store)
    frames = data.Subset(store, np.linspace(0, len(store) - 1, SMALL).astype(int)) if held else store
    plan = data.plan(store, potential.shells, max_programs=1)  # one compilation, before the clock starts
    packed = data.pack(frames, plan, np.float32, memory=np.inf if held else 0)
    optimizer, params = optax.adam(1e-3), potential.init(jax.random.key(0))
    state = training.init(data.set_statistics(potential, params, data.sample(frames, 200)), optimizer)
    feed = Clocked(data.batches(packed, BATCH, seed=0))
    drawn = itertools.islice(feed, args.steps + 5)
    if ahead:
        drawn = data.prefetch(drawn)
    begin = None
    steps = training.fit(losses.label_loss(potential), state, optimizer, drawn)
    for number, (_, metrics) in enumerate(steps):
        if number == 4:
            jax.block_until_ready(metrics["loss"])
            begin, feed.seconds = time.monotonic(), 0.0
            waited = drawn.waited if ahead else 0.0
    jax.block_until_ready(metrics["loss"])
    seconds = time.monotonic() - begin
    wait = (drawn.waited - waited if ahead else feed.seconds) / seconds
    peak = watch.stop()
    return {
        "structures_per_s": args.steps * BATCH / seconds,
        "wait_fraction": wait,
        "preparation_fraction": feed.seconds / seconds,
        "frames": len(frames),
        "set_fits": None if held else copied(store),
        "limit_gb": None if held else args.limit,
        "peak_private_gb": peak / 1e9,
        "loss": float(metrics["loss"]),
    }


class Clocked:
    """An iterator that knows how long its items took."""

    def __init__(self, items: Iterator):
        self.items, self.seconds = items, 0.0

    def __iter__(self) -> "Clocked":
        return self

    def __next__(self):
        begin = time.perf_counter()
        item = next(self.items)
        self.seconds += time.perf_counter() - begin
        return item


class Peak:
    """Largest resident private memory of this process (pages of mapped files do not count), looked at 50 times a s."""

    def __init__(self):
        self.peak, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            lines = Path("/proc/self/status").read_text().splitlines()
            (line,) = [line for line in lines if line.startswith("RssAnon")]
            self.peak = max(self.peak, int(line.split()[1]) * 1024)

    def stop(self) -> int:
        """The peak in bytes."""
        self.over.set()
        self.thread.join()
        return self.peak


def report(made: dict[str, Any], results: dict[str, dict], args: argparse.Namespace) -> None:
    """The table, and results/streaming.json."""
    rows = [
        (
            name,
            one["frames"],
            "-" if one["limit_gb"] is None else one["limit_gb"],
            one["peak_private_gb"],
            one["structures_per_s"],
            f"{one['wait_fraction']:.1%}",
        )
        for name, one in results.items()
    ]
    title = f"{made['frames']:,} frames of {N_ATOMS} atoms, {made['bytes'] / 1e9:.2f} GB on disk; batches of {BATCH}"
    columns = ("case", "frames", "limit (GB)", "peak private (GB)", "structures/s", "waited")
    console.print(table(title, columns, rows))
    fits = any(one["set_fits"] for one in results.values())
    console.print(f"The whole set {'fits' if fits else 'does not fit'} into memory under the limit.")
    options = {"gigabytes": args.gigabytes, "limit": args.limit, "steps": args.steps, "rounds": args.rounds}
    packages = versions(("lamjax", "jax", "jaxlib", "numpy", "h5py", "vesin"))
    machine = hardware(usable_cores())
    results = {**options, "set": made, "cases": results, "versions": packages, "hardware": machine}
    console.print(f"{write_results('streaming', results)}")


if __name__ == "__main__":
    main()
