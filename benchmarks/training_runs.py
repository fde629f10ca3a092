"""Whole commands run to their end or to a limit of time: what they printed when, and what that says of their speed."""

import csv
import os
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

COMPILED = re.compile(r"Finished XLA compilation of (?:jit\()?([^\s()]+)\)? in ([\d.eE+-]+) s")
DEEPMD_STEP = re.compile(r"Batch\s+(\d+): trn: ")
LAMJAX_STEP = re.compile(r"^step (\d+)/")
LAMJAX_PROGRAM = re.compile(r"^program \d+.*: ")
WASTE = re.compile(r"work spent on padding\D+([\d.]+) %")
EPOCH = re.compile(r"batches per epoch\D+(\d+)")
LONG = 0.5  # s: a compilation that counts


class Output(NamedTuple):
    """What a command said when (seconds after its start), and what it took."""

    lines: tuple[tuple[float, str], ...]
    wall: float  # seconds
    finished: bool  # False: stopped at the limit
    peak_mb: float  # resident, of the largest process


class CommandError(RuntimeError):
    """A command failed; the message holds the end of what it said."""


def run(command: Sequence[str], folder: Path, environment: dict[str, str], limit: float) -> Output:
    """Run a command to its end, or stop it and its children after `limit` seconds."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    stopped = threading.Event()

    def stop():
        stopped.set()
        os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(limit, stop)
    timer.start()
    lines = [(time.perf_counter() - begin, line.rstrip("\n")) for line in process.stdout]
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begin
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not stopped.is_set():
        words = "\n".join(line[:300] for _, line in lines[-30:])
        raise CommandError(f"{' '.join(map(str, command))} ended with {process.returncode}. Its last words:\n{words}")
    return Output(tuple(lines), wall, not stopped.is_set(), usage.ru_maxrss / 1e3)


def summary(output: Output, steps: int, folder: Path) -> dict[str, Any]:
    """Times (s), memory, compilations and errors of one training run; `folder` is where it ran."""
    shown = shown_steps(output.lines)
    compiled = compilations(output.lines)
    long = [entry for entry in compiled if entry[2] > LONG]
    reached = steps if output.finished else max([s for _, s in shown] + [sum(n == "train_step" for _, n, _ in long)])
    steady = steady_seconds(shown, [t for t, _, _ in long])
    first = shown[0][0] if shown else None
    if steady is None and first is not None and reached > 1:
        steady = (output.wall - first) / (reached - 1)
    whole = output.wall if output.finished else None
    if not output.finished and steady is not None:
        whole = output.wall + steady * (steps - reached)
    return {
        "wall": output.wall,
        "finished": output.finished,
        "steps": reached,
        "wall_all_steps": whole,  # extrapolated where the run was stopped
        "first_step": first,
        "seconds_per_step": steady,
        "peak_mb": output.peak_mb,
        "compilations": len(long),
        "compile_seconds": sum(seconds for _, _, seconds in compiled),
        **shape_facts(output.lines),
        **errors(folder),
    }


def compilations(lines: Sequence[tuple[float, str]]) -> list[tuple[float, str, float]]:
    """(seconds since the start, function, seconds of compilation); what two loggers wrote counts once."""
    starts = {}
    for seconds, line in lines:
        if match := COMPILED.search(line):
            starts.setdefault(match.groups(), seconds)
    return [(seconds, name, float(duration)) for (name, duration), seconds in starts.items()]


def shown_steps(lines: Sequence[tuple[float, str]]) -> list[tuple[float, int]]:
    """(seconds, step) of the lines that say how far a run is; a first program of lamjax is its first step."""
    steps = []
    for seconds, line in lines:
        if match := DEEPMD_STEP.search(line) or LAMJAX_STEP.search(line):
            steps.append((seconds, int(match[1])))
        elif not steps and LAMJAX_PROGRAM.search(line):
            steps.append((seconds, 1))
    return steps


def steady_seconds(shown: Sequence[tuple[float, int]], compiled: Sequence[float]) -> float | None:
    """Median seconds per step of the intervals without compilations; of the second half, if all have some."""
    rates, clean = [], []
    for (t0, s0), (t1, s1) in zip(shown, shown[1:], strict=False):
        if s1 > s0:
            rates.append((t1 - t0) / (s1 - s0))
            clean += [] if any(t0 < t <= t1 for t in compiled) else [rates[-1]]
    chosen = clean or rates[len(rates) // 2 :]
    return statistics.median(chosen) if chosen else None


def shape_facts(lines: Sequence[tuple[float, str]]) -> dict[str, Any]:
    """What lamjax prints of its shapes: programs met, share of padding, batches per epoch."""
    text = "\n".join(line for _, line in lines)
    programs = sum(bool(LAMJAX_PROGRAM.search(line)) for _, line in lines)
    waste, epoch = WASTE.search(text), EPOCH.search(text)
    facts = {"programs": programs} if programs else {}
    facts |= {"padding": float(waste[1]) / 100} if waste else {}
    return facts | ({"batches_per_epoch": int(epoch[1])} if epoch else {})


def errors(folder: Path) -> dict[str, float]:
    """Root mean squares over the second half of the rows of a learning curve: energy eV/atom, forces eV/Å."""
    rows = curve(folder)
    rows = rows[len(rows) // 2 :]
    names = {"rmse_e": ("rmse_e_train", "rmse_e_trn"), "rmse_f": ("rmse_f_train", "rmse_f_trn")}
    rms = {}
    for key, columns in names.items():
        values = [float(row[column]) for row in rows for column in columns if row.get(column)]
        if values:
            rms[key] = statistics.fmean(x * x for x in values) ** 0.5
    return rms


def curve(folder: Path) -> list[dict[str, str]]:
    """The rows of lamjax's lcurve.csv, or of DeePMD-kit's lcurve.out, below a folder."""
    for path in sorted(folder.rglob("lcurve.csv")):
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    path = folder / "lcurve.out"
    lines = path.read_text().splitlines() if path.exists() else []
    if not lines:  # stopped before the first
        return []
    header, *rows = (line.lstrip("# ").split() for line in lines if line.strip())
    return [dict(zip(header, row, strict=False)) for row in rows if row[0].isdigit()]
