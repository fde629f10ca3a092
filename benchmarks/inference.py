"""Energy, forces and virial, and one training step, of DPA-2 and DPA-3 on four systems, float32.

lamjax against DeePMD-kit's `pt` and `jax` backends with the same weights, in one run. See README.md beside this file.
"""

import argparse
import datetime
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import (
    RESULTS,
    ROOT,
    Frames,
    Timing,
    Worker,
    hardware,
    interleave,
    usable_cores,
    warn_if_busy,
    write_results,
)
from systems import DPA3, SYSTEMS, prepare

from lamjax.reports import console, table

MODELS = ("small", "medium", *DPA3)
BACKENDS = ("lamjax", "pt", "jax")
TASKS = {
    "efv": "energy, forces, virial; neighbour list included",
    "model": "energy, forces, virial; neighbour list given",
    "train": "one training step (E, F, V loss, Adam); neighbour list included",
}
TOLERANCE = 1e-4  # float32: relative to the largest component of the reference


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS[:2], choices=MODELS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--cores", type=int, default=usable_cores(), help="cores that every worker may use")
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    parser.add_argument(
        "--deepmd-python", default=sys.executable, help="interpreter that has DeePMD-kit, if it is not this one"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the file of results")
    parser.add_argument("--name", default="inference", help="of the file of results, without .json")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    machine = hardware(options.cores)
    warn_if_busy(console, machine, "trust `cpu` more than `median`.")
    names = ["lamjax", *(deepmd_backends(options))]
    results = {"hardware": machine, "precision": "float32", "systems": SYSTEMS, "tasks": TASKS, "models": {}}
    results["date"] = datetime.date.today().isoformat()
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            content = results["models"][model] = {"systems": {}}
            for system in options.systems:
                content["systems"][system] = measure(model, system, names, Path(folder), options)
                show_agreement(content["systems"][system]["deviation"])
                path = write_results(options.name, results, options.output)  # what is done stays if a later row fails
    show_summary(results["models"])
    console.print(f"Written: {path}")


def deepmd_backends(options) -> list[str]:
    """pt with one thread and with all, and jax, if the interpreter has DeePMD-kit; a note if it has not."""
    wanted = [name for name in options.backends if name != "lamjax"]
    installed = subprocess.run([options.deepmd_python, "-c", "import deepmd"], capture_output=True).returncode == 0
    if wanted and not installed:
        console.print(
            "DeePMD-kit is not installed here: lamjax is measured alone. README.md says how to install it; "
            "--deepmd-python names an interpreter that has it."
        )
    if not installed:
        return []
    threads = sorted({1, options.cores})
    return [f"pt, {n} thread{'s' * (n > 1)}" for n in threads if "pt" in wanted] + ["jax"] * ("jax" in wanted)


def measure(model: str, system: str, names: list[str], folder: Path, options) -> dict:
    """Timings of every task and backend, the agreement with the float64 reference, operations, versions."""
    files = prepare(system, model, folder)
    workers = {name: start(name, model, files, options) for name in names}
    try:
        console.print(f"{model}, {system}: {', '.join(workers)} loaded")
        timings = {}
        for task in options.tasks:
            timings[task] = {k: t._asdict() for k, t in interleave(workers, task, options.repetitions).items()}
            show(f"{model}, {SYSTEMS[system]}, float32: {TASKS[task]}", timings[task])
        return {
            "timings": timings,
            "ratio": {task: ratio(rows) for task, rows in timings.items()},
            "deviation": deviations(f"{model}, {system}", Frames.read(files[1]), workers, options.tasks),
            "operations": operations(workers["lamjax"], timings),
            "versions": {name: worker.facts["versions"] for name, worker in workers.items()},
        }
    finally:
        for worker in workers.values():
            worker.close()


def start(name: str, model: str, files: tuple[Path, Path], options) -> Worker:
    """The worker of a backend; `pt, 2 threads` is backend pt with two threads."""
    backend, _, threads = name.partition(", ")
    python = sys.executable if backend == "lamjax" else options.deepmd_python
    words = (backend, *files, threads.split()[0] if threads else 0)
    return Worker(f"{name} ({model})", ROOT / "backends.py", words, python, options.cores)


def operations(worker: Worker, timings: dict[str, dict]) -> dict:
    """Operations of lamjax's tasks and the bytes that these read and write, and the rates of these cores for both.

    The fraction of the peak is the rate of operations by that of a large product of matrices.
    """
    limits, counts = worker.ask("limits"), {}
    for task, rows in timings.items():
        work = worker.ask("work", task)
        fraction = work["flops"] / rows["lamjax"]["median"] / limits["flops_per_s"]
        counts[task] = {"gflop": work["flops"] / 1e9, "gbyte": work["bytes"] / 1e9, "fraction_of_peak": fraction}
    rates = {"peak_gflop_per_s": limits["flops_per_s"] / 1e9, "bandwidth_gbyte_per_s": limits["bytes_per_s"] / 1e9}
    return {**rates, "tasks": counts}


def ratio(rows: dict[str, dict]) -> dict[str, float | str]:
    """How many times faster lamjax is than the best other backend, by medians of wall and of processor time."""
    others = {name: row for name, row in rows.items() if name != "lamjax"}
    if not others:
        return {}
    best = min(others, key=lambda name: others[name]["median"])
    return {
        "against": best,
        "wall": others[best]["median"] / rows["lamjax"]["median"],
        "best_wall": min(row["best"] for row in others.values()) / rows["lamjax"]["best"],
        "cpu": min(row["cpu"] for row in others.values()) / rows["lamjax"]["cpu"],
    }


def deviations(where: str, frames: Frames, workers: dict[str, Worker], tasks: list[str]) -> dict:
    """Largest deviation of E, F, V from the float64 reference and spread of the first loss, relative; checked."""
    expected = [x.reshape(-1) for x in (frames.energy, frames.forces, frames.virial)]
    relative_errors = {}
    for task in set(tasks) - {"train"}:
        for name, worker in workers.items():
            got = [np.array(x) for x in worker.ask("result", task)["result"]]
            relative = [float(abs(g - e).max() / abs(e).max()) for g, e in zip(got, expected, strict=True)]
            relative_errors[f"{name}: {task}"] = dict(zip(("energy", "forces", "virial"), relative, strict=True))
    if "train" in tasks:
        loss = {name: worker.ask("result", "train")["result"][0][0] for name, worker in workers.items()}
        middle = float(np.median(list(loss.values())))
        relative_errors |= {f"{name}: first loss": {"loss": abs(x / middle - 1)} for name, x in loss.items()}
    wrong = {name: d for name, d in relative_errors.items() if not max(d.values()) <= TOLERANCE}
    if wrong:
        raise SystemExit(
            f"{where}: the backends disagree by more than {TOLERANCE:g}, no timing is worth anything: {wrong}"
        )
    return relative_errors


def show(title: str, rows: dict[str, dict]) -> None:
    """The table of one task and how lamjax compares."""
    columns = ["", "median ms", "best ms", "cpu ms", "first call s", "peak MB", "above idle MB"]
    body = []
    for name, t in ((name, Timing(**row)) for name, row in rows.items()):
        milliseconds = [f"{1e3 * x:.1f}" for x in (t.median, t.best, t.cpu)]
        body.append((name, *milliseconds, f"{t.first:.1f}", f"{t.peak_mb:.0f}", f"{t.above_idle_mb:.0f}"))
    console.print(table(title, columns, body))
    if r := ratio(rows):
        console.print(
            f"lamjax is {r['wall']:.2f} times as fast as {r['against']} (medians; best calls {r['best_wall']:.2f}, "
            f"processor time {r['cpu']:.2f})\n"
        )


def show_agreement(deviation: dict[str, dict]) -> None:
    """The worst relative deviation of each quantity over all backends and tasks."""
    worst: dict[str, float] = {}
    for row in deviation.values():
        worst |= {name: max(value, worst.get(name, 0.0)) for name, value in row.items()}
    console.print("Agreement, relative: " + ", ".join(f"{name} {value:.1e}" for name, value in worst.items()) + "\n")


def show_summary(models: dict[str, dict]) -> None:
    """One row for each model, system and task."""
    columns = ["model", "system", "task", "lamjax ms", "best other ms", "ratio, medians", "ratio, best"]
    columns += ["peak MB, lamjax / least other", "first call s", "GFLOP", "% of peak"]
    body = [
        (model, system, task, *summary_cells(rows, measured["ratio"][task], measured["operations"]["tasks"][task]))
        for model, content in models.items()
        for system, measured in content["systems"].items()
        for task, rows in measured["timings"].items()
    ]
    console.width = max(console.width, 160)  # a log file counts as 80 columns, too few for this table
    console.print(table("float32", columns, body))


def summary_cells(rows: dict[str, dict], compared: dict, counted: dict) -> tuple[str, ...]:
    """The cells of a summary row after its names; a dash where there is no other backend."""
    own, others = rows["lamjax"], [row for name, row in rows.items() if name != "lamjax"]
    against, ratios, least = "-", ("-", "-"), "-"
    if others:
        against = f"{1e3 * rows[compared['against']]['median']:.1f} ({compared['against']})"
        ratios = (f"{compared['wall']:.2f}", f"{compared['best_wall']:.2f}")
        least = f"{min(row['peak_mb'] for row in others):.0f}"
    memory = f"{own['peak_mb']:.0f} / {least}"
    speed = (f"{counted['gflop']:.2f}", f"{100 * counted['fraction_of_peak']:.1f}")
    return f"{1e3 * own['median']:.1f}", against, *ratios, memory, f"{own['first']:.1f}", *speed


if __name__ == "__main__":
    main()
