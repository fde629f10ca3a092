"""What the gradient of a relaxation costs: time over the relaxation itself, and memory, for every adjoint.

Four silicon cells of 64 sites with a vacancy and an interstitial each, side by side, float32.
Unrolled: DPA-2 small (DeePMD-kit's example model) with fresh weights, so many steps. Implicit: the trained model of
`lamjax demo`, relaxed until converged; its memory also with DPA-2 small. Aims: memory from 50 to 800 steps under 1.5
times; the gradient under 4 times the relaxation; the implicit gradient at most one relaxation more, its memory under
1.5 times that of one gradient of a loss of forces.
"""

import argparse
import datetime
import json
import resource
import statistics
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
from common import RESULTS, hardware, usable_cores, versions, warn_if_busy, write_results

import lamjax
from lamjax import neighbors, pytree
from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig, ThreeBodyConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.losses import structure_error
from lamjax.relaxation import Implicit, RelaxConfig, Unrolled, UntilConverged, relax
from lamjax.reports import console, table
from lamjax.system import host_system

BASE = str(resources.files("lamjax") / "assets" / "demo" / "base.lamjax")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument(
        "--timed", type=int, default=200, help="more steps than these are compiled only, for the memory"
    )
    parser.add_argument("--fmax", type=float, default=0.01, help="of the implicit adjoint, eV/Å")
    parser.add_argument("--tol", type=float, nargs="+", default=[1e-2, 1e-3, 1e-4], help="of its linear solve")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for adjoints.json")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.worker:
        print(json.dumps(worker(json.loads(options.worker), options)))
        return
    machine = hardware(usable_cores())
    warn_if_busy(console, machine, "trust `cpu` more than `wall`.")
    forces = in_own_process({"kind": "forces"}, options)
    unrolled = [in_own_process({"kind": "unrolled", "steps": n}, options) for n in options.steps]
    implicit = [in_own_process({"kind": "implicit", "tol": tol}, options) for tol in options.tol]
    show(forces, unrolled, implicit)
    results = {
        "date": datetime.date.today().isoformat(),
        "hardware": machine,
        "versions": versions(("jax", "jaxlib", "jax-md", "lamjax")),
        "precision": "float32",
        "forces": forces,
        "unrolled": unrolled,
        "implicit": implicit,
    }
    console.print(f"Written: {write_results('adjoints', results, options.output)}")


def in_own_process(job: dict, options) -> dict:
    """One row in a fresh process, so that peak memory is its own."""
    command = [sys.executable, __file__, "--worker", json.dumps(job), "--repetitions", str(options.repetitions)]
    command += ["--fmax", str(options.fmax), "--timed", str(options.timed)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The measurement {job} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def worker(job: dict, options) -> dict:
    """One row."""
    match job["kind"]:
        case "forces":
            potential, params = small()
            calls = {"gradient": jax.value_and_grad(force_loss(potential, *cells(potential)))}
            return job | measured(calls, params, options.repetitions)
        case "unrolled":
            potential, params = small()
            value = distance(potential, *cells(potential), RelaxConfig(fmax=0.0, adjoint=Unrolled(job["steps"])))
            calls = {"relaxation": value, "gradient": jax.value_and_grad(value)}
            return job | measured(calls, params, options.repetitions if job["steps"] <= options.timed else 0)
    return job | measured_implicit(job["tol"], options)


def measured_implicit(tol: float, options) -> dict:
    """Time with the trained model, steps and memory; memory of DPA-2 small, which is compiled only."""
    potential, params = lamjax.load(BASE, dtype=np.float32)
    plain = RelaxConfig(options.fmax, 1000, adjoint=UntilConverged())
    config = RelaxConfig(options.fmax, 1000, adjoint=Implicit(tol=tol))
    start = cells(potential)
    calls = {
        "relaxation": distance(potential, *start, plain),
        "gradient": jax.value_and_grad(distance(potential, *start, config)),
    }
    row = measured(calls, params, options.repetitions)
    relaxed = jax.jit(lambda params: relax(potential, params, *start[:2], plain))(params)
    row |= {"n_steps": relaxed.n_steps.tolist(), "converged": relaxed.converged.tolist()}
    potential, params = small()
    gradient = jax.value_and_grad(distance(potential, *cells(potential), config))
    analysis = jax.jit(gradient).lower(params).compile().memory_analysis()
    return row | {"small_temporary_mb": analysis.temp_size_in_bytes / 1e6}


def measured(calls: dict, params, repetitions: int) -> dict:
    """Seconds and megabytes of every call, called in turn; without repetitions only what the compiler says."""
    row: dict = {}
    programs = {}
    for name, function in calls.items():
        begin = time.perf_counter()
        programs[name] = jax.jit(function).lower(params).compile()
        row[name] = {"compile": time.perf_counter() - begin}
        row[name]["temporary_mb"] = programs[name].memory_analysis().temp_size_in_bytes / 1e6
    if not repetitions:
        return row
    reset_peak()
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
    return row | {"peak_rss_mb": peak_mb()}


def distance(potential, systems, lists, target, config: RelaxConfig):
    """The sum of structure errors as a function of the parameters."""

    def value(params):
        relaxed = relax(potential, params, systems, lists, config)
        return jnp.sum(structure_error(relaxed.system, target).dq)

    return value


def force_loss(potential, systems, lists, target):
    """A loss of forces of the same structures: what a step of training on labels costs."""

    def value(params):
        forces = jax.vmap(lambda s, n: lamjax.predict(potential, params, s, n).forces)(systems, lists)
        return jnp.mean(forces**2)

    return value


def small():
    """DPA-2 small with fresh weights."""
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
    return potential, potential.init(jax.random.key(0))


def cells(potential):
    """Four defective cells, their neighbours with headroom, and targets near the starts."""
    perfect = ase.build.bulk("Si", "diamond", a=5.43, cubic=True) * 2
    systems = []
    for k in range(4):
        atoms = perfect.copy()
        del atoms[5 * k]
        atoms += ase.Atoms("Si", positions=[perfect.cell.sum(axis=0) / 2 + (1.36, 1.36, 1.36 * (k % 2))])
        atoms.rattle(0.05, seed=k)
        systems.append(host_system(atoms, np.float32))
    counts = np.max([neighbors.count(s, potential.shells) for s in systems], axis=0)
    widths = neighbors.plan_capacities(tuple(int(n) for n in np.ceil(1.25 * counts)), potential.shells)
    lists = [neighbors.host_neighbors(s, potential.shells, widths) for s in systems]
    systems, lists = jax.tree.map(jnp.asarray, (pytree.stack(systems), pytree.stack(lists)))
    shift = 0.1 * np.random.default_rng(2).normal(size=systems.positions.shape).astype(np.float32)
    return systems, lists, systems._replace(positions=systems.positions + shift)


def reset_peak() -> None:
    """From here on `peak_mb` counts anew where the system can do that (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(text for text in status.read_text().splitlines() if text.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def show(forces: dict, unrolled: list[dict], implicit: list[dict]) -> None:
    """The table and the figures that matter."""
    columns = ["adjoint", "relax s", "grad s", "ratio", "cpu", "relax MB", "grad MB", "peak MB", "compile s"]
    body = []
    for row in (*unrolled, *implicit):
        plain, gradient = row["relaxation"], row["gradient"]
        name = f"unrolled {row['steps']}" if "steps" in row else f"implicit {row['tol']:g}"
        times = ["-"] * 4
        if "wall" in plain:
            ratios = [gradient[clock] / plain[clock] for clock in ("wall", "cpu")]
            times = [f"{x:.2f}" for x in (plain["wall"], gradient["wall"], *ratios)]
        memory = (f"{plain['temporary_mb']:.0f}", f"{gradient['temporary_mb']:.0f}", f"{row.get('peak_rss_mb', 0):.0f}")
        body.append((name, *times, *memory, f"{plain['compile']:.0f}+{gradient['compile']:.0f}"))
    console.print(table("Gradient of a relaxation, 4 cells of 64 atoms, float32", columns, body))
    console.print(
        "ratio: gradient over relaxation, best wall times; cpu: of processor times; MB: XLA's temporary memory"
    )
    growth = unrolled[-1]["gradient"]["temporary_mb"] / unrolled[0]["gradient"]["temporary_mb"]
    first, last = unrolled[0]["steps"], unrolled[-1]["steps"]
    console.print(f"Memory of the unrolled gradient, {last} steps over {first}: {growth:.2f}.")
    over = implicit[-1]["small_temporary_mb"] / forces["gradient"]["temporary_mb"]
    console.print(f"Memory of the implicit gradient over one gradient of a force loss (DPA-2 small): {over:.2f}.")
    console.print(f"Steps of the implicit relaxations: {implicit[-1]['n_steps']}.")


if __name__ == "__main__":
    main()
