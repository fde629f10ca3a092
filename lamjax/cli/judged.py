"""The tables of what was held out, structures or crystals, relaxed by the model before, the best and the last one."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lamjax.losses.property_targets import UNITS
from lamjax.training import properties, structures
from lamjax.training.structures import StructureTuneConfig
from lamjax.training.tuning import Judged

Table = tuple[list[str], list[tuple]]  # columns, and lines; none of both where nothing was measured yet
Numbers = list[dict[str, float]]  # of the columns


def of_structures(output: Path, config: StructureTuneConfig) -> Table:
    """The table of a run on structures in this folder."""
    return _table(structures.validations(output), lambda numbers: structure_rows(numbers, config))


def of_crystals(output: Path) -> Table:
    """The table of a run on properties in this folder."""
    return _table(properties.validations(output), crystal_rows)


def _table(judged: Sequence[Judged], rows: Callable[[Numbers], list[tuple]]) -> Table:
    if not judged:
        return [], []
    best = next(one for one in judged if one.best)
    chosen = {"before": judged[0], f"best, step {best.step}": best, f"last, step {judged[-1].step}": judged[-1]}
    return ["", *chosen], rows([one.errors for one in chosen.values()])


def structure_rows(numbers: Numbers, config: StructureTuneConfig) -> list[tuple]:
    """Errors of structures and of labels, one column for each judgement."""
    lines: list[tuple] = []
    for key, unit in (("dq", "Dq (amu^½ Å)"), ("rmsd", "RMSD (Å)")):
        lines.append((f"median {unit}", *(x[f"{key}_median"] for x in numbers)))
        lines.append((f"mean {unit}", *(x[f"{key}_mean"] for x in numbers)))
        lines.append((f"quartiles {unit}", *(_range(x[f"{key}_q1"], x[f"{key}_q3"]) for x in numbers)))
    if config.variable_cell:
        lines.append(("median strain of the cell", *(x["strain_median"] for x in numbers)))
        lines.append(("median volume error", *(f"{x['volume_median']:.2%}" for x in numbers)))
    shares = {"improved": "improved", "in_basin": f"in the right basin (no atom {config.basin:g} Å off)"}
    shares |= {"converged": "converged"} | ({"failed": "failed"} if any(x["failed"] for x in numbers) else {})
    lines += [(text, *(_share(x.get(key, math.nan)) for x in numbers)) for key, text in shares.items()]
    lines.append(("steps, median", *(int(x["n_steps"]) for x in numbers)))
    sets = {"heldout": "of held-out relaxations", "replay": "of replayed frames"}
    kinds = {"f": ("force RMSE", "meV/Å"), "e": ("energy RMSE (shifted)", "meV/atom"), "v": ("virial RMSE", "meV/atom")}
    for name, description in sets.items():
        for kind, (quantity, unit) in kinds.items():
            if (key := f"{name}_rmse_{kind}") in numbers[0]:
                lines.append((f"{quantity} {description} ({unit})", *(1000 * one[key] for one in numbers)))
    return lines


def crystal_rows(numbers: Numbers) -> list[tuple]:
    """Errors of properties and of labels, one column for each judgement."""
    lines: list[tuple] = [(text, *(x[key] for x in numbers)) for key, text in names(numbers[0]).items()]
    lines += [
        (key, *(_share(x[key]) for x in numbers)) for key in ("improved", "converged", "unstable") if key in numbers[0]
    ]
    return lines + ([("steps, median", *(int(x["n_steps"]) for x in numbers))] if "n_steps" in numbers[0] else [])


def names(columns: Iterable[str]) -> dict[str, str]:
    """Titles of the columns of errors in validation.csv of a run on properties."""
    named = {"error_median": "median error / scale", "error_mean": "mean error / scale"}
    named |= {f"{name}_mae": f"{name} MAE ({next(iter(unit))})" for name, unit in UNITS.items()}
    named |= {"force_constant_rmse": "force constants RMSE (eV/Å²)", "replay_rmse_f": "replayed forces RMSE (eV/Å)"}
    named |= {"replay_rmse_e": "replayed energies RMSE (eV/atom)", "replay_rmse_v": "replayed virials RMSE (eV/atom)"}
    known = set(columns)
    return {key: text for key, text in named.items() if key in known}


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _share(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.0%}"
