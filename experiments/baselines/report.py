"""Tables and plot of what was measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import ScalarFormatter

from experiments import workflow
from experiments.look import BASELINES
from lamjax.reports import style

COMMAND = "python -m experiments.baselines.run"
PAPER = {  # DPA-2 paper: weighted RMSE on held-out frames of the data sets of pre-training, each model a set alone
    "NequIP": (36.3, 142.5),
    "MACE": (29.1, 112.8),
    "DPA-2": (13.6, 99.2),
}
ZERO_SHOT = {"MACE-MP-0": (104.0, 575.6), "DPA-2 on a single set": (100.2, 628.0), "DPA-2 multi-task": (50.1, 238.8)}
ERRORS = {"e": ("energy (meV/atom)", 1), "f": ("forces (meV/Å)", 0)}
TITLES = {"steps": "**The same steps**", "time": "**The same time**"}


def tell(results: dict[str, Any], out: Path) -> None:
    """results.json, the tables and the plot."""
    seconds = sum(one["seconds"] for one in results["costs"] + results["runs"])
    tables = [costs_table(results["costs"]), *(errors_table(results, budget) for budget in TITLES), paper_table()]
    workflow.write_report(out, workflow.facts(COMMAND, seconds) | results, "\n\n".join(tables))
    plot(out / "baselines.png", results)


def names(some: Sequence[dict], key: str) -> list[Any]:
    """The values of a key, in the order in which they come."""
    return list(dict.fromkeys(one[key] for one in some))


def costs_table(costs: Sequence[dict]) -> str:
    """Size and speed of every model on every set."""
    rows = [
        [
            one["key"],
            one["model"],
            f"{one['parameters']:,}",
            f"{1e3 * one['step']:.0f}",
            f"{one['compilation']:.0f}",
            f"{1e6 * one['inference']:.0f}",
        ]
        for one in costs
    ]
    columns = ["set", "model", "parameters", "a training step (ms)", "its compilation (s)"]
    return workflow.markdown([*columns, "energy and forces (µs an atom)"], rows)


def tests(results: dict[str, Any]) -> list[tuple[str, str, Callable[[dict], dict[str, float]]]]:
    """(set, name, where the errors are in a result) of everything that is measured."""
    chosen = []
    for key in names(results["runs"], "key"):
        chosen.append((key, "held out", lambda one: one["test"]))
        for name in results["not trained"][key]["zero_shot"]:
            chosen.append((key, f"zero-shot, {name}", lambda one, name=name: one["zero_shot"][name]))
    return chosen


def errors_table(results: dict[str, Any], budget: str) -> str:
    """RMSE of every model on every test, mean and range over the seeds."""
    columns = names(results["runs"], "model")
    rows = []
    for key, name, errors in tests(results):
        for kind, (unit, digits) in ERRORS.items():
            cells = [
                workflow.mean_range(
                    [errors(one)[f"rmse_{kind}"] for one in chosen(results, key, model, budget)], digits
                )
                for model in columns
            ]
            nothing = errors(results["not trained"][key])[f"rmse_{kind}"]
            rows.append([f"{key}, {name}", unit, f"{nothing:.{digits}f}", *cells])
    for key in names(results["runs"], "key"):
        runs_of_models = [chosen(results, key, model, budget) for model in columns]
        rows.append([f"{key}, steps", "", "", *(str(runs[0]["steps"]) for runs in runs_of_models)])
    table = workflow.markdown(["test", "RMSE of", "not trained", *columns], rows)
    n = len(names(results["runs"], "seed"))
    return f"{TITLES[budget]}, {n} seed{'s' if n > 1 else ''}\n\n{table}"


def chosen(results: dict[str, Any], key: str, model: str, budget: str) -> list[dict]:
    """The seeds of a model on a set."""
    return [one for one in results["runs"] if (one["key"], one["model"], one["budget"]) == (key, model, budget)]


def paper_table() -> str:
    """What the paper reports, of other data."""
    rows = [["held out, trained on each set alone", name, *errors] for name, errors in PAPER.items()]
    rows += [["zero-shot, energies per element fitted", name, *errors] for name, errors in ZERO_SHOT.items()]
    title = "**DPA-2 paper**, weighted RMSE over its own data sets, 4 million frames, trained to the end"
    return f"{title}\n\n{workflow.markdown(['test', 'model', 'energy (meV/atom)', 'forces (meV/Å)'], rows)}"


def plot(path: Path, results: dict[str, Any]) -> None:
    """Force error against training time, a column a set: held-out frames above, the downstream set below."""
    sets, step = names(results["runs"], "key"), {(one["key"], one["model"]): one["step"] for one in results["costs"]}
    n = len(names(results["runs"], "seed"))
    caption = (
        f"Training steps alone, one core. Small dots: {n} seed{'s' if n > 1 else ''}; large ones: their mean, circles "
        "after the same steps, squares after the same time. Dotted: zero forces."
    )
    with style.figure(path, (4.4, 3.4), (2, len(sets)), caption=caption) as panels:
        for column, key in enumerate(sets):
            shown = [one for one in tests(results) if one[0] == key]
            for row, (_, name, errors) in enumerate((shown[0], shown[-1])):
                axes = panels[row * len(sets) + column]
                _panel(axes, results, key, errors, step)
                axes.set(title=f"{key}, {name}", xlabel="training (s)" if row else "")
        for row in range(2):
            panels[row * len(sets)].set_ylabel("force RMSE (meV/Å)")


def _panel(axes: Any, results: dict[str, Any], key: str, errors: Callable, step: dict[tuple[str, str], float]) -> None:
    points = {}
    for model in names(results["runs"], "model"):
        color, means = BASELINES[model], []
        for budget, marker in (("steps", "o"), ("time", "s")):
            runs = chosen(results, key, model, budget)
            x, y = runs[0]["steps"] * step[key, model], [errors(one)["rmse_f"] for one in runs]
            axes.plot([x] * len(y), y, "o", color=color, alpha=0.4, markersize=4)
            axes.plot(x, np.mean(y), marker, color=color, markersize=9)
            means.append((x, float(np.mean(y))))
        axes.plot(*zip(*means, strict=True), color=color, linewidth=1)
        points[model] = (max(means), color)
    axes.axhline(errors(results["not trained"][key])["rmse_f"], color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ScalarFormatter())
        axis.set_minor_formatter(ScalarFormatter())
    style.name_points(axes, points)
