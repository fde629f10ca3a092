"""Energy, forces and stress of silicon with Nequix's weights: lamjax, and the original code.

    python -m benchmarks.nequip weights.nqx
    ORIGINAL/bin/python benchmarks/nequip.py weights.nqx --original   # in an environment that has nequix

One line a size: processor time and wall time of a call through ASE, neighbour list included, medians over the calls
after the first one; atoms move by 0.01 Å in between. Peak resident memory is that of the process so far.
"""

import argparse
import resource
import statistics
import time
from typing import Any

import ase.build

SIZES = {8: 1, 64: 2, 216: 3}  # atoms: repetitions of the cubic cell
CALLS = 5


def calculators(weights: str, original: bool) -> dict[str, Any]:
    """The ASE calculators that are compared in this environment, float32 as the weights are."""
    if original:
        from nequix.calculator import NequixCalculator

        return {"nequix": NequixCalculator(model_path=weights, backend="jax", use_kernel=False)}
    import lamjax

    return {"lamjax": lamjax.Calculator(weights, dtype="float32")}


def measured(calculator: Any, repeat: int) -> tuple[float, float, float]:
    """(processor time, wall time, seconds of the first call)."""
    atoms = ase.build.bulk("Si", cubic=True).repeat(repeat)
    times = []
    for call in range(1 + CALLS):
        atoms.rattle(0.01, seed=call)
        atoms.calc = calculator
        processor, wall = time.process_time(), time.perf_counter()
        atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
        times.append((time.process_time() - processor, time.perf_counter() - wall))
    processors, walls = zip(*times[1:], strict=True)
    return statistics.median(processors), statistics.median(walls), times[0][1]


def main() -> None:
    """A table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--original", action="store_true", help="run the nequix package instead of lamjax")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=list(SIZES))
    chosen = parser.parse_args()
    print("| code | atoms | processor time ms | wall ms | first call s | peak MB |\n|---|---|---|---|---|---|")
    for name, calculator in calculators(chosen.weights, chosen.original).items():
        for n in chosen.sizes:
            processor, wall, first = measured(calculator, SIZES[n])
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"| {name} | {n} | {1e3 * processor:.0f} | {1e3 * wall:.0f} | {first:.1f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
