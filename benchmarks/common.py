"""What every benchmark needs: worker processes, interleaved timing, facts about the machine, results as JSON."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent
PRESETS = ROOT.parent / "tests" / "fixtures" / "presets"
RESULTS = ROOT / "results"
PREFACTORS = {"e": 0.02, "f": 1000.0, "v": 0.01}  # of the energy, force and virial terms of a loss, constant
LEARNING_RATE = 1e-5
WARM_UP = 3  # calls after the first that do not count: TorchScript and nnx still compile in the second and third
REST = 0.25  # s between two calls, so that threads that still spin in one process do not slow the next


class Timing(NamedTuple):
    """Seconds per call over the repetitions, and of the first call (tracing, compiling, warming up)."""

    median: float
    best: float
    cpu: float  # median of processor time, all threads together
    first: float
    peak_mb: float  # peak resident memory of the process during warm calls
    above_idle_mb: float  # of that, what the calls added to the loaded model


class Frames(NamedTuple):
    """Structures with equal numbers of atoms, and their energy, forces and virial in float64."""

    positions: np.ndarray  # (n_frames, n_atoms, 3) Å
    cell: np.ndarray  # (n_frames, 3, 3) Å
    periodic: bool  # in all three directions, or in none
    numbers: np.ndarray  # (n_frames, n_atoms) atomic numbers
    types: np.ndarray  # (n_frames, n_atoms) index into the type map
    energy: np.ndarray  # (n_frames,) eV
    forces: np.ndarray  # (n_frames, n_atoms, 3) eV/Å
    virial: np.ndarray  # (n_frames, 3, 3) eV

    def write(self, path: Path) -> None:
        np.savez(path, **self._asdict())

    @classmethod
    def read(cls, path: str | Path) -> "Frames":
        data = cls(**np.load(path))
        return data._replace(periodic=bool(data.periodic))

    def labelled(self) -> "Frames":
        """With labels that differ smoothly from the model's own answer, so that no gradient vanishes."""
        wave = 0.1 * np.sin(np.arange(self.forces.size)).reshape(self.forces.shape)
        return self._replace(energy=self.energy + 1.0, forces=self.forces + wave, virial=self.virial + np.eye(3))


class WorkerError(RuntimeError):
    """A worker process died or reported an error; the message holds the end of what it said."""


class Worker:
    """A long-lived process that answers JSON lines: one backend, one model, one number of threads."""

    def __init__(self, name: str, script: Path, arguments: Iterable[str], python: str = sys.executable, cores=None):
        self.name = name
        self._log = tempfile.TemporaryFile("w+")
        environment = dict(os.environ, PYTHONUNBUFFERED="1")
        if cores is not None:
            environment["BENCHMARK_CORES"] = str(cores)
        self._process = subprocess.Popen(
            [python, str(script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.facts = self._read()

    def ask(self, command: str, task: str = "") -> dict[str, Any]:
        """Send one command and wait for its answer."""
        try:
            print(command, task, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # the answer that cannot come is reported below
        return self._read()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._log.close()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise WorkerError(f"{self.name} ended without an answer. Its last words:\n{self._log.read()[-2000:]}")
        return json.loads(line)


def interleave(workers: Mapping[str, Worker], task: str, repetitions: int) -> dict[str, Timing]:
    """One first call each, then the warm calls A B C A B C ..., alone on the machine and rested in between."""
    idle, first, calls = {}, {}, {name: [] for name in workers}
    for name, worker in workers.items():
        idle[name] = worker.ask("memory")["resident_mb"]
        first[name] = worker.ask("call", task)["wall"]
        for _ in range(WARM_UP):
            worker.ask("call", task)
        worker.ask("reset_peak")
    for _ in range(repetitions):
        for name, worker in workers.items():
            time.sleep(REST)
            calls[name].append(worker.ask("call", task))
    peak = {name: worker.ask("memory")["peak_mb"] for name, worker in workers.items()}
    return {
        name: Timing(
            median=statistics.median(c["wall"] for c in calls[name]),
            best=min(c["wall"] for c in calls[name]),
            cpu=statistics.median(c["cpu"] for c in calls[name]),
            first=first[name],
            peak_mb=peak[name],
            above_idle_mb=peak[name] - idle[name],
        )
        for name in workers
    }


def hardware(cores: int) -> dict[str, Any]:
    """Processor, cores used and present, memory, load before the run."""
    return {
        "cpu": _processor(),
        "cores_used": cores,
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def warn_if_busy(console, machine: dict[str, Any], advice: str) -> None:
    """A line if `hardware` found other work on the machine, and what that means for the times."""
    if machine["load_before"] > 0.3:
        console.print(f"[yellow]The machine is busy (load {machine['load_before']}): {advice}")


def versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed here."""
    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_results(name: str, results: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """`name`.json in the folder, appearing whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)
    return path


def _processor() -> str:
    """What the processor calls itself, with family and model, for virtual machines name it vaguely."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in path.read_text().split("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    name = facts.get("model name", platform.machine())
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')})"
