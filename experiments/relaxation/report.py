"""Tables and plots of what was measured."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullFormatter, ScalarFormatter

from experiments import workflow
from experiments.look import METHODS
from experiments.relaxation.methods import BASE, SETTINGS, SHARES, START
from lamjax.reports import style

FIGURES = ("dq", "rmsd", "largest", "n_steps", "converged", "failed", "volume")  # structure by structure
BASIN = 0.5  # Å; in the right basin is a structure of which no atom is farther off
COMMAND = "python -m experiments.relaxation.run"


class Group:
    """The runs of one way to train, a seed each, beside the base on the same held-out structures."""

    def __init__(self, runs: Sequence[dict], base: Sequence[dict]):
        order = {one["seed"]: one for one in base}
        self.runs, self.base = list(runs), [order[one["seed"]] for one in runs]

    def pooled(self, key: str) -> np.ndarray:
        """A quantity of all held-out structures of all seeds."""
        return np.concatenate([np.asarray(one[key], float) for one in self.runs])

    @property
    def before(self) -> np.ndarray:
        """Dq of the same structures with the base."""
        return np.concatenate([np.asarray(one["dq"]) for one in self.base])

    @property
    def better(self) -> np.ndarray:
        """Which of these ended nearer to their target than with the base."""
        return self.pooled("dq") < self.before

    @property
    def change(self) -> float:
        """Change of the median Dq of all structures of all seeds in per cent; negative is better."""
        return float(100 * (np.median(self.pooled("dq")) / np.median(self.before) - 1))

    @property
    def gains(self) -> np.ndarray:
        """Change of the median Dq of each seed in per cent; negative is better."""
        return self._changes(lambda one: np.median(one["dq"]))

    def forces(self, where: str) -> np.ndarray:
        """Change of the force RMSE of each seed in per cent."""
        return self._changes(lambda one: one[f"{where}_rmse_f"])

    def _changes(self, quantity: Callable[[dict], float]) -> np.ndarray:
        return np.array(
            [100 * (quantity(one) / quantity(base) - 1) for one, base in zip(self.runs, self.base, strict=True)]
        )


def tell(results: dict[str, list[dict]], out: Path, base: str = "small", digest: str | None = None) -> None:
    """results.json, tables and plots of the studies that are finished; the base by its name and its file's SHA-256."""
    out.mkdir(parents=True, exist_ok=True)
    tables = []
    for study, runs in results.items():
        table, plot = STUDIES[study]
        tables.append(table(runs))
        plot(out, runs)
    seconds = sum(one["seconds"] + one["seconds_judged"] for runs in results.values() for one in runs)
    command = COMMAND if base == "small" else f"{COMMAND} --base {base}"
    facts = workflow.facts(command, seconds) | {"base": digest or workflow.shipped()}
    workflow.write_report(out, {**facts, **results}, "\n\n".join(tables))


def chosen(runs: Iterable[dict], **facts: Any) -> list[dict]:
    """The runs of which these things are true."""
    return [one for one in runs if all(one[key] == value for key, value in facts.items())]


def groups(runs: Sequence[dict], key: str, names: Iterable[str], dataset: str) -> dict[str, Group]:
    """The runs on one set by the value of `key`, the base first."""
    selected = chosen(runs, key=dataset)
    base = chosen(selected, method=BASE)
    first = {BASE: Group(base, base)}
    rest = [one for one in selected if one["method"] != BASE]
    return first | {name: Group(chosen(rest, **{key: name}), base) for name in names}


def by_method(runs: Sequence[dict], dataset: str) -> dict[str, Group]:
    """The runs on one set, method by method."""
    return groups(
        runs,
        "method",
        dict.fromkeys(one["method"] for one in runs if one["key"] == dataset and one["method"] != BASE),
        dataset,
    )


def line(name: str, group: Group) -> list[str]:
    """The numbers of one way to train."""
    dq, gains = group.pooled("dq"), group.gains
    base = name == BASE
    spread = "" if base else f"{group.change:+.0f}"
    spread += f" ({gains.min():+.0f} to {gains.max():+.0f})" if spread and len(gains) > 1 else ""
    return [
        name,
        f"{np.median(dq):.2f}",
        spread,
        f"{np.mean(dq):.2f}",
        f"{np.median(group.pooled('rmsd')):.3f}",
        "" if base else f"{100 * np.mean(group.better):.0f} %",
        f"{100 * np.mean(group.pooled('largest') < BASIN):.0f} %",
        "" if name == START else f"{100 * np.mean(group.pooled('converged')):.0f} %",
        *(_force(group, where, base) for where in ("paths", "elsewhere")),
        "" if name in (BASE, START) else _seconds(group),
    ]


NUMBERS = {"additive": "largest additive term (Å)", "eta": "eta (Å²/eV)"}  # of the minimiser, where the name is short
COLUMNS = [
    "median Dq (amu^½ Å)",
    "its change in % (range over the seeds)",
    "mean Dq",
    "median RMSD (Å)",
    "improved",  # beside the base
    "right basin",
    "converged",
    "forces on held-out DFT paths (meV/Å)",
    "forces elsewhere (meV/Å)",
    "training (s)",
]
NEARER = 6  # where the table of methods has one column more


def _seconds(group: Group) -> str:
    seconds = [one["seconds"] for one in group.runs]
    return workflow.mean_range(seconds) if len(seconds) > 1 else f"{seconds[0]:.0f}"


def _force(group: Group, where: str, base: bool) -> str:
    if f"{where}_rmse_f" not in group.runs[0]:
        return ""
    error = 1000 * np.mean([one[f"{where}_rmse_f"] for one in group.runs])
    return f"{error:.0f}" if base else f"{error:.0f} ({np.mean(group.forces(where)):+.0f} %)"


def methods_table(runs: Sequence[dict]) -> str:
    """A table a set."""
    tables, names = [], ["method", *COLUMNS]
    columns = [*names[:NEARER], "nearer than at the start", *names[NEARER:]]
    for dataset in dict.fromkeys(one["key"] for one in runs):
        by_name = by_method(runs, dataset)
        starts = by_name[START].pooled("dq")
        rows = []
        for name, group in by_name.items():
            nearer = "" if name == START else f"{100 * np.mean(group.pooled('dq') < starts):.0f} %"
            cells = line(name, group)
            rows.append([*cells[:NEARER], nearer, *cells[NEARER:]])
        tables.append(f"**{dataset}**, {len(starts)} held-out relaxations over {len(by_name[BASE].runs)} seeds\n")
        tables.append(workflow.markdown(columns, rows) + "\n")
    return "\n".join(tables)


def by_share(runs: Sequence[dict], dataset: str, method: str) -> dict[str, Group]:
    """The models between the base and what a method made of it, by the share of the way."""
    selected = [one for one in chosen(runs, key=dataset) if one["method"] in (BASE, method)]
    by_name = groups(
        [one | {"share": one["setting"] or "100%"} for one in selected], "share", (*SHARES, "100%"), dataset
    )
    return {"0%": by_name.pop(BASE), **by_name}


def _shared(runs: Sequence[dict]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((one["key"], one["method"]) for one in runs if one["method"] != BASE))


def shares_table(runs: Sequence[dict]) -> str:
    """A line a method: what is gained and what is lost on the way to it."""
    rows = []
    for dataset, method in _shared(runs):
        by_name = by_share(runs, dataset, method)
        for title, form, value in (
            ("median Dq", "+.0f", lambda group: group.change),
            ("forces elsewhere", "+.0f", lambda group: np.mean(group.forces("elsewhere"))),
            ("converged", ".0f", lambda group: 100 * np.mean(group.pooled("converged"))),
        ):
            rows.append([dataset, method, title, *(f"{value(group):{form}} %" for group in by_name.values())])
    shares = ["0 % (base)", *(name.replace("%", " %") for name in SHARES), "100 %"]
    table = workflow.markdown(["set", "method", "", *shares], rows)
    return f"**Between the base and the tuned model**, by the share of the way\n\n{table}\n"


def settings_table(runs: Sequence[dict]) -> str:
    """BPTT, one setting changed at a time, and how far learnable numbers of the minimiser went."""
    by_name = groups(runs, "setting", SETTINGS, "dimers")
    # without the time: some waited for others
    rows = [[*line(name, group)[:-1], _learned(group)] for name, group in by_name.items()]
    table = workflow.markdown(["setting of BPTT", *COLUMNS[:-1], "numbers of the minimiser, learned"], rows)
    return f"**Settings of BPTT**, {_held_out(by_name[BASE])}\n\n{table}\n"


def _held_out(base: Group) -> str:
    n = len(base.runs)
    return f"{len(base.pooled('dq'))} held-out dimers over {n} seed{'s' if n > 1 else ''}"


def _learned(group: Group) -> str:
    texts = []
    for key in group.runs[0].get("minimiser", {}):
        values = [one["minimiser"][key] for one in group.runs]
        spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
        texts.append(f"{NUMBERS.get(key, key)} {np.median(values):.3g}{spread}")
    return "; ".join(texts)


def pairs_table(runs: Sequence[dict]) -> str:
    """What is gained and lost, by number of pairs."""
    rows = []
    for dataset, method in _shared(runs):
        subsets = by_number(runs, dataset, method)
        dq = [f"{np.median(group.pooled('dq')):.2f} ({group.change:+.0f} %)" for group in subsets.values()]
        worst = [f"{group.gains.min():+.0f} to {group.gains.max():+.0f} %" for group in subsets.values()]
        lost = [f"{np.mean(group.forces('elsewhere')):+.0f} %" for group in subsets.values()]
        before = f"{np.median(next(iter(subsets.values())).before):.2f}"
        rows += [
            [dataset, method, "median Dq (amu^½ Å)", before, *dq],
            [dataset, method, "its range over the seeds", "", *worst],
            [dataset, method, "forces elsewhere", "", *lost],
        ]
    columns = ["set", "method", "", "base", *(f"{n} pairs" for n in subsets)]
    return f"**Number of pairs**, nested subsets\n\n{workflow.markdown(columns, rows)}"


def by_number(runs: Sequence[dict], dataset: str, method: str) -> dict[int, Group]:
    """The runs of a method on a set by the number of pairs."""
    selected, base = chosen(runs, key=dataset, method=method), chosen(runs, key=dataset, method=BASE)
    return {n: Group(chosen(selected, n=n), base) for n in sorted({one["n"] for one in selected})}


def methods_plot(out: Path, runs: Sequence[dict]) -> None:
    """For each set a figure: where every held-out structure ends, and what it costs in forces elsewhere."""
    for dataset in dict.fromkeys(one["key"] for one in runs):
        by_name = by_method(runs, dataset)
        n, seeds = len(by_name[START].pooled("dq")), len(by_name[BASE].runs)
        caption = (
            f"Left: {n} held-out relaxations of {_seeds(seeds)}, a dot each; line and number: median. Right: large "
            "dots: all seeds, small ones: a seed; dotted: 10 % worse forces elsewhere; lower left is better."
        )
        with style.figure(out / f"methods_{dataset}.png", (6.8, 4.6), (1, 2), dataset, caption) as (left, right):
            _strips(left, by_name)
            del by_name[START]
            points = {}
            for name, group in by_name.items():
                x, y, color = group.forces("elsewhere"), group.gains, METHODS[name]
                right.plot(x, y, "o", color=color, alpha=0.35, markersize=5)
                right.plot(np.mean(x), group.change, "o", color=color, markersize=11)
                points[name] = ((float(np.mean(x)), group.change), color)
            right.axvline(10, color="black", linewidth=0.8, linestyle=":")
            right.axhline(0, color="black", linewidth=0.8)
            right.set(xlabel="force error elsewhere, change in %", ylabel="median Dq, change in %")
            style.name_points(right, points)


def _seeds(n: int) -> str:
    return f"{n} seed{'s' if n > 1 else ''}"


def _strips(axes, by_name: dict[str, Group]) -> None:
    """Every structure a dot, a column a method, on a logarithmic scale."""
    random = np.random.default_rng(0)
    for k, (name, group) in enumerate(by_name.items()):
        dq, color = np.maximum(group.pooled("dq"), 0.02), METHODS[name]
        places = k + random.uniform(-0.28, 0.28, len(dq))
        axes.plot(places, dq, "o", color=color, alpha=0.45, markersize=4, rasterized=True)
        median = np.median(dq)
        axes.plot([k - 0.38, k + 0.38], [median, median], color=color, linewidth=3)
        axes.annotate(f"{median:.3g}", (k, median), (0, 4), textcoords="offset points", ha="center", weight="bold")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    width = 10 if len(by_name) < 8 else 8  # characters
    axes.set_xticks(range(len(by_name)), [textwrap.fill(name, width) for name in by_name], fontsize=9)
    axes.set_ylabel("distance from the DFT-relaxed structure,\nDq (amu$^{1/2}$ Å)")


def shares_plot(out: Path, runs: Sequence[dict]) -> None:
    """Structures gained against forces lost, along the way from the base to what was trained."""
    trained = _shared(runs)
    sets = list(dict.fromkeys(dataset for dataset, _ in trained))
    caption = "Numbers: share of the way from the base to the tuned model. Dotted: 10 % worse elsewhere, 50 % nearer."
    with style.figure(out / "shares.png", (5.8, 4.4), (1, len(sets)), caption=caption) as panels:
        for axes, dataset in zip(panels, sets, strict=True):
            for method in (method for key, method in trained if key == dataset):
                by_name = by_share(runs, dataset, method)
                x = [float(np.mean(group.forces("elsewhere"))) for group in by_name.values()]
                y = [group.change for group in by_name.values()]
                axes.plot(x, y, "o-", color=METHODS[method])
                for share, *place in zip(by_name, x, y, strict=True):
                    name = f"{method}, {share}" if share == "100%" else share
                    axes.annotate(name, place, (5, 4), textcoords="offset points", fontsize=8, color=METHODS[method])
            axes.axvline(10, color="black", linewidth=0.8, linestyle=":")
            axes.axhline(-50, color="black", linewidth=0.8, linestyle=":")
            axes.set(xlabel="force error elsewhere, change in %", ylabel="median Dq, change in %", title=dataset)


def settings_plot(out: Path, runs: Sequence[dict]) -> None:
    """Change of the median structure error for every setting of BPTT."""
    by_name = {name: group for name, group in groups(runs, "setting", SETTINGS, "dimers").items() if name != BASE}
    group = next(iter(by_name.values()))
    caption = f"BPTT with one setting changed; {_seeds(len(group.runs))}: dots, their mean: bars; left is better."
    with style.figure(out / "settings.png", (8, 0.42 * len(by_name) + 1.2), caption=caption) as (axes,):
        for k, group in enumerate(reversed(by_name.values())):
            axes.barh(k, np.mean(group.gains), color=METHODS["BPTT"], alpha=0.55)
            axes.plot(group.gains, np.full(len(group.gains), k), "o", color="black", markersize=4)
        names = [f"BPTT, {name}" if name == "as it is" else name for name in reversed(by_name)]
        axes.set_yticks(range(len(by_name)), names)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(xlabel="median Dq of held-out dimers, change in %")


def pairs_plot(out: Path, runs: Sequence[dict]) -> None:
    """Median structure error against the number of pairs, a panel a set."""
    sets = _shared(runs)
    caption = "Line: median of all held-out structures; band: range over the seeds; equal numbers of gradient steps."
    with style.figure(out / "pairs.png", (4.6, 4.0), (1, len(sets)), caption=caption) as panels:
        for axes, (dataset, method) in zip(panels, sets, strict=True):
            subsets = by_number(runs, dataset, method)
            sizes, color = list(subsets), METHODS[method]
            medians = np.array([[np.median(one["dq"]) for one in group.runs] for group in subsets.values()])
            axes.fill_between(sizes, medians.min(axis=1), medians.max(axis=1), color=color, alpha=0.15, linewidth=0)
            pooled = [np.median(group.pooled("dq")) for group in subsets.values()]
            axes.plot(sizes, pooled, "o-", color=color, label=method)
            before = float(np.median(next(iter(subsets.values())).before))
            axes.axhline(before, color=METHODS[BASE], linestyle="--")
            axes.annotate(
                "base", (sizes[0], before), (0, 3), textcoords="offset points", color=METHODS[BASE], fontsize=9
            )
            axes.set(xscale="log", ylim=(0, None), xlabel="pairs of a start and a relaxed structure", title=dataset)
            axes.set_xticks(sizes, sizes)
            axes.minorticks_off()
            style.name_lines(axes)
        panels[0].set_ylabel("median Dq of held-out structures (amu$^{1/2}$ Å)")


STUDIES = {
    "methods": (methods_table, methods_plot),
    "shares": (shares_table, shares_plot),
    "settings": (settings_table, settings_plot),
    "pairs": (pairs_table, pairs_plot),
}
