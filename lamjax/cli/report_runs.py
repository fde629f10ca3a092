"""The page of the folder of a training: made of the files in it, whatever they are."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamjax.cli import judged, report_structures, rounds_table
from lamjax.config.files import flat
from lamjax.distillation.outcome import RESULT
from lamjax.evaluation.retention import COLUMNS, Forgetting
from lamjax.evaluation.structures import read_ends
from lamjax.reports import html, plots
from lamjax.reports.html import PageSection
from lamjax.training import curve, outcome, properties, structures
from lamjax.training.config import validate
from lamjax.training.folder import CONFIG, FACTS
from lamjax.training.records import HISTORY, VALIDATION, read
from lamjax.training.structures import StructureTuneConfig

FORGETTING, ROUNDS = "forgetting.json", "rounds.png"
WORST = ("structure", "atoms", "Dq before", "Dq after", "RMSD before (Å)", "RMSD after (Å)", "converged after")
RELAXED = {"before": "before training", "after": "after"}
MOST_LINES = 6  # of validation.csv that are drawn for a loss of the user's own


def page(folder: Path, end: str) -> str:
    """The page of a run of train, finetune (on labels, structures or properties), distill, or of one's own loss."""
    config = json.loads((folder / CONFIG).read_text())
    facts = json.loads((folder / FACTS).read_text()) if (folder / FACTS).is_file() else {}
    kind = kind_of(config)
    sections = [
        PageSection("Result", _result(folder, config)),
        PageSection("Rounds", _rounds(folder)),
        PageSection("Curves", html.plot_grid(_curves(folder, config))),
        PageSection("Parity", "\n".join(_parity(folder))),
        PageSection("Structures before and after", _structures(folder) if "pairs" in config else ""),
        PageSection("Crystals before and after", _crystals(folder) if "crystals" in config else ""),
        PageSection("What it cost elsewhere (forgetting)", _forgetting(folder)),
        PageSection("Data", _data(config, facts)),
        PageSection("Config", html.details("all keys", html.facts(_texts(config).items()))),
        PageSection("Versions", html.facts(_versions(facts))),
    ]
    return html.page(f"{kind}: {folder.resolve().name}", _lead(folder, config), sections, end)


def kind_of(config: Mapping[str, Any]) -> str:
    """The kind of run that a config describes."""
    if "student" in config:
        return "Distillation"
    if "pairs" in config:
        return "Fine-tuning on structures"
    if "crystals" in config:
        return "Fine-tuning on properties"
    return "Fine-tuning" if config.get("base") else "Training"


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    """{"a.b": value as text} of nested keys."""
    plain = flat(config).items()
    return {key: x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for key, x in plain}


def _lead(folder: Path, config: Mapping[str, Any]) -> str:
    """The progress of the run in words: rounds or steps."""
    if "student" in config:
        return f"{len(list(folder.glob('round-*')))} of at most {config['rounds']} rounds."
    rows = read(folder / curve.CURVE) or read(folder / HISTORY)
    if not rows:
        return "No step is done yet."
    row, length = rows[-1], f" of {config['steps']}" if "steps" in config else ""
    if "epochs" in config:
        return f"Step {row['step']}, epoch {row.get('epoch', '')} of {config['epochs']}."
    return f"Step {row['step']}{length}."


def _result(folder: Path, config: Mapping[str, Any]) -> str:
    """Errors on what was held out: of a run on labels first, least and last."""
    if "student" in config:
        path = folder / RESULT
        rows = [rounds_table.model_cells(one) for one in json.loads(path.read_text())] if path.is_file() else []
        note = html.paragraph("RMSE on the fresh frames of all rounds, which no student has learned from.", "note")
        return html.table(rounds_table.MODELS, rows) + note if rows else ""
    if "pairs" in config:
        settings = validate(dict(config), str(folder / CONFIG), StructureTuneConfig)
        return html.table(*judged.of_structures(folder, settings))
    if "crystals" in config:
        return html.table(*judged.of_crystals(folder))
    measured = curve.validations(folder / curve.CURVE, list(config.get("tasks") or [""]))
    names = list(dict.fromkeys(name for _, errors in measured for name in errors))
    rows = []
    for name in names:
        known = [(step, errors[name]) for step, errors in measured if name in errors]
        label, unit, factor = _quantity(name)
        least = min(known, key=lambda one: one[1])
        rows.append((f"{label} ({unit})", *(factor * x for _, x in (known[0], least, known[-1])), least[0]))
    head = ("held-out error", "first", "least", "last", "least at step")
    return html.table(head, rows)


def _quantity(name: str) -> tuple[str, str, float]:
    """The name of an error for people, its unit, and the factor to it: of "rmse_e:water"."""
    kind, _, task = name.partition(":")
    measure, _, what = kind.partition("_")
    label = {"e": "energy", "f": "force", "v": "virial", "s": "stress"}.get(what, what)
    unit = {"e": "meV/atom", "f": "meV/Å", "v": "meV/atom", "s": "meV/Å³"}.get(what, "")
    return f"{task} {label} {measure.upper()}".strip(), unit, 1000


def _curves(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Loss and errors against steps, of whatever tables there are."""
    rows, panels = read(folder / curve.CURVE), {}
    for task in config.get("tasks") or [""] if rows else ():
        panels |= {f"{task} {name}".strip(): lines for name, lines in outcome.curves(rows, task).items()}
    history, measured = rows or read(folder / HISTORY), read(folder / VALIDATION)
    loss = {"loss": {"training": _line(history, "loss")}}
    for name in _measures(measured):
        panels[_titled(name)] = {"held out": _line(measured, name)}
    for name, lines in (loss | panels).items():
        if shown := {label: points for label, points in lines.items() if points[0]}:
            yield html.drawn(plots.learning_curve, {name: _thinned(shown)}, "", says=f"{name} against training steps")


def _measures(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The columns of validation.csv that are worth a picture."""
    names = [name for name in (rows[0] if rows else ()) if name not in ("step", "epoch")]
    if "dq_median" in names:
        return ["dq_median", "rmsd_median", *(name for name in names if "rmse_f" in name)]
    if properties.SCORE in names:
        return list(judged.names(names))
    return names[:MOST_LINES]


def _titled(name: str) -> str:
    known = {"dq_median": "median Dq (amu$^{1/2}$ Å)", "rmsd_median": "median RMSD (Å)"}
    known |= {"heldout_rmse_f": "force RMSE, held out (eV/Å)", "replay_rmse_f": "force RMSE, replayed (eV/Å)"}
    return (judged.names([name]) | known).get(name, name)


def _line(rows: Sequence[Mapping[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values above 0, for a logarithmic axis."""
    points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
    kept = [(step, x) for step, x in points if 0 < x < float("inf")]
    return [step for step, _ in kept], [x for _, x in kept]


def _thinned(lines: Mapping[str, tuple[Sequence, Sequence]]) -> dict[str, tuple[Sequence, Sequence]]:
    """About a thousand points a line, evenly spread."""
    return {label: tuple(x[:: max(1, len(x) // 1000)] for x in points) for label, points in lines.items()}


def _parity(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("parity*.png")):
        task = path.stem.removeprefix("parity").lstrip("_")
        yield html.picture(path, f"predictions against labels {task}".strip(), 900)


def _rounds(folder: Path) -> str:
    paths = sorted(folder.glob("round-*/round.json"))
    rounds = [json.loads(path.read_text()) for path in paths]
    rows = [rounds_table.cells(facts) for facts in rounds if facts.get("finished")]
    return html.table(rounds_table.COLUMNS, rows) + html.picture(folder / ROUNDS, "errors over the rounds", 900)


def _structures(folder: Path) -> str:
    """Errors of held-out structures before and after, the worst first; some of them are drawn."""
    rows = list(enumerate(read(folder / structures.STRUCTURES)))
    rows.sort(key=lambda one: -float(one[1]["dq_after"]))
    names = ("dq_before", "dq_after", "rmsd_before", "rmsd_after")
    table = [
        (row["structure"], row["n_atoms"], *(float(row[name]) for name in names), row["converged_after"])
        for _, row in rows
    ]
    body = html.details(
        f"all {len(table)}, the worst first (Dq in amu^½ Å)", html.table(WORST, table, "structures.csv")
    )
    picture = html.picture(folder / structures.PLOT, "structure errors before and after", 900)
    return picture + body + _drawn_structures(folder, rows)


def _drawn_structures(folder: Path, rows: Sequence[tuple[int, Mapping[str, str]]]) -> str:
    """The ends of the worst held-out structures before and after, beside their targets."""
    ends, pairs = read_ends(folder / structures.ENDS), []
    for k, row in [(k, row) for k, row in rows if k in ends][: report_structures.MOST]:
        labels = {stage: f"{name}: Dq {float(row[f'dq_{stage}']):.3g} amu^½ Å" for stage, name in RELAXED.items()}
        labels["target"] = "target"
        shown = [(label, ends[k][stage]) for stage, label in labels.items() if stage in ends[k]]
        pairs.append((row["structure"], report_structures.side_by_side(shown) if shown else []))
    if not (drawn := html.structures(*report_structures.with_elements(pairs))):
        return ""
    most = f"The {len(pairs)} that end farthest from their targets. " if len(ends) > len(pairs) else ""
    note = f"{most}All of them, with their starts, are in {structures.ENDS}: ase gui {structures.ENDS}"
    return html.paragraph(note, "note") + drawn


def _crystals(folder: Path) -> str:
    """Properties of held-out crystals, what they should be, before and after, the worst first."""
    rows = read(folder / properties.PROPERTIES)
    if not rows:
        return ""
    rows.sort(key=lambda row: -_number(row["error_after"]))
    table = [[row[key] if key in ("structure", "n_atoms") else _plain(row[key]) for key in row] for row in rows]
    columns = [key.replace("_", " ") for key in rows[0]]
    body = html.details(f"all {len(rows)}, the worst first", html.table(columns, table, properties.PROPERTIES))
    return html.picture(folder / properties.PLOT, "errors of properties before and after", 900) + body


def _number(text: str) -> float:
    """A number to sort by; one that is not known is the least."""
    with contextlib.suppress(ValueError):
        if (x := float(text)) == x:
            return x
    return -1.0


def _plain(text: str) -> float | str:
    """A number where it is one, else the text."""
    with contextlib.suppress(ValueError):
        return float(text) if float(text) == float(text) else "-"
    return {"True": "yes", "False": "no"}.get(text, text)


def _forgetting(folder: Path) -> str:
    if not (folder / FORGETTING).is_file():
        return ""
    content = json.loads((folder / FORGETTING).read_text())
    lines = [Forgetting(*(line[key] for key in Forgetting._fields)) for line in content]
    note = "RMSE, E in meV/atom (after a shift per element), F in meV/Å."
    if not all(line.labelled for line in lines):
        note += " * No data of this head: RMS change of its predictions for the new structures."
    return html.table(COLUMNS, [line.cells for line in lines]) + html.paragraph(note, "note")


def _data(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The files that the config names, and what was found in them."""
    keys = ("base", "train", "validation", "pairs", "crystals", "start", "initial", "hold_out")
    keys += ("replay.files", "labeller.type", "labeller.model", "labeller.name", "student.base")
    named = _texts(config)
    tasks = [
        (name, x) for name, x in named.items() if name.startswith("tasks.") and name.endswith(("train", "validation"))
    ]
    rows = [(key, named[key]) for key in keys if key in named] + tasks
    rows = [(key, x) for key, x in rows if x not in ("null", "[]", "0.0")]
    for name, facts_of_set in facts.get("data", {}).items():
        counts = (
            {key: x for key, x in facts_of_set.items() if isinstance(x, int)}
            if isinstance(facts_of_set, Mapping)
            else {}
        )
        if counts:
            rows.append((f"{name or 'all'}: found", ", ".join(f"{n} {key}" for key, n in counts.items())))
    return html.facts(rows)


def _versions(facts: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [*facts.get("versions", {}).items(), *(("device", one) for one in facts.get("devices", ()))]
