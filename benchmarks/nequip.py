"""Energy, forces and stress with Nequix's weights through ASE: lamjax beside the original code, float32.

    python benchmarks/nequip.py weights.nqx --original-python OTHER/bin/python  # an environment that has nequix
    python benchmarks/nequip.py weights.nqx --cores 1                           # lamjax alone, on one core
    python benchmarks/report.py nequip                                          # the table in README.md

Silicon whose atoms move by 0.01 Å between the calls, neighbour lists included. Each code is a process of its own; calls
alternate. Energies and forces of the first calls must agree.
"""

import argparse
import datetime
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.build
import backends
import numpy as np
from common import RESULTS, Worker, hardware, interleave, usable_cores, versions, warn_if_busy, write_results

SIZES = {8: 1, 64: 2, 216: 3}  # atoms: repetitions of the cubic cell
TOLERANCE = 1e-4  # eV/Å and eV/atom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="nequix-mp-1.nqx")
    parser.add_argument("--original-python", help="interpreter of an environment that has nequix")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=list(SIZES), help="atoms")
    parser.add_argument("--cores", type=int, default=usable_cores())
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for nequip.json")
    options = parser.parse_args()
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Times and peaks of all codes, size by size, written after each."""
    from lamjax.reports import console

    pythons = {"lamjax": sys.executable} | ({"nequix": options.original_python} if options.original_python else {})
    machine = hardware(options.cores)
    warn_if_busy(console, machine, "compare processor times, which other work changes least.")
    results: dict[str, Any] = {
        "hardware": machine,
        "date": datetime.date.today().isoformat(),
        "versions": {},
        "sizes": {},
    }
    for n in options.sizes:
        workers = {  # of each size anew: peaks are of this size
            code: Worker(code, Path(__file__), ["--worker", code, options.weights], python, options.cores)
            for code, python in pythons.items()
        }
        results["versions"] = {code: worker.facts["versions"] for code, worker in workers.items()}
        timings = interleave(workers, str(n), options.repetitions)
        check({code: worker.ask("result", str(n))["result"][0] for code, worker in workers.items()}, n)
        results["sizes"][str(n)] = {code: one._asdict() for code, one in timings.items()}
        for worker in workers.values():
            worker.close()
        path = write_results("nequip", results, options.output)
        console.print(f"{n} atoms: " + ", ".join(f"{code} {1e3 * t.cpu:.0f} ms" for code, t in timings.items()))
    console.print(f"Written: {path}")


def check(values: dict[str, list[float]], n: int) -> None:
    """All codes give the energy (per atom) and forces that the first of them gives."""
    first, *others = (np.array(x) for x in values.values())
    for code, other in zip(list(values)[1:], others, strict=True):
        if not np.abs(other - first).max() < TOLERANCE:
            raise SystemExit(f"{n} atoms: {code} differs by {np.abs(other - first).max():.2e}, nothing is compared.")


# ---- the worker


def calculator(code: str, weights: str) -> Any:
    """Of ASE, float32 as the weights are; the original without its kernels for GPUs."""
    if code == "lamjax":
        import lamjax

        return lamjax.Calculator(weights, dtype="float32")
    from nequix.calculator import NequixCalculator

    return NequixCalculator(model_path=weights, backend="jax", use_kernel=False)


def call(calculator: Any) -> Callable[[int], tuple[np.ndarray]]:
    """A function of a number of atoms: energy per atom and forces of the crystal after a further step."""
    structures = {}

    def evaluate(n: int) -> tuple[np.ndarray]:
        atoms, calls = structures.get(n) or (ase.build.bulk("Si", cubic=True).repeat(SIZES[n]), 0)
        atoms.rattle(0.01, seed=calls)
        structures[n] = atoms, calls + 1
        atoms.calc = calculator
        atoms.get_stress()
        return (np.append(atoms.get_forces(), atoms.get_potential_energy() / len(atoms)),)

    return evaluate


def serve(code: str, weights: str) -> None:
    """Answer `call N`, `result N`, `memory` and `reset_peak` with one JSON line each."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    backends.limit(0)
    evaluate = call(calculator(code, weights))
    facts = {"versions": versions(("lamjax", "nequix", "jax", "jaxlib", "ase", "numpy"))}
    print(json.dumps(facts), file=out, flush=True)
    backends.serve({str(n): functools.partial(evaluate, n) for n in SIZES}, out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(*sys.argv[2:])
    else:
        main()
