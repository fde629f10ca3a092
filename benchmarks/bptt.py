"""What backpropagation through a relaxation costs: time over a plain relaxation of as many steps, and memory.

DPA-2 small (DeePMD-kit's example model) with fresh weights, silicon with an interstitial (33 atoms), float32, the
neighbours rebuilt at every step. Aims: gradient under 4 times the relaxation; memory from 20 to 200 steps under twice.
"""

import argparse
import datetime
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
from common import RESULTS, hardware, usable_cores, versions, write_results

import lamjax
from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig, ThreeBodyConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.losses.structure import structure_error
from lamjax.relaxation import RelaxConfig, Unrolled, relax
from lamjax.reports import console, table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50, 100, 200])
    parser.add_argument("--segment", type=int, default=None, help="keep only every so many steps")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for bptt.json")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.worker:
        print(json.dumps(measure(options.worker, options.segment, options.repetitions)))
        return
    machine = hardware(usable_cores())
    if machine["load_before"] > 0.3:
        console.print(f"[yellow]The machine is busy (load {machine['load_before']}): trust `cpu` more than `wall`.")
    rows = [in_own_process(steps, options) for steps in options.steps]
    show(rows)
    results = {
        "date": datetime.date.today().isoformat(),
        "hardware": machine,
        "versions": versions(("jax", "jaxlib", "jax-md", "lamjax")),
        "precision": "float32",
        "segment": options.segment,
        "rows": rows,
    }
    console.print(f"Written: {write_results('bptt', results, options.output)}")


def in_own_process(steps: int, options) -> dict:
    """One number of steps in a fresh process, so that peak memory is its own."""
    command = [sys.executable, __file__, "--worker", str(steps), "--repetitions", str(options.repetitions)]
    if options.segment:
        command += ["--segment", str(options.segment)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The measurement of {steps} steps failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(steps: int, segment: int | None, repetitions: int) -> dict:
    """Seconds and bytes of the relaxation and of its gradient, called in turn."""
    potential, params, system, lists, target = problem()
    config = RelaxConfig(fmax=0.0, adjoint=Unrolled(steps, segment))

    def distance(params):
        relaxed = relax(potential, params, system, lists, config)
        return structure_error(relaxed.system, target).dq

    calls = {"relaxation": distance, "gradient": jax.value_and_grad(distance)}
    row: dict = {"steps": steps}
    programs = {}
    for name, function in calls.items():
        begin = time.perf_counter()
        programs[name] = jax.jit(function).lower(params).compile()
        row[name] = {"compile": time.perf_counter() - begin}
        row[name]["temporary_mb"] = programs[name].memory_analysis().temp_size_in_bytes / 1e6
    before = reset_peak()
    walls, processor = {n: [] for n in calls}, {n: [] for n in calls}
    for repetition in range(repetitions + 1):
        for name, program in programs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(program(params))
            if repetition:  # the first call warms up
                walls[name].append(time.perf_counter() - wall)
                processor[name].append(time.process_time() - cpu)
    for name in calls:
        row[name] |= {"wall": min(walls[name]), "median": statistics.median(walls[name])}
        row[name]["cpu"] = statistics.median(processor[name])
    row["peak_rss_mb"], row["above_idle_mb"] = peak_mb(), peak_mb() - before
    return row


def problem():
    """Potential, parameters, start, neighbours with headroom, and a target near the start."""
    descriptor = DPA2Config(
        repinit=RepinitConfig(axis_neuron=12),
        three_body=ThreeBodyConfig(rcut_smth=3.5, sel=48),
        repformer=RepformerConfig(
            rcut_smth=3.5, g2_dim=32, attn2_hidden=32, attn1_hidden=128, update_g1_has_attn=False,
            update_g2_has_g1g1=False, update_g2_has_attn=False, update_style="res_residual", update_residual=0.01,
            attn2_has_gate=True,
        ),
    )  # fmt: skip
    potential = lamjax.build(
        lamjax.PotentialConfig(("Si",), descriptor, (("Default", EnergyHeadConfig(neuron=(240, 240, 240))),))
    )
    cell = ase.build.bulk("Si", "diamond", a=5.4, cubic=True)
    atoms = ase.build.make_supercell(cell, [[1, 1, -1], [1, -1, 1], [-1, 1, 1]])
    atoms += ase.Atoms("Si", positions=[(2.7, 2.7, 2.7)])
    atoms.rattle(0.05, seed=1)
    system = lamjax.from_ase(atoms)
    target = system.positions + 0.1 * np.random.default_rng(2).normal(size=(len(atoms), 3)).astype(np.float32)
    return potential, potential.init(jax.random.key(0)), system, lamjax.allocate(potential, system), jnp.asarray(target)


def reset_peak() -> float:
    """Resident memory now (MB); from here on `peak_mb` counts anew where the system can do that (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def show(rows: list[dict]) -> None:
    """The table and the two figures that matter."""
    columns = [
        "steps",
        "relax ms",
        "grad ms",
        "ratio",
        "cpu",
        "relax MB",
        "grad MB",
        "peak MB",
        "compile s",
    ]
    body = []
    for row in rows:
        plain, gradient = row["relaxation"], row["gradient"]
        body.append(
            (
                str(row["steps"]),
                f"{1e3 * plain['wall']:.0f}",
                f"{1e3 * gradient['wall']:.0f}",
                f"{gradient['wall'] / plain['wall']:.2f}",
                f"{gradient['cpu'] / plain['cpu']:.2f}",
                f"{plain['temporary_mb']:.1f}",
                f"{gradient['temporary_mb']:.1f}",
                f"{row['peak_rss_mb']:.0f}",
                f"{plain['compile']:.0f}+{gradient['compile']:.0f}",
            )
        )
    console.print(table("Gradient through a relaxation, DPA-2 small, 33 atoms, float32", columns, body))
    first, last = rows[0], rows[-1]
    growth = last["gradient"]["temporary_mb"] / first["gradient"]["temporary_mb"]
    console.print(
        "ratio: gradient over relaxation, best wall times; cpu: the same of processor time; MB: XLA's temporary memory"
    )
    console.print(f"Memory of the gradient from {first['steps']} to {last['steps']} steps: {growth:.2f} times (XLA).")


if __name__ == "__main__":
    main()
