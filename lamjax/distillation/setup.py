"""All that a distillation needs before its first round, or before it goes on."""

import json
from pathlib import Path

from lamjax import checkpoints
from lamjax.data import Frame, files_of, read
from lamjax.distillation.config import DistillConfig
from lamjax.distillation.label import Labeller, PotentialLabeller, open_labeller
from lamjax.distillation.outcome import PLOT, STUDENT, TABLE
from lamjax.distillation.rounds import ASKED, Run
from lamjax.distillation.shapes import Shapes
from lamjax.distillation.train import Trainer, open_student
from lamjax.potential import Potential, check_elements
from lamjax.reports import outputs
from lamjax.training.config import differences, to_json, validate

CONFIG = "config.json"
WRITTEN = (CONFIG, "round-*", STUDENT, TABLE, PLOT)
# what the students of all rounds, and their labels, must share
KEPT = ("labeller", "members", "seed", "student.base", "student.head", "student.model", "student.precision")


def prepare(config: DistillConfig, resume: bool = False, labeller: Labeller | None = None) -> tuple[Run, list[str]]:
    """The run, and what its config changes for the rounds to come. `labeller` stands in for that of the config.

    Raises ValueError for elements that student or teacher do not know, for pressures on what is not periodic, and for
    an output folder with rounds in it, unless `resume` and the same student and labeller.
    """
    outputs.claim_folder(config.output, WRITTEN, files_of(config.files))
    changed = _begun(config, resume)
    potential = open_student(config.student)
    starts = read(config.start, elements=potential.elements)
    initial = read(config.initial, elements=potential.elements, require=("energy", "forces")) if config.initial else []
    if config.explore.pressures and (flat := [f.source for f in starts if not f.system.pbc.all()]):
        raise ValueError(
            f"explore.pressures: {flat[0]} is not periodic in all directions. Leave pressures out, or that start."
        )
    wanted = config.student.hessian > 0
    labeller = open_labeller(config.labeller, wanted) if labeller is None else labeller
    if wanted and not isinstance(labeller, PotentialLabeller):
        raise ValueError(
            "student.hessian: only a teacher that is a potential gives Hessian-vector products. Set it to 0."
        )
    if isinstance(labeller, PotentialLabeller):
        _check_teacher(labeller.potential, starts)
    trainer = Trainer(config.student, potential, config.seed)
    asked = Shapes(potential.shells, config.student.max_programs, ASKED, config.student.precision)
    checkpoints.write_atomically(Path(config.output) / CONFIG, to_json(config).encode())
    return Run(config, potential, starts, initial, labeller, trainer, asked), changed


def _check_teacher(teacher: Potential, starts: list[Frame]) -> None:
    for frame in starts:
        try:
            check_elements(teacher, frame.system)
        except ValueError as error:
            raise ValueError(f"The teacher cannot label {frame.source}: {error}") from error


def _begun(config: DistillConfig, resume: bool) -> list[str]:
    """What differs from the config that the folder was begun with; ValueError for what must not."""
    file = Path(config.output) / CONFIG
    if not file.is_file():
        return []
    if not resume:
        raise ValueError(
            f"{config.output} holds a distillation. Add --resume to go on with it, or choose another output folder."
        )
    changed = differences(validate(json.loads(file.read_text()), str(file), DistillConfig), config)
    if wrong := [one for one in changed if one.startswith(KEPT)]:
        raise ValueError(
            f"{config.output} was begun with another student or labeller: {'; '.join(wrong)}. Change them back, or "
            "begin anew in another output folder, with what is labelled already as `initial`."
        )
    return changed
