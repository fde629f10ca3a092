"""Table and plot of students beside their teachers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import workflow
from experiments.distillation.cases import CASES
from experiments.look import STUDENTS
from lamjax.reports import style

COMMAND = "python -m experiments.distillation.run --water-train data_0 data_1 data_2 --water-test data_3"
COLUMNS = [
    "model",
    "parameters",
    "DFT: energy (meV/atom)",
    "forces (meV/Å)",
    "teacher: energy (meV/atom)",
    "forces (meV/Å)",
    "MD (ms/step)",
    "times faster",
    "memory (kB/atom)",
    "largest difference in g(r)",
]


def tell(results: Sequence[dict], speeds: dict[str, dict], out: Path) -> None:
    """results.json, the tables of the README and the plot."""
    out.mkdir(parents=True, exist_ok=True)
    facts = workflow.facts(COMMAND, sum(one["seconds"] for one in results))
    tables = "\n\n".join(table(case, models, speeds[case]) for case, models in by_case(results).items())
    workflow.write_report(out, {**facts, "speed": speeds, "runs": list(results)}, tables)
    plot(out, results, speeds)


def by_case(results: Sequence[dict]) -> dict[str, dict[str, list[dict]]]:
    """{case: {model: its seeds}}, the teacher first."""
    cases: dict[str, dict[str, list[dict]]] = {}
    for one in results:
        cases.setdefault(one["case"], {}).setdefault(f"{one['student']} {one['way']}".strip(), []).append(one)
    return cases


def table(case: str, models: dict[str, list[dict]], speed: dict) -> str:
    """Errors, speed and memory; mean and range over the seeds."""
    (first,) = models["teacher"]
    rows = []
    for name, runs in models.items():
        cells = [name, f"{runs[0]['parameters']:,}"]
        for against in ("dft", "teacher"):
            for key, digits in (("e", 1), ("f", 0)):
                values = [one["errors"][against][key] for one in runs if against in one["errors"]]
                cells.append(_several(values, digits) if values else "")
        costs = speed[name]
        cells += [f"{costs['ms_per_step']:.1f}", f"{speed['teacher']['ms_per_step'] / costs['ms_per_step']:.1f}"]
        cells += [f"{costs['kb_per_atom']:.0f}"]
        apart = [difference(one["rdf"], first["rdf"]) for one in runs if one is not first]
        cells += [_several(apart, 2) if apart else ""]
        rows.append(cells)
    title = (
        f"**{case}** ({CASES[case].level}); steps of {speed['atoms']:,} atoms, g(r) at {CASES[case].temperature:g} K"
    )
    return f"{title}\n\n{workflow.markdown(COLUMNS, rows)}"


def _several(values: Sequence[float], digits: int) -> str:
    return workflow.mean_range(values, digits) if len(values) > 1 else f"{values[0]:.{digits}f}"


def difference(one: dict, other: dict) -> float:
    """The largest difference of any radial distribution function, in bins of about 0.2 Å."""
    return max(
        float(np.abs(np.subtract(one[pair], other[pair]).reshape(-1, 4).mean(axis=1)).max()) for pair in pairs(other)
    )


def pairs(rdf: dict) -> list[str]:
    """The pairs of elements."""
    return [key for key in rdf if key != "r"]


def plot(out: Path, results: Sequence[dict], speeds: dict[str, dict]) -> None:
    """For each case a figure: radial distribution functions of teacher and students, and error against speed."""
    for case, models in by_case(results).items():
        functions = pairs(models["teacher"][0]["rdf"])[:3]
        caption = "Wide: teacher; lines and dots of a colour: seeds of a kind of student. Right: lower left is better."
        path = out / f"distillation_{case}.png"
        with style.figure(path, (4.2, 3.9), (1, len(functions) + 1), case, caption) as panels:
            for axes, pair in zip(panels, functions, strict=False):
                for name, runs in models.items():
                    for one in runs:
                        wide, alpha = (5, 0.6) if name == "teacher" else (1.2, 0.9)
                        rdf = one["rdf"]
                        axes.plot(rdf["r"], rdf[pair], color=STUDENTS[name], linewidth=wide, alpha=alpha)
                teacher = models["teacher"][0]["rdf"]
                inside = [g for r, g in zip(teacher["r"], teacher[pair], strict=True) if r > 1.5]
                axes.set(xlabel="distance (Å)", ylabel="g(r)", title=pair, ylim=(0, 1.25 * max(inside)))
            _speed(panels[-1], models, speeds[case])


def _speed(axes, models: dict[str, list[dict]], speed: dict) -> None:
    """Force error on held-out DFT against the time of a step; colours as beside it."""
    points, furthest, highest = (
        {},
        0.0,
        1.3 * max(one["errors"]["dft"]["f"] for runs in models.values() for one in runs),
    )
    for name, runs in models.items():
        x, y = 1000 * speed[name]["ms_per_step"] / speed["atoms"], [one["errors"]["dft"]["f"] for one in runs]
        axes.plot([x] * len(y), y, "o", color=STUDENTS[name], markersize=8, alpha=0.8)
        points[name] = ((x, float(np.mean(y))), STUDENTS[name])
        furthest = max(furthest, x)
    axes.set(xlabel="time of an MD step per atom (µs)", ylabel="force RMSE on held-out DFT (meV/Å)")
    axes.set(ylim=(0, highest), xlim=(0, 1.5 * furthest))
    style.name_points(axes, points)
