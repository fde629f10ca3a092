"""All tables of README.md that come from results: each from `results/NAME.json`, between its marks.

python benchmarks/report.py                # all of which there are results
python benchmarks/report.py dynamics aims  # these
"""

import json
import sys
from collections.abc import Callable
from typing import NamedTuple

from common import RESULTS
from dynamics import CODES, MODELS
from inference_report import lines, roofline, write
from inference_report import markdown as inference_other
from inference_report import memory as dpa3_memory


class Aim(NamedTuple):
    """A row of the table of aims: what was reached is a number of the results, or None where there is none."""

    row: str
    aim: str
    reached: float | None
    is_met: bool | None


def about(results: dict) -> str:
    """Machine and date."""
    machine = results["hardware"]
    used = f"{machine['cores_used']} of {machine['cores']} cores, load before {machine['load_before']}"
    return f"{machine['cpu']}, {used}, {results['date']}." if "date" in results else f"{machine['cpu']}, {used}."


def load(name: str) -> dict | None:
    """The results of a benchmark; None where there are none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def inference(results: dict) -> str:
    """Times of lamjax and of the fastest other backend, with operations."""
    columns = ("model", "system", "task", "lamjax ms", "best other ms", "ratio, medians", "ratio, best calls")
    columns += ("ratio, processor time", "GFLOP", "% of peak", "first call s", "peak MB lamjax / least of the others")
    body = []
    for model, system, task, measured in rows_of(results):
        timings, ratio = measured["timings"][task], measured["ratio"][task]
        own, other = timings["lamjax"], timings[ratio["against"]]
        least = min(t["peak_mb"] for name, t in timings.items() if name != "lamjax")
        work = measured["operations"]["tasks"][task]
        body.append(
            (model, system, task, f"{1e3 * own['median']:.0f}", f"{1e3 * other['median']:.0f} ({ratio['against']})")
            + tuple(f"{ratio[k]:.2f}" for k in ("wall", "best_wall", "cpu"))
            + (f"{work['gflop']:.1f}", f"{100 * work['fraction_of_peak']:.0f}", f"{own['first']:.0f}")
            + (f"{own['peak_mb']:.0f} / {least:.0f}",)
        )
    return f"{about(results)}\n\n{lines(columns, body)}"


def rows_of(results: dict):
    """(model, system, task, what was found) of all that was compared."""
    for model, content in results["models"].items():
        for system, measured in content["systems"].items():
            for task in measured["timings"]:
                if measured["ratio"].get(task):
                    yield model, system, task, measured


def adjoints(results: dict) -> str:
    """Seconds and memory of gradients."""
    columns = ("adjoint", "relaxation s", "with gradient s", "ratio, best wall (processor)", "XLA temporary MB")
    columns += ("the same, DPA-2 small",)
    body = [("a loss of forces, no relaxation", "-", "-", "-", *[mb(results["forces"]["gradient"])] * 2)]
    for one in results["unrolled"] + results["implicit"]:
        name = f"unrolled, {one['steps']} steps" if "steps" in one else f"implicit, tol {one['tol']:g}"
        before, after = one["relaxation"], one["gradient"]
        cells = ["-"] * 3
        if "wall" in after:
            ratio = f"{after['wall'] / before['wall']:.2f} ({after['cpu'] / before['cpu']:.2f})"
            cells = [f"{before['wall']:.2f}", f"{after['wall']:.2f}", ratio]
        small = one.get("small_temporary_mb", after["temporary_mb"] if "steps" in one else None)
        body.append((name, *cells, mb(after), "-" if small is None else f"{small:.0f}"))
    return f"{about(results)}\n\n{lines(columns, body)}"


def mb(one: dict) -> str:
    return f"{one['temporary_mb']:.0f}"


def relaxation(results: dict) -> str:
    """Both passes of every row, and how many times as fast as the rival it is."""
    columns = (
        "row",
        "pass",
        "wall s",
        "processor s",
        "ms an evaluation",
        "times as fast as the rival, wall (processor)",
    )
    names = {"model": "DPA-2", "pair": "Lennard-Jones"}
    body = []
    for kind, table in results["tables"].items():
        (rival,) = table.keys() - {"stream"}
        for number in range(2):
            own, other = table["stream"]["passes"][number], table[rival]["passes"][number]
            ratio = f"{other['all'] / own['all']:.2f} ({other['all_cpu'] / own['all_cpu']:.2f})"
            for name, one, cell in (("stream", own, ratio), (rival, other, "")):
                scaled = "" if one["structures"] == own["structures"] else f", scaled to {own['structures']}"
                times = (f"{one['all']:.1f}", f"{one['all_cpu']:.1f}", f"{one['per']:.2f}")
                body.append((f"`{name}`, {names[kind]}{scaled}", str(number + 1), *times, cell))
    return f"{about(results)}\n\n{lines(columns, body)}"


def compared(results: dict) -> str:
    """Milliseconds a step in each code."""
    columns = ("water, ms/step (processor)", *CODES.values(), "DeePMD-kit / loop")
    body = []
    for model, sizes in results["compared"].items():
        for n, codes in sizes.items():
            times = [(codes[c]["wall_ms_per_step"], codes[c]["cpu_ms_per_step"]) if c in codes else None for c in CODES]
            cells = ["-" if t is None else f"{t[0]:.1f} ({t[1]:.1f})" for t in times]
            ratio = (
                "-"
                if times[-1] is None
                else "{:.2f} ({:.2f})".format(*(other / own for other, own in zip(times[-1], times[0], strict=True)))
            )
            body.append((f"{MODELS[model]}, {int(n):,} atoms", *cells, ratio))
    return f"{about(results)}\n\n{lines(columns, body)}"


def scaling(results: dict) -> str:
    """Time and memory per atom."""
    model = MODELS[results.get("scaled", "student")]
    columns = (f"{model}, atoms", "µs/atom/step", "processor µs/atom/step", "peak MB", "kB/atom")
    body = []
    for n, row in ((int(n), row) for n, row in results["scaling"].items()):
        per_atom = [1e3 * row[f"{kind}_ms_per_step"] / n for kind in ("wall", "cpu")]
        memory = (f"{row['peak_mb']:,.0f}", f"{1e3 * (row['peak_mb'] - row['idle_mb']) / n:.1f}")
        body.append((f"{n:,}", *(f"{x:.1f}" for x in per_atom), *memory))
    return f"{about(results)}\n\n{lines(columns, body)}"


def large_memory(results: dict) -> str:
    """What XLA plans for forces, in blocks and whole."""
    columns = ("atoms", f"temporaries MB, blocks of {results['block']}", "kB/atom", "temporaries MB, whole", "kB/atom")
    body = []
    for n, plans in results["sizes"].items():
        cells = [f"{plans[kind][k]:,.{d}f}" for kind in ("in_blocks", "whole") for k, d in _MEMORY]
        body.append((f"{int(n):,}", *cells))
    return f"{about(results)}\n\n{lines(columns, body)}"


_MEMORY = (("temporaries_mb", 0), ("kb_per_atom", 1))


def streaming(results: dict) -> str:
    """Speed and memory of training from a store."""
    columns = ("case", "frames", "limit (GB)", "peak private (GB)", "structures/s (least to most)", "waited")
    body = []
    for name, one in results["cases"].items():
        limit = "-" if one["limit_gb"] is None else f"{one['limit_gb']:.1f}"
        spread = one["structures_per_s_of_all"]
        speed = f"{one['structures_per_s']:.0f} ({min(spread):.0f} to {max(spread):.0f})"
        waited = f"{one['wait_fraction']:.1%}"
        body.append((name, f"{one['frames']:,}", limit, f"{one['peak_private_gb']:.2f}", speed, waited))
    return f"{about(results)}\n\n{lines(columns, body)}"


def nequip(results: dict) -> str:
    """Processor time and memory of a call through ASE, beside the original code."""
    columns = ("atoms", "lamjax ms", "nequix ms", "ratio, processor time", "ratio, wall", "first call s", "peak MB")
    body = []
    for n, codes in results["sizes"].items():
        own, other = codes["lamjax"], codes["nequix"]
        ratios = (f"{other[k] / own[k]:.2f}" for k in ("cpu", "median"))
        both = (f"{own[k]:,.0f} / {other[k]:,.0f}" for k in ("first", "peak_mb"))
        body.append((n, f"{1e3 * own['cpu']:.0f}", f"{1e3 * other['cpu']:.0f}", *ratios, *both))
    return f"{about(results)}\n\n{lines(columns, body)}"


def aims(_: dict | None) -> str:
    """Row, aim, reached: of all results there are."""
    verdicts = [*_of_inference(), *_of_training(), *_of_adjoints(), *_of_relaxation(), *_of_dynamics(), *_of_nequip()]
    words = {True: "yes", False: "no", None: "not measured"}
    body = [(a.row, a.aim, "-" if a.reached is None else f"{a.reached:.2f}", words[a.is_met]) for a in verdicts]
    return lines(("row", "aim", "reached", "met"), body)


def at_least(row: str, value: float | None, aim: float, unit: str) -> Aim:
    return Aim(row, f"at least {aim:g} {unit}", value, None if value is None else value >= aim)


def below(row: str, value: float | None, aim: float, unit: str) -> Aim:
    return Aim(row, f"below {aim:g} {unit}", value, None if value is None else value < aim)


def _of_inference() -> list[Aim]:
    """Wall time by medians, for every system; what is in no file was not measured."""
    results = load("inference")
    known = {(m, s, t): f["ratio"][t]["wall"] for m, s, t, f in rows_of(results)} if results else {}
    keys = [
        (m, s, t)
        for m in ("small", "medium")
        for s in ("water", "oxide", "molecule", "crystals")
        for t in ("efv", "train")
    ]
    return [at_least(f"inference, {m}, {s}, {t}", known.get((m, s, t)), 3, "times DeePMD-kit") for m, s, t in keys]


def _of_training() -> list[Aim]:
    results = load("training") or {"runs": {}}
    runs = next(iter(results["runs"].values()), {})
    ratios = {case: one["ratio"]["wall"] for case, one in runs.items() if one.get("ratio")}
    return [
        at_least(f"training run {c}, cold cache", ratios.get(c), aim, "times DeePMD-kit")
        for c, aim in (("a", 3), ("b", 2), ("c", 3))
    ]


def _of_adjoints() -> list[Aim]:
    results = load("adjoints")
    if results is None:
        return []
    unrolled = {one["steps"]: one for one in results["unrolled"]}
    timed = [one for one in unrolled.values() if "wall" in one["gradient"]]
    worst = max(one["gradient"]["wall"] / one["relaxation"]["wall"] for one in timed)
    memory = unrolled[800]["gradient"]["temporary_mb"] / unrolled[50]["gradient"]["temporary_mb"]
    implicit = max(one["gradient"]["wall"] / one["relaxation"]["wall"] for one in results["implicit"])
    return [
        below("gradient through a relaxation (worst)", worst, 4, "relaxations"),
        below("its memory, 800 steps over 50", memory, 1.5, "times"),
        below("implicit gradient (worst)", implicit, 2, "relaxations"),
    ]


def _of_relaxation() -> list[Aim]:
    results = load("relaxation")
    if results is None:
        return []

    def ratio(kind: str, rival: str, number: int) -> float:
        table = results["tables"][kind]
        return table[rival]["passes"][number]["all"] / table["stream"]["passes"][number]["all"]

    return [
        at_least("412 crystals, DPA-2, compiled", ratio("model", "ase", 1), 5, "times ASE"),
        at_least("412 crystals, Lennard-Jones, with compilation", ratio("pair", "torch-sim", 0), 1, "times torch-sim"),
        at_least("412 crystals, Lennard-Jones, compiled", ratio("pair", "torch-sim", 1), 1, "times torch-sim"),
    ]


def _of_dynamics() -> list[Aim]:
    results = load("dynamics")
    if results is None:
        return []
    verdicts = []
    for model, sizes in results["compared"].items():
        for n, codes in sizes.items():
            ratio = (
                codes["deepmd"]["wall_ms_per_step"] / codes["loop"]["wall_ms_per_step"] if "deepmd" in codes else None
            )
            verdicts.append(at_least(f"dynamics, {model}, {int(n):,} atoms", ratio, 3, "times DeePMD-kit in ASE"))
    largest = results["scaling"].get("98304")
    peak = None if largest is None else largest["peak_mb"] / 1024
    return [*verdicts, below("dynamics, student, 98,304 atoms, peak", peak, 16, "GiB")]


def _of_nequip() -> list[Aim]:
    sizes = (load("nequip") or {"sizes": {}})["sizes"]
    ratios = {n: codes["nequix"]["cpu"] / codes["lamjax"]["cpu"] for n, codes in sizes.items() if "nequix" in codes}
    return [at_least(f"Nequix, {n} atoms", ratios.get(n), 4, "times the original") for n in ("8", "64", "216")]


TABLES: dict[str, tuple[str | None, Callable]] = {  # marks: file of results, table
    "aims": (None, aims),
    "inference": ("inference", inference),
    "dpa3": ("dpa3", inference_other),
    "dpa3_memory": ("dpa3_memory", dpa3_memory),
    "roofline": ("roofline", roofline),
    "adjoints": ("adjoints", adjoints),
    "relaxation": ("relaxation", relaxation),
    "dynamics": ("dynamics", compared),
    "scaling": ("dynamics", scaling),
    "scaling_teacher": ("dynamics_teacher", scaling),
    "nequip": ("nequip", nequip),
    "large_memory": ("large_memory", large_memory),
    "streaming": ("streaming", streaming),
}


if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        file, table = TABLES[name]
        results = None if file is None else load(file)
        if file is None or results is not None:
            write(name, table(results))
        elif name in sys.argv[1:]:
            raise SystemExit(f"There is no {RESULTS / file}.json: run the benchmark first.")
