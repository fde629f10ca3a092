"""The table of held-out structures, relaxed by the model before, the best and the last one."""

import math
from pathlib import Path

from lamjax.training import structures
from lamjax.training.structures import StructureTuneConfig


def summary(output: Path, config: StructureTuneConfig) -> tuple[list[str], list[tuple]]:
    """Columns and lines of the table of a run in this folder; no lines where nothing was measured yet."""
    judged = structures.validations(output)
    if not judged:
        return [], []
    best = next(one for one in judged if one.best)
    chosen = {"before": judged[0], f"best, step {best.step}": best, f"last, step {judged[-1].step}": judged[-1]}
    return ["", *chosen], rows(list(chosen.values()), config)


def rows(judged: list[structures.Judged], config: StructureTuneConfig) -> list[tuple]:
    """The lines of the table, one column for each judgement."""
    s = [one.summary for one in judged]
    lines: list[tuple] = []
    for key, unit in (("dq", "Dq (amu^½ Å)"), ("rmsd", "RMSD (Å)")):
        lines.append((f"median {unit}", *(getattr(x, f"{key}_median") for x in s)))
        lines.append((f"mean {unit}", *(getattr(x, f"{key}_mean") for x in s)))
        lines.append((f"quartiles {unit}", *(_range(getattr(x, f"{key}_q1"), getattr(x, f"{key}_q3")) for x in s)))
    if config.variable_cell:
        lines.append(("median strain of the cell", *(x.strain_median for x in s)))
        lines.append(("median volume error", *(f"{x.volume_median:.2%}" for x in s)))
    shares = {"improved": "improved", "in_basin": f"in the right basin (no atom {config.basin:g} Å off)"}
    shares |= {"converged": "converged"} | ({"failed": "failed"} if any(x.failed for x in s) else {})
    lines += [(text, *(_share(getattr(x, key)) for x in s)) for key, text in shares.items()]
    lines.append(("steps, median", *(int(x.n_steps) for x in s)))
    sets = {"heldout": "of held-out relaxations", "replay": "of replayed frames"}
    kinds = {"f": ("force RMSE", "meV/Å"), "e": ("energy RMSE (shifted)", "meV/atom"), "v": ("virial RMSE", "meV/atom")}
    for what, of in sets.items():
        for kind, (quantity, unit) in kinds.items():
            if (key := f"{what}_rmse_{kind}") in judged[0].errors:
                lines.append((f"{quantity} {of} ({unit})", *(1000 * one.errors[key] for one in judged)))
    return lines


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"


def _share(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.0%}"
