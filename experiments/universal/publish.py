"""Make the model that comes with lamjax of a finished run: lamjax/assets/models/small.lamjax, with its card.

python -m experiments.universal.publish build/universal/run_0/model.lamjax
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import workflow
from experiments.universal import starts
from experiments.universal.train import DEFAULT, WORK, tasks
from lamjax import checkpoints
from lamjax.data import Store

SMALL = checkpoints.SHIPPED / "small.lamjax"


def errors(potential, params, work: Path) -> dict[str, dict[str, float]]:
    """Mean absolute errors of every head on the held-out frames of its task."""
    by_head = {}
    for head, task in tasks(work).items():
        one = workflow.one_head(potential, params, head)
        labelled = workflow.measured(potential, {head: task.validation}, max_programs=3)[head]
        values = workflow.errors(*one, labelled)
        by_head[head] = {f"{key} ({unit})": round(values[f"mae_{key[0]}"], 1) for key, unit in UNITS.items()}
    return by_head


LEVELS = {
    "nequix": "PBE/PBE+U as Nequix MP-1 predicts it",
    "chgnet": "PBE/PBE+U as CHGNet 0.3.0 predicts it, Materials Project's corrections included",
}
UNITS = {"energy": "meV/atom", "forces": "meV/Å"}


def card(config: dict[str, Any], by_head: dict[str, dict[str, float]], frames: dict[str, int]) -> dict[str, Any]:
    """What is to be known of the model."""
    return {
        "what": "A small universal DPA-2 (89 elements), pre-trained with a head for each level of theory.",
        checkpoints.CARD_HEAD: DEFAULT,
        "heads": LEVELS | {name: one.level for name, one in workflow.PRETRAINING.items()},
        "data": f"nequix: {frames['nequix']:,} frames labelled by Nequix MP-1, chgnet: {frames['chgnet']:,} by CHGNet "
        "0.3.0 (experiments/universal); the other heads: DFT frames of experiments/data, see the PROVENANCE.json files "
        "there",
        "data licences": "Nequix MP-1: CC BY 4.0; CHGNet: modified BSD; both trained on MPtrj (CC BY 4.0); MIT "
        "(MatterSim repository: MPtrj, Alexandria, MatterSim; OCP: oxides; COMP6: S66x8), BSD-3-Clause (mlearn, maml)",
        "licence": "MIT",
        "mean absolute errors on held-out frames": by_head,
        "not good for": "final numbers: it is a student of a student of DFT, small and trained for hours. Magnetism, "
        "charge, and molecules are not in the data of its default head, defects, layers and slabs are there as the "
        "teacher sees them, which was not trained on them either. Atoms farther than 5 Å from all others feel nothing "
        "(Cs). Volumes of CsCl (25 %), MgO (16 %), SiC, K, ZnS, Ge, NaCl, CaF2 come out 8 to 11 % too large, of Na, "
        "Li, Fe 9 to 12 % too small; shear moduli are half of what they should be. Fine-tune it, or check it.",
        "made by": "python -m experiments.universal.train, see experiments/universal/README.md",
        "training": {key: config[key] for key in ("steps", "batch_size", "seed", "schedule", "optimizer", "loss")},
    }


def log(folders: list[Path]) -> None:
    """Mean absolute errors of every validation: energies in eV/atom, forces in eV/Å, virials in eV/atom."""
    rows = []
    for folder in folders:
        with open(folder / "lcurve.csv", newline="") as file:
            for row in csv.DictReader(file):
                values = {key.replace("_validation", ""): x for key, x in row.items() if key.startswith("mae_") and x}
                values = {key: x for key, x in values.items() if "_train" not in key and not key.startswith("mae_s")}
                if values:
                    rows.append({"run": folder.name, "step": row["step"], "lr": row["lr"], **values})
    with open(starts.HERE / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def main(model: Path, work: Path, after: list[Path]) -> None:
    """Measure, describe, write."""
    log([*after, model.parent])
    stored = checkpoints.read(model)
    potential, params = checkpoints.load(model, dtype=np.float32)
    config = json.loads((model.parent / "config.json").read_text())
    frames = {head: len(Store(task.train[0])) for head, task in tasks(work).items() if head in LEVELS}
    with jax.enable_x64(True):
        by_head = errors(potential, params, work)
    SMALL.parent.mkdir(exist_ok=True)
    checkpoints.save(SMALL, potential, stored.params, card(config, by_head, frames))
    print(json.dumps(by_head, indent=1))
    print(f"{SMALL}: {SMALL.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--after", type=Path, nargs="*", default=[], help="folders of the runs before it")
    options = parser.parse_args()
    main(options.model, options.work, options.after)
