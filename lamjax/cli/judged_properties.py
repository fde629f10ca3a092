"""The table of held-out crystals and their properties, by the model before, the best and the last one."""

import math
from collections.abc import Sequence
from pathlib import Path

from lamjax.losses.properties import UNITS
from lamjax.training import properties


def summary(output: Path) -> tuple[list[str], list[tuple]]:
    """Columns and lines of the table of a run in this folder; no lines where nothing was measured yet."""
    judged = properties.validations(output)
    if not judged:
        return [], []
    best = next(one for one in judged if one.best)
    chosen = {"before": judged[0], f"best, step {best.step}": best, f"last, step {judged[-1].step}": judged[-1]}
    return ["", *chosen], rows(list(chosen.values()))


def rows(judged: Sequence[properties.JudgedProperties]) -> list[tuple]:
    """The lines of the table, one column for each judgement."""
    numbers = [one.errors for one in judged]
    lines: list[tuple] = [(text, *(x[key] for x in numbers)) for key, text in names(numbers[0]).items()]
    shares = {"improved": "improved", "converged": "converged", "unstable": "unstable"}
    lines += [(text, *(_share(x[key]) for x in numbers)) for key, text in shares.items() if key in numbers[0]]
    return lines + ([("steps, median", *(int(x["n_steps"]) for x in numbers))] if "n_steps" in numbers[0] else [])


def names(columns: Sequence[str] | dict) -> dict[str, str]:
    """How people call those columns of validation.csv that are errors."""
    named = {"error_median": "median error / scale", "error_mean": "mean error / scale"}
    named |= {f"{name}_mae": f"{name} MAE ({next(iter(unit))})" for name, unit in UNITS.items()}
    named |= {"force_constant_rmse": "force constants RMSE (eV/Å²)", "replay_rmse_f": "replayed forces RMSE (eV/Å)"}
    named |= {"replay_rmse_e": "replayed energies RMSE (eV/atom)", "replay_rmse_v": "replayed virials RMSE (eV/atom)"}
    return {key: text for key, text in named.items() if key in columns}


def _share(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.0%}"
