"""The tables of a distillation: its rounds, and the models that came of it."""

from collections.abc import Mapping
from typing import Any

MODELS = ("", "E (meV/atom)", "F (meV/Å)", "µs/atom", "parameters", "file (MB)")

COLUMNS = (
    "round",
    "explored",
    "ended early",
    "below trust",
    "within",
    "above",
    "deviation 50 %",
    "deviation 95 %",
    "deviation 100 % (eV/Å)",
    "learn",
    "fresh",
    "no label",
    "E (meV/atom)",
    "F (meV/Å)",
    "time (s)",
)


def cells(facts: dict[str, Any]) -> list[Any]:
    """The line of a round."""
    deviation = list(facts["deviation"].values()) if "deviation" in facts else ["-"] * 3
    trusted = [facts[key] for key in ("below", "within", "above")] if "deviation" in facts else ["-"] * 3
    errors = ["-" if facts[key] is None else 1000 * facts[key] for key in ("energy", "force")]
    return [
        *(facts[key] for key in ("round", "explored", "ended_early")),
        *trusted,
        *("∞" if x is None else x for x in deviation),
        *(facts[key] for key in ("train", "fresh", "not_labelled")),
        *errors,
        sum(facts["seconds"].values()),
    ]


def model_cells(model: Mapping[str, Any]) -> list[Any]:
    """The line of a model of result.json, with its errors on the fresh frames of all rounds."""
    errors = model["errors"] or {}
    milli = [1000 * errors[key] if key in errors else "-" for key in ("energy", "force")]
    numbers = [model[key] for key in ("microseconds", "parameters", "megabytes")]
    others = [f"{x:,}" if isinstance(x, int) else x for x in numbers]
    return [model["name"], *milli, *("-" if x is None else x for x in others)]
