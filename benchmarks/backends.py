"""A worker process: one backend with one model on the frames of one system, timed call by call.

Started by `common.Worker` with: backend, model file (`.dp`), frames (`.npz`), threads (0: the backend's own choice). It
answers `call TASK`, `result TASK`, `work TASK`, `limits`, `memory` and `reset_peak` with one JSON line each. Every
task goes from numpy arrays to numpy arrays and builds the neighbour list anew, except `model`, which is given the list.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from common import Frames, versions

MODULES = {"lamjax": "backend_lamjax", "pt": "backend_pt", "jax": "backend_jax"}  # each imports what it measures


def timed(function) -> tuple[dict, tuple]:
    """Wall and processor seconds of one call, and what it returned."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = function()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}, result


def memory() -> dict[str, float]:
    """Resident memory now and at its peak (MB)."""
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file if line.startswith("Vm"))
    return {"resident_mb": int(lines["VmRSS"].split()[0]) / 1e3, "peak_mb": int(lines["VmHWM"].split()[0]) / 1e3}


def reset_peak() -> dict[str, bool]:
    """Begin a new peak at the memory in use now (Linux)."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return {"reset": True}


def serve(tasks: Mapping[str, Callable[[], Iterable]], out, others: Mapping[str, Callable[..., dict]] = {}) -> None:
    """Answer commands from stdin until it ends: calls of tasks and their first results, memory, and `others`."""
    first: dict[str, list] = {}
    for line in sys.stdin:
        command, *task = line.split()
        match command:
            case "call":
                answer, result = timed(tasks[task[0]])
                first.setdefault(task[0], [np.asarray(x, np.float64).reshape(-1).tolist() for x in result])
            case "result":
                answer = {"result": first[task[0]]}
            case "memory":
                answer = memory()
            case "reset_peak":
                answer = reset_peak()
            case _:
                answer = others[command](*task)
        print(json.dumps(answer), file=out, flush=True)


def limit(threads: int) -> None:
    """The cores and threads that this process may use; to be set before the libraries load."""
    if cores := os.environ.get("BENCHMARK_CORES"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    if threads:
        os.environ |= {"OMP_NUM_THREADS": str(threads), "DP_INTRA_OP_PARALLELISM_THREADS": str(threads)}
        os.environ["DP_INTER_OP_PARALLELISM_THREADS"] = "1"


def main() -> None:
    name, model, frames, threads = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    limit(int(threads))
    backend = importlib.import_module(MODULES[name]).Backend(model, Frames.read(frames))
    print(json.dumps({"versions": versions(backend.packages)}), file=out, flush=True)
    tasks = {"efv": backend.efv, "model": backend.model, "train": backend.train}
    others = {  # of the backend of lamjax
        "work": lambda task: backend.work(task),
        "limits": lambda: {"flops_per_s": backend.matmul(), "bytes_per_s": backend.bandwidth()},
    }
    serve(tasks, out, others)


if __name__ == "__main__":
    main()
