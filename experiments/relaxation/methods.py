"""What is compared: ways to learn from relaxations, each a config of `lamjax finetune`."""

from typing import Any, NamedTuple

from experiments.relaxation.sets import RelaxationSet, Split, path
from lamjax import losses, training
from lamjax.config import merged
from lamjax.training.config import TrainConfig
from lamjax.training.structures import StructureTuneConfig, read_config

BASE = "base"  # not trained
START = "not relaxed"  # starts as they are
FORCES = "forces"  # the rival: fine-tuning on energies and forces of all steps of the same relaxations
STRESSES = "forces and stresses"  # the same where the cell relaxes too
_IMPLICIT = {"type": "implicit", "tol": 0.01, "gate": 0.05}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "zero force": {"type": "force"},
    "Newton": {"type": "newton"},
    "BPTT": {"relax": {"fmax": 0.02, "adjoint": {"type": "unrolled", "steps": 50}}},
    "implicit": {"relax": {"fmax": 0.02, "max_steps": 200, "adjoint": _IMPLICIT}},
    "hybrid": {
        "relax": {"fmax": 0.02, "max_steps": 200, "adjoint": {"type": "hybrid", "window": 20, "implicit": _IMPLICIT}}
    },
}
THEN = "forces, then BPTT"  # both, one after the other, and the forces of the relaxations mixed into the second one
KEPT = "both, the base kept"  # labels, then structures; to both, forces elsewhere that the base gives or learned
KEPT_FORCES = "forces, the base kept"  # the first half of it
SHARES = {f"{share:.0%}": share for share in (0.25, 0.5, 0.75)}  # of the way from the base to what was trained
SHORT: dict[str, Any] = {"objective": {"relax": {"adjoint": {"steps": 25}}}, "epochs": 1}  # BPTT that takes seconds
SETTINGS: dict[str, dict[str, Any]] = {  # what may be chosen otherwise in it
    "as it is": {},
    "path of 10 steps": {"objective": {"relax": {"adjoint": {"steps": 10}}}},
    "path of 50 steps": {"objective": {"relax": {"adjoint": {"steps": 50}}}},
    "learning rate / 4": {"schedule": {"start_lr": 1.25e-4}},
    "learning rate x 4": {"schedule": {"start_lr": 2e-3}},
    "3 epochs": {"epochs": 3},
    "Muon": {"optimizer": {"name": "muon"}},
    "SGD with momentum": {"optimizer": {"name": "sgd", "options": {"momentum": 0.9}}, "schedule": {"start_lr": 5e-3}},
    "starts moved by 0.05 Å": {"noise": 0.05},
    "bounded loss": {"objective": {"distance": {"kind": "bounded"}}},
    "no replay": {"replay": None},
    "FIRE learned": {"learn_minimiser": True},
    "gradient flow": {"objective": {"relax": {"minimiser": {"type": "gradient_flow", "eta": 0.02}}}},
    "gradient flow learned": {
        "objective": {"relax": {"minimiser": {"type": "gradient_flow", "eta": 0.02}}},
        "learn_minimiser": True,
    },
    "gradient flow, additive term learned": {
        "objective": {"relax": {"minimiser": {"type": "gradient_flow", "eta": 0.02, "additive": True}}},
        "learn_minimiser": True,
    },
}
REPLAY = {  # forces alone: energies of two levels of theory do not go together
    "loss": {f"{which}_pref_{label}": 0.0 for which in ("start", "limit") for label in "ev"},
    "batch_size": "auto:96",
    "bias": "keep",
}


class Effort(NamedTuple):
    """How much is spent on a run: as is reported, or to see in seconds that it runs."""

    judge: dict[str, Any]  # how held-out structures are relaxed
    force_steps: int
    changes: dict[str, Any]  # of every run on structures


FULL = Effort({"fmax": 0.01, "max_steps": 600}, 1500, {})
QUICK = Effort({"fmax": 0.01, "max_steps": 3}, 3, {"epochs": 1, "batch_size": 2})


def structures(
    method: str, dataset: RelaxationSet, files: Split, changes: dict[str, Any], after: str | None = None
) -> StructureTuneConfig:
    """A run that learns where relaxations end, with what the base knows mixed in; `after` is a model to begin from."""
    replayed = {THEN: [files.steps], KEPT: [files.steps, files.kept]}
    keeping = dict(dataset.keeping) if method == KEPT else {}
    objective = keeping.pop("objective", method)
    objective = objective if objective in OBJECTIVES else "BPTT"
    content = {
        "base": after or path(dataset.base),
        "pairs": [files.pairs],
        "validation": [files.test],
        "objective": merged(OBJECTIVES[objective], dataset.objectives.get(objective, {})),
        "replay": REPLAY | {"files": replayed.get(method, [files.earlier])},
        "variable_cell": dataset.variable_cell,
    }
    if keeping and dataset.variable_cell:
        content = merged(content, {"replay": {"loss": {"start_pref_v": 1.0, "limit_pref_v": 1.0}}})
    return read_config(None, merged(merged(merged(content, dataset.settings), keeping), changes))


def forces(method: str, dataset: RelaxationSet, files: Split, steps: int, output: str, seed: int) -> TrainConfig:
    """A run that learns energies and forces; stresses too by STRESSES, and before KEPT where the cell relaxes."""
    kept = method == KEPT_FORCES
    virial = (
        {"start_pref_v": 0.02, "limit_pref_v": 1.0} if method == STRESSES or (kept and dataset.variable_cell) else {}
    )
    return TrainConfig(
        train=(files.steps, *([files.kept] if kept else [])),
        base=path(dataset.base),
        loss=losses.LabelLossConfig(
            start_pref_e=0.2, limit_pref_e=20.0, start_pref_f=100.0, limit_pref_f=60.0, **virial
        ),
        schedule=training.ScheduleConfig("cosine", start_lr=5e-4, stop_lr=2.5e-5),
        optimizer=training.OptimizerConfig("adam", max_norm=5.0),
        steps=steps,
        batch_size="auto:96",
        max_programs=dataset.settings["max_programs"],
        seed=seed,
        output=output,
        plots=False,
        validate_every=steps,
        print_every=max(1, steps // 3),
        save_every=steps,
        keep=1,
    )
