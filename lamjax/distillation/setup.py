"""All that a distillation needs before its first round, or before it goes on."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from lamjax import checkpoints, pytree
from lamjax.audit import theory_levels as levels
from lamjax.data import Frame, ReadOptions, digests, files_of, read
from lamjax.distillation.config import DistillConfig
from lamjax.distillation.exploration import plain_start
from lamjax.distillation.explored import check_pressures
from lamjax.distillation.files import read_facts, write_facts
from lamjax.distillation.label import Labeller, PotentialLabeller, open_labeller
from lamjax.distillation.outcome import PLOT, RESULT, STUDENT, TABLE
from lamjax.distillation.rounds import ASKED, Distillation
from lamjax.distillation.shapes import LastingShapes
from lamjax.distillation.substitute import substitutes
from lamjax.distillation.train import Trainer, open_student
from lamjax.potential import Potential, check_elements
from lamjax.reports import outputs
from lamjax.training import loggers
from lamjax.training.config import differences, read_options, to_json, validate
from lamjax.training.folder import REPORT, environment

CONFIG, FACTS = "config.json", "facts.json"
WRITTEN = (CONFIG, FACTS, "round-*", STUDENT, TABLE, PLOT, RESULT, REPORT)
# settings that must be the same for the students and labels of all rounds
KEPT = ("labeller", "members", "seed", "student.base", "student.head", "student.model", "student.precision")


def prepare(
    config: DistillConfig, resume: bool = False, labeller: Labeller | None = None
) -> tuple[Distillation, list[str]]:
    """The run, and what its config changes for the rounds to come. `labeller` stands in for that of the config.

    Raises ValueError for elements that student or teacher do not know, for pressures on what is not periodic, and for
    an output folder with rounds in it, unless `resume` and the same student and labeller.
    """
    loggers.check(config.logger)
    outputs.claim_folder(config.output, WRITTEN, files_of(config.files))
    changed = _begun(config, resume)
    potential = open_student(config.student)
    options, required = read_options(config), ("energy", "forces")
    read_starts = read(config.start, elements=potential.elements, options=ReadOptions(elements=config.type_map))
    starts = [plain_start(frame) for frame in read_starts]
    initial = read(config.initial, np.float64, potential.elements, required, options) if config.initial else []
    check_pressures(config.explore, starts)
    wanted = config.student.hessian > 0
    labeller = open_labeller(config.labeller, wanted, options) if labeller is None else labeller
    if wanted and not isinstance(labeller, PotentialLabeller):
        raise ValueError(
            "student.hessian: only a teacher that is a potential gives Hessian-vector products. Set it to 0."
        )
    known = set(potential.elements)
    if isinstance(labeller, PotentialLabeller):
        _check_teacher(labeller.potential, starts)
        known &= set(labeller.potential.elements or known)
    explored = config.explore
    starts += substitutes(starts, explored.substitutions, config.seed, sorted(known), explored.similar)
    _check_initial(initial, labeller)
    data = _fingerprint(config, starts, initial, labeller)
    if (Path(config.output) / CONFIG).is_file():
        _check_data(config, data, changed)
    trainer = Trainer(config.student, potential, config.seed, config.logger)
    asked = LastingShapes(potential.shells, config.student.max_programs, ASKED, config.student.precision)
    checkpoints.write_atomically(Path(config.output) / CONFIG, to_json(config).encode())
    write_facts(Path(config.output) / FACTS, data | environment())
    return Distillation(config, potential, starts, initial, labeller, trainer, asked), changed


def _fingerprint(
    config: DistillConfig, starts: Any, initial: Any, labeller: Labeller
) -> dict[str, dict[str, str] | str]:
    """Names of all that rounds are made from: the frames that are given, and the numbers of teacher and base."""
    names: dict[str, Any] = {"start": digests(starts), "initial": digests(initial)}
    if isinstance(labeller, PotentialLabeller):
        names["labeller"] = _name(labeller.params)
    if config.student.base is not None:
        names["student.base"] = _name(checkpoints.read(config.student.base, config.student.head).params)
    return names


def _name(params: PyTree) -> str:
    """A digest of parameters: different where any number differs."""
    numbers = hashlib.blake2b(digest_size=12)
    for content in pytree.contents(params):
        numbers.update(content)
    return numbers.hexdigest()


def _check_data(config: DistillConfig, new: dict, changed: list[str]) -> None:
    """ValueError if what the files of the config hold is not what it was, though the config names the same files."""
    file = Path(config.output) / FACTS
    old = read_facts(file)
    if not old:
        warnings.warn(
            f"{config.output} was begun by an older lamjax, which did not note what its files held: whether starts, "
            "labelled frames, teacher and base are those of the beginning is not known. From now on it will be.",
            stacklevel=3,
        )
    named = {one.partition(":")[0] for one in changed}
    if other := [key for key in new if key in old and old[key] != new[key] and key not in named]:
        raise ValueError(
            f"{config.output} was begun with other files: what {' and '.join(other)} names is not what it was. Put it "
            "back, or begin anew in another output folder, with what is labelled already as `initial`. Other starts "
            "for the rounds to come go into a file of another name."
        )


def _check_teacher(teacher: Potential, starts: list[Frame]) -> None:
    for frame in starts:
        try:
            check_elements(teacher, frame.system)
        except ValueError as error:
            raise ValueError(f"The teacher cannot label {frame.source}: {error}") from error


def _check_initial(initial: list[Frame], labeller: Labeller) -> None:
    """A warning for labels to learn from that are not those of the labeller."""
    level, others = getattr(labeller, "level", None), levels.levels(initial)
    others.pop(level, None)
    if not isinstance(labeller, PotentialLabeller):
        others.pop(levels.UNKNOWN, None)  # of the same calculations, as a rule
    if level and others:
        warnings.warn(
            f"`initial` holds {levels.described(others)}, the labeller is {level}: students learn both. Leave "
            "`initial` out unless both are of one level of theory.",
            stacklevel=2,
        )


def _begun(config: DistillConfig, resume: bool) -> list[str]:
    """Changes from the config that the folder was begun with; ValueError for those that are not allowed."""
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
