"""Config of a fine-tuning on structures: pairs of starts and targets, an objective, and how it is judged."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from lamjax.config import configuration, read, template
from lamjax.losses import ForceTargetConfig, NewtonTargetConfig, StructureLossConfig
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.relaxation.adjoints import is_through_steps
from lamjax.training.schedules import ScheduleConfig
from lamjax.training.tuning_config import FALL, TuneConfig, completed, read_tuning

COMMAND = "lamjax finetune-structures"
LR = 5e-4
JUDGE = {"fmax": 0.01, "max_steps": 1000}


def _kind(value: Any) -> str:
    """Which objective plain data, or a config, is."""
    return value.get("type", "structure") if isinstance(value, dict) else getattr(value, "type", "")


Objective = Annotated[
    Annotated[StructureLossConfig, Tag("structure")]
    | Annotated[ForceTargetConfig, Tag("force")]
    | Annotated[NewtonTargetConfig, Tag("newton")],
    Discriminator(_kind, custom_error_type="objective", custom_error_message="type must be structure, force or newton"),
]


@configuration
class StructureTuneConfig(TuneConfig):
    """A run of fine-tuning a stored model on where structures relax to."""

    pairs: Annotated[
        tuple[str, ...],
        Field(
            description="trajectories (relax_id, step), starts with final_positions, pair_id and role, or a file "
            "with all steps of each; force and newton take relaxed structures alone"
        ),
    ]
    _: KW_ONLY
    fmax: Annotated[
        float, Field(gt=0, description="eV/Å; a target with a larger force is not relaxed, and left out")
    ] = 0.1
    variable_cell: Annotated[
        bool, Field(description="cells relax too; without a `cell` in the objective everything, at no pressure")
    ] = False
    objective: Annotated[
        Objective,
        Field(
            description="type structure: where the relaxation ends; force: zero force at the target; newton: one "
            "Newton step from the target"
        ),
    ] = field(default_factory=StructureLossConfig)
    noise: Annotated[
        float,
        Field(
            ge=0, lt=1, description="Å; starts are moved at random by this (standard deviation), in every epoch anew"
        ),
    ] = 0.0
    learn_minimiser: Annotated[
        bool, Field(description="learn the numbers of the minimiser too (dt_start, alpha_start; curvature; eta, ...)")
    ] = False
    judge: Annotated[
        RelaxConfig,
        Field(description="how structures are relaxed for validation: all the way; keys as objective.relax"),
    ] = field(default_factory=lambda: RelaxConfig(**JUDGE))
    basin: Annotated[
        float, Field(gt=0, description="Å; a structure is in the right basin if no atom is farther off than this")
    ] = 0.5
    schedule: ScheduleConfig = ScheduleConfig("cosine", LR, LR / FALL)
    max_programs: Annotated[int, Field(ge=1, description="shapes of arrays, each is compiled once")] = 3

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("`pairs` names no file. List at least one, for example [relaxations.extxyz].")
        super().__post_init__()
        self._check_cells()
        self._check_noise()
        self._check_minimiser()

    @property
    def files(self) -> list[str]:
        """Every file that a run reads: model and data."""
        return [self.base, *self.pairs, *self.validation, *(self.replay.files if self.replay else ())]

    def _check_cells(self) -> None:
        objective = getattr(self.objective, "relax", self.objective).cell
        if not self.variable_cell and (objective is not None or self.judge.cell is not None):
            raise ValueError("objective or judge relaxes the cell: set variable_cell, or leave their `cell` out.")

    def _check_noise(self) -> None:
        if self.noise and not isinstance(self.objective, StructureLossConfig):
            raise ValueError(
                f"noise moves starts; the objective {self.objective.type!r} begins at the target. Leave `noise` "
                "out, or take the objective structure."
            )

    def _check_minimiser(self) -> None:
        if not self.learn_minimiser:
            return
        if not isinstance(self.objective, StructureLossConfig):
            raise ValueError(
                f"learn_minimiser: the objective {self.objective.type!r} relaxes nothing. Leave it out, or take the "
                "objective structure."
            )
        if not is_through_steps(self.objective.relax.adjoint):
            raise ValueError(
                "learn_minimiser: with the adjoint `implicit` no gradient reaches the minimiser, since a minimum does "
                "not depend on the way to it. Take unrolled, until_converged or hybrid."
            )


def objective_of(config: StructureTuneConfig) -> StructureLossConfig | ForceTargetConfig | NewtonTargetConfig:
    """The objective, with a cell that relaxes if the config says so."""
    objective = config.objective
    if not config.variable_cell:
        return objective
    if isinstance(objective, StructureLossConfig):
        return replace(objective, relax=replace(objective.relax, cell=objective.relax.cell or CellConfig()))
    return replace(objective, cell=objective.cell or CellConfig())


def judge_of(config: StructureTuneConfig) -> RelaxConfig:
    """The relaxation of validation: with the cell setting of the objective unless `judge` has its own."""
    objective = objective_of(config)
    return replace(config.judge, cell=config.judge.cell or getattr(objective, "relax", objective).cell)


def read_config(path: str | Path | None, content: dict[str, Any], changes: Iterable[str] = ()) -> StructureTuneConfig:
    """The config of a YAML (or JSON) file, below it `content` (nested keys and values), then changes "key=value".

    Groups of which only some keys are given keep the other defaults of `TEMPLATE`. Raises FileNotFoundError, or
    ValueError that names every key that is unknown, missing or of a wrong type.
    """
    below = {} if path is None else read(path, COMMAND)
    if isinstance(below.get("objective"), dict):
        below["objective"] = {"type": "structure", **below["objective"]}
    return read_tuning(below, content, changes, path or COMMAND, complete, StructureTuneConfig)


def complete(content: dict[str, Any]) -> dict[str, Any]:
    """Plain data in which a group that differs from its defaults in some keys keeps the others."""
    content = completed(content, LR, judge=JUDGE)
    objective = content.get("objective")
    if isinstance(objective, dict) and _kind(objective) == "structure" and isinstance(objective.get("relax"), dict):
        relax = {"adjoint": {"type": "unrolled"}, **objective["relax"]}
        content["objective"] = {**objective, "relax": relax}
    return content


TEMPLATE = template(
    StructureTuneConfig("model.lamjax", ("relaxations.extxyz",)),
    f"{COMMAND} MODEL FILES --config THIS: all keys with their defaults.\n"
    "`base` and `pairs` are the MODEL and the FILES of the command. Paths are relative to the folder where it runs.",
)
