"""The tables of `training.py`: ratios, lines in a terminal, and the tables in README.md between their marks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inference_report import lines, write
from training_data import CASES

from lamjax.reports import console, table

OWN = ("lamjax", "lamjax, warm cache")
COLUMNS = (
    "case",
    "code",
    "wall s",
    "first step after s",
    "ms/step, steady",
    "structures/step",
    "programs (compile s)",
    "padding %",
    "peak MB",
    "E meV/atom",
    "F meV/Å",
)


def ratios(codes: Mapping[str, dict]) -> dict[str, Any]:
    """How many times faster lamjax is, cold, than the fastest other code by wall time (extrapolated where stopped).

    Also: with what was measured only (a stopped run takes at least its limit), per structure seen, and of memory.
    """
    others = {name: one for name, one in codes.items() if name not in OWN and one["wall_all_steps"]}
    own = codes.get("lamjax")
    if not others or own is None or not own["wall_all_steps"]:
        return {}
    best = min(others, key=lambda name: others[name]["wall_all_steps"])
    return {
        "against": best,
        "extrapolated": not (others[best]["finished"] and own["finished"]),
        "wall": others[best]["wall_all_steps"] / own["wall_all_steps"],
        "at_least": min(one["wall"] for one in others.values()) / own["wall_all_steps"],
        "per_structure": min(_per_structure(one) for one in others.values()) / _per_structure(own),
        "memory": own["peak_mb"] / min(one["peak_mb"] for one in others.values()),
    }


def _per_structure(one: dict) -> float:
    """Seconds of the whole command for every structure that it trained on, up to the number of steps."""
    return one["wall_all_steps"] / one["structures_per_step"]


def rows_of(one: dict) -> list[str]:
    """A run in words, for the terminal."""
    return [f"{name} {value}" for name, value in zip(COLUMNS[2:], cells(one), strict=True) if value != "-"]


def cells(one: dict) -> tuple[str, ...]:
    """The cells of a row after case and code."""
    wall = _text(one["wall_all_steps"] or one["wall"], ".0f")
    if not one["finished"]:
        known = one["wall_all_steps"] is not None
        wall = f"{wall} (extrapolated from {one['steps']} steps)" if known else f"> {wall} (no step was done)"
    programs = f"{one.get('programs', one['compilations'])} ({one['compile_seconds']:.0f})"
    return (
        wall,
        _text(one["first_step"], ".1f"),
        _text(one["seconds_per_step"], ".1f", 1e3),
        _text(one["structures_per_step"], ".2f"),
        programs if one["compile_seconds"] else "-",
        _text(one.get("padding"), ".1f", 100),
        _text(one["peak_mb"], ".0f"),
        _text(one.get("rmse_e"), ".0f", 1e3),
        _text(one.get("rmse_f"), ".0f", 1e3),
    )


def body(cases: Mapping[str, dict]) -> list[tuple[str, ...]]:
    """All rows of the runs on one number of cores."""
    rows = [(case, name, one) for case in CASES if case in cases for name, one in cases[case]["codes"].items()]
    order = {"lamjax": 0, "pt": 1, "jax": 2}
    rows.sort(key=lambda row: (row[0], order[row[1].partition(",")[0]], row[1]))
    return [(case, name, *cells(one)) for case, name, one in rows]


def verdicts(cases: Mapping[str, dict]) -> list[str]:
    """One sentence for each case that was compared."""
    sentences = []
    for case in CASES:
        ratio = cases.get(case, {}).get("ratio")
        if ratio:
            least = f" (extrapolated; measured: more than {ratio['at_least']:.2f})" if ratio["extrapolated"] else ""
            sentences.append(
                f"({case}) {CASES[case]}: lamjax, cold, is {ratio['wall']:.2f} times as fast as {ratio['against']}"
                f"{least}, {ratio['per_structure']:.2f} times per structure, with {ratio['memory']:.2f} times the "
                "least peak memory of the others."
            )
    return sentences


def scaling_rows(scaling: Mapping[str, dict]) -> list[str]:
    """A line for each case and number of virtual devices."""
    rows = []
    for case, place in sorted(scaling.items()):
        first = place["devices"].get("1", {}).get("structures_per_second")
        for n, one in place["devices"].items():
            speed = one["structures_per_second"]
            known = f"{speed:.1f} structures/s" if speed else "no steady step"
            known += f", {speed / first:.2f} times that of one" if first and speed else ""
            padding = f", padding {100 * one['padding']:.1f} %" if "padding" in one else ""
            rows.append(f"({case}) batch {place['batch_size']}, {n} virtual devices: {known}{padding}")
    return rows


def show(results: dict[str, Any]) -> None:
    """Everything that is known, also from earlier runs."""
    console.width = max(console.width, 190)  # a log file counts as 80 columns, too few for these tables
    for cores, cases in results["runs"].items():
        console.print(table(f"Training commands, DPA-2 small, float32, {cores}", COLUMNS, body(cases)))
        console.print(*verdicts(cases), sep="\n")
    if results["scaling"]:
        console.print(*scaling_rows(results["scaling"]), sep="\n")


def write_tables(results: dict[str, Any], path: Path) -> None:
    """The tables between the marks of a Markdown file; ValueError if it has no marks."""
    write("training.py", markdown(results), path)


def markdown(results: dict[str, Any]) -> str:
    """The tables and what they mean."""
    parts = []
    for cores, cases in results["runs"].items():
        parts += [f"{about(cases)}, {cores}.", lines(COLUMNS, body(cases))]
        parts += ["\n".join(f"- {sentence}" for sentence in verdicts(cases))]
    if results["scaling"]:
        parts += ["Virtual devices share the cores of one machine:"]
        parts += ["\n".join(f"- {sentence}" for sentence in scaling_rows(results["scaling"]))]
    return "\n\n".join(parts)


def about(cases: Mapping[str, dict]) -> str:
    """Machine, load and steps of the runs of a table."""
    runs = [one for place in cases.values() for one in place["codes"].values()]
    loads = [one["machine"]["load_before"] for one in runs]
    steps = "/".join(str(n) for n in sorted({one["wanted"] for one in runs}))
    rounds = "/".join(str(n) for n in sorted({len(one["rounds"]) for one in runs}))
    return f"{runs[0]['machine']['cpu']}, load before {min(loads)} to {max(loads)}, {steps} steps, rounds: {rounds}"


def _text(value: float | None, style: str, scale: float = 1.0) -> str:
    return "-" if value is None else f"{scale * value:{style}}"
