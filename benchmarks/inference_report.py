"""The table of a file of results of `inference.py`, between its marks in README.md.

python benchmarks/inference_report.py dpa3
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT

COLUMNS = (
    "model",
    "system",
    "task",
    "lamjax cpu ms",
    "other cpu ms",
    "ratio, processor time",
    "ratio, medians of wall time",
    "peak MB lamjax / other",
    "first call s",
)


def lines(columns: Iterable[str], body: Iterable[Iterable[Any]]) -> str:
    """A table in Markdown."""
    columns = tuple(columns)
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (columns, ["---"] * len(columns), *body))


def rows(models: dict) -> list[tuple[str, ...]]:
    """A row for each model, system and task that was compared."""
    return [
        (model, system, task, *cells(timings, measured["ratio"][task]))
        for model, content in models.items()
        for system, measured in content["systems"].items()
        for task, timings in measured["timings"].items()
        if measured["ratio"][task]
    ]


def cells(timings: dict, ratio: dict) -> tuple[str, ...]:
    """Times (median processor time), ratios and memory of one task."""
    own = timings["lamjax"]
    name = min((n for n in timings if n != "lamjax"), key=lambda n: timings[n]["cpu"])
    other, least = timings[name], min(t["peak_mb"] for n, t in timings.items() if n != "lamjax")
    return (
        f"{1e3 * own['cpu']:.0f}",
        f"{1e3 * other['cpu']:.0f} ({name})",
        f"{ratio['cpu']:.2f}",
        f"{ratio['wall']:.2f}",
        f"{own['peak_mb']:.0f} / {least:.0f}",
        f"{own['first']:.0f}",
    )


def roofline(results: dict) -> str:
    """How far each task is from what processor and memory allow, as lines of Markdown.

    The least time is the larger of two: all operations at the rate of a large product of matrices, and all bytes that
    the compiled operations read and write at the rate at which memory is read and written. Bytes that a cache holds
    move faster, so that a task can beat the second.
    """
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
    body = []
    for model, content in results["models"].items():
        for system, measured in content["systems"].items():
            rates = measured["operations"]
            for task, work in rates["tasks"].items():
                seconds = measured["timings"][task]["lamjax"]["median"]
                products = work["gflop"] / rates["peak_gflop_per_s"]
                moved = work["gbyte"] / rates["bandwidth_gbyte_per_s"]
                numbers = (1e3 * seconds, work["gflop"], 1e3 * products, work["gbyte"], 1e3 * moved)
                cells = [f"{x:.{digits}f}" for x, digits in zip(numbers, (1, 2, 1, 2, 1), strict=True)]
                body.append((model, system, task, *cells, f"{100 * max(products, moved) / seconds:.0f} %"))
    return lines(columns, body)


def memory(results: dict) -> str:
    """What `dpa3_memory.py` found as lines of Markdown."""
    columns = ("model", "task", "atoms", "temporaries MB", "compiled in s of processor time")
    body = [
        (model, task, str(content["atoms"]), *(f"{one[k]:.0f}" for k in ("temporaries_mb", "compile_cpu_s")))
        for model, content in results["models"].items()
        for task, one in content["tasks"].items()
    ]
    return lines(columns, body)


def markdown(results: dict) -> str:
    """Machine and table as lines of Markdown."""
    machine = results["hardware"]
    about = (
        f"{machine['cpu']}, {machine['cores_used']} of {machine['cores']} cores, load before {machine['load_before']}"
    )
    return f"{about}, {results['date']}.\n\n{lines(COLUMNS, rows(results['models']))}"


def write(name: str, text: str, path: Path = ROOT / "README.md") -> None:
    """Replace what stands between the marks of this name; ValueError if there are none."""
    begin, end = (f"<!-- {name}: {word} -->" for word in ("begin", "end"))
    before, opened, rest = path.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"{path}: no lines {begin} and {end} between which the table could go. Add them.")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        results = json.loads((RESULTS / f"{name}.json").read_text())
        write(name, memory(results) if name == "dpa3_memory" else markdown(results))
