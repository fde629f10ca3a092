"""How far each task of `inference.py` is from what processor and memory allow, lamjax alone, float32.

    python benchmarks/roofline.py --cores 1

The least time is the larger of two: all operations at the rate of a large product of matrices, and all bytes that the
compiled operations read and write at the rate at which memory is read and written. Bytes that a cache holds move
faster, so that a task can beat the second.
"""

import argparse
import datetime
import tempfile
from pathlib import Path

from common import RESULTS, Frames, hardware, interleave, usable_cores, warn_if_busy, write_results
from inference import MODELS, TASKS, start
from systems import SYSTEMS, prepare

from lamjax.reports import console


def measure(model: str, system: str, folder: Path, options) -> dict:
    """Times, operations and bytes of one model on one system, and the rates of the same process."""
    files = prepare(system, model, folder)
    worker = start("lamjax", model, files, options)
    try:
        tasks = {}
        for task in options.tasks:
            timing = interleave({"lamjax": worker}, task, options.repetitions)["lamjax"]
            tasks[task] = {"cpu": timing.cpu, "wall": timing.median}
        limits = worker.ask("limits")
        for task, found in tasks.items():
            found |= worker.ask("work", task)
        return {"atoms": int(Frames.read(files[1]).numbers.size), "limits": limits, "tasks": tasks}
    finally:
        worker.close()


def table(results: dict) -> str:
    """The results as lines of Markdown."""
    columns = (
        "model",
        "system",
        "task",
        "ms",
        "GFLOP",
        "at the peak ms",
        "GB",
        "at the bandwidth ms",
        "least / measured",
    )
    lines = [columns, ("---",) * len(columns)]
    for model, systems in results["models"].items():
        for system, found in systems.items():
            for task, one in found["tasks"].items():
                flops, moved = (
                    one["flops"] / found["limits"]["flops_per_s"],
                    one["bytes"] / found["limits"]["bytes_per_s"],
                )
                lines.append(
                    (
                        model,
                        system,
                        task,
                        f"{1e3 * one['wall']:.1f}",
                        f"{one['flops'] / 1e9:.2f}",
                        f"{1e3 * flops:.1f}",
                        f"{one['bytes'] / 1e9:.2f}",
                        f"{1e3 * moved:.1f}",
                        f"{100 * max(flops, moved) / one['wall']:.0f} %",
                    )  # fmt: skip
                )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--tasks", nargs="+", default=["efv", "train"], choices=list(TASKS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--cores", type=int, default=usable_cores(), help="cores that the process may use")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the file of results")
    options = parser.parse_args()
    machine = hardware(options.cores)
    warn_if_busy(console, machine, "times are too long, rates too low.")
    results = {"hardware": machine, "precision": "float32", "date": datetime.date.today().isoformat(), "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        for model in options.models:
            found = results["models"][model] = {}
            for system in options.systems:
                console.print(f"{model}, {system}")
                found[system] = measure(model, system, Path(folder), options)
                path = write_results("roofline", results, options.output)  # what is done stays if a later row fails
    console.print(f"Written: {path}")


if __name__ == "__main__":
    main()
