"""What a fine-tuning on structures is made from: pairs of starts and targets, an objective, and how it is judged."""

from collections.abc import Iterable
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from lamjax.config import configuration
from lamjax.data import frames_per_batch
from lamjax.losses import ForceTargetConfig, LabelLossConfig, NewtonTargetConfig, StructureLossConfig
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.relaxation.adjoints import is_through_steps
from lamjax.training.config import apply, check_common, read, validate
from lamjax.training.loggers import LoggerName
from lamjax.training.schedules import ScheduleConfig
from lamjax.training.state import OptimizerConfig

COMMAND = "lamjax finetune-structures"
FALL = 20  # from the first to the last learning rate, unless the config says otherwise
# prefactors of the replayed labels: (0.1 eV/Å)² is then as much as Dq = 1 amu^1/2 Å
REPLAY: dict[str, Any] = {"start_pref_e": 1.0, "limit_pref_e": 1.0, "start_pref_f": 100.0, "limit_pref_f": 100.0}
REPLAY |= {"start_pref_v": 1.0, "limit_pref_v": 1.0}  # without stresses a cell that relaxes is not held
TEMPLATE = """\
# lamjax finetune-structures MODEL FILES --config THIS: all keys with their defaults.
# `base` and `pairs` are the MODEL and the FILES of the command. Paths are relative to the folder where it runs.
base: model.lamjax                 # a lamjax bundle or a DeePMD-kit .pt, .dp, .yaml
head: null                         # its head, where there are several
pairs: [relaxations.extxyz]        # trajectories (relax_id, step), starts with final_positions, pair_id and role, or
                                   # a file with all steps of each; force and newton take relaxed structures alone
validation: []                     # pairs that are relaxed to convergence and compared, never trained on
energy_key: null                   # key of the energy in all files, where it is none of the usual ones; likewise
forces_key: null
stress_key: null                   # eV/Å³, positive in tension
virial_key: null                   # eV, -V stress
type_map: []                       # elements of types that a LAMMPS dump or a DeePMD set numbers
hold_out: 0.1                      # share of `pairs` that is held out instead where there is no `validation`
group_by: null                     # key of the starts' info, such as family: a group is held out as a whole
fmax: 0.1                          # eV/Å; a target with a larger force is not relaxed, and left out
variable_cell: false               # cells relax too
objective:                         # type structure: where the relaxation ends
  type: structure                  # force: zero force at the target; newton: one Newton step from the target
  relax:
    fmax: 0.02
    max_steps: 500                 # of the adjoints until_converged, implicit, hybrid
    adjoint: {type: unrolled, steps: 50}  # until_converged {max_steps, checkpoints}, implicit {tol, gate, polish, ...},
                                          # hybrid {window, implicit: {...}}
    minimiser: {type: fire, dt_start: 0.1, dt_max: 0.4, max_step: 0.2}  # or lbfgs, gradient_flow {eta, additive}
    cell: null                     # {pressure, components, keep}; with variable_cell: everything relaxes at no pressure
  distance: {kind: dq, cell: 0.0}  # dq, rmsd, squared or bounded (scale); cell: weight of the strain
  window: 1.0                      # of the adjoint hybrid: weight of the distance at the end of its window
  energy: 0.0                      # weight of the energy per atom at the end
noise: 0.0                         # Å; starts are moved at random by this (standard deviation), in every epoch anew
learn_minimiser: false             # learn the numbers of the minimiser too (dt_start, alpha_start; curvature; eta, ...)
replay: null                       # {files: [labels.extxyz], weight: 1.0, batch_size: 8, bias: change, loss: {...}}:
                                   # energies, forces, stresses, of earlier or of the same data, against forgetting
judge: {fmax: 0.01, max_steps: 1000}   # how structures are relaxed for validation: all the way; keys as objective.relax
basin: 0.5                         # Å; a structure is in the right basin if no atom is farther off than this
optimizer: {name: adam, max_norm: 1.0, options: {}}
schedule: {type: cosine, start_lr: 5.0e-4, stop_lr: 2.5e-5}
epochs: 10
batch_size: 4                      # structures
max_programs: 3                    # shapes of arrays, each is compiled once
precision: float32                 # of the network; positions and energies are float64
matmul_precision: null             # of products on GPUs: float32, tensorfloat32, bfloat16; null: jax's default
seed: 0
freeze: []                         # parameters that stay as they are, for example [descriptor]
rates: {}                          # factors of the learning rate, for example {descriptor: 0.1, minimiser: 10}
ema_decay: null                    # for example 0.99: validate and save a running mean of the parameters
output: finetuned                  # folder for config.json, CSV files, plot, states and models
validate_every: 1                  # epochs
save_every: 50                     # steps between states
keep: 3                            # states
patience: null                     # stop after so many validations without a better one
logger: [csv]                      # more places for the records: tensorboard, wandb, mlflow, each with the extra of its
                                   # name; the tables are written in any case
"""


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
class ReplayConfig:
    """Labelled frames that are learned beside the structures; their loss is added with a weight.

    The prefactors do not follow the learning rate by default, as the structure error does not.
    """

    files: tuple[str, ...]
    weight: float = 1.0
    loss: LabelLossConfig = LabelLossConfig(**REPLAY)
    batch_size: Annotated[int | str, Field(description="structures")] = 8
    head: Annotated[str | None, Field(description="whose energies these are; the one that is trained")] = None
    bias: Annotated[
        Literal["change", "keep"], Field(description="the energy per element is first refitted to the frames, or not")
    ] = "change"

    def __post_init__(self) -> None:
        frames_per_batch(1, self.batch_size)
        if not self.files:
            raise ValueError("`replay.files` names no file. List at least one, or leave `replay` out.")
        if self.weight <= 0:
            raise ValueError(f"replay.weight must be above 0, got {self.weight}. Leave `replay` out for none.")


@configuration
class StructureTuneConfig:
    """A run of fine-tuning a stored model on where structures relax to."""

    base: Annotated[str, Field(description="a lamjax bundle or a DeePMD-kit .pt, .dp, .yaml")]
    pairs: Annotated[
        tuple[str, ...],
        Field(
            description="trajectories (relax_id, step), starts with final_positions, pair_id and role, or a file "
            "with all steps of each; force and newton take relaxed structures alone"
        ),
    ]
    head: Annotated[str | None, Field(description="its head, where there are several")] = None
    validation: Annotated[
        tuple[str, ...], Field(description="pairs that are relaxed to convergence and compared, never trained on")
    ] = ()
    energy_key: Annotated[str | None, Field(description="where labels are in the files, see `data.ReadOptions`")] = None
    forces_key: str | None = None
    stress_key: Annotated[str | None, Field(description="eV/Å³, positive in tension")] = None
    virial_key: Annotated[str | None, Field(description="eV, -V stress")] = None
    type_map: Annotated[
        tuple[str, ...], Field(description="elements of types that a LAMMPS dump or a DeePMD set numbers")
    ] = ()
    hold_out: Annotated[
        float, Field(description="share of `pairs` that is held out instead where there is no `validation`")
    ] = 0.1
    group_by: Annotated[
        str | None, Field(description="key of the starts' info, such as family: a group is held out as a whole")
    ] = None
    fmax: Annotated[float, Field(description="eV/Å; of `data.read_pairs`")] = 0.1
    variable_cell: Annotated[bool, Field(description="cells relax too")] = False
    objective: Annotated[Objective, Field(description="type structure: where the relaxation ends")] = field(
        default_factory=StructureLossConfig
    )
    noise: Annotated[float, Field(description="Å")] = 0.0
    learn_minimiser: Annotated[
        bool, Field(description="learn the numbers of the minimiser too (dt_start, alpha_start; eta, additive)")
    ] = False
    replay: Annotated[
        ReplayConfig | None,
        Field(description="energies, forces, stresses, of earlier or of the same data, against forgetting"),
    ] = None
    judge: Annotated[
        RelaxConfig,
        Field(description="how structures are relaxed for validation: all the way; keys as objective.relax"),
    ] = field(default_factory=lambda: RelaxConfig(fmax=0.01, max_steps=1000))
    basin: Annotated[float, Field(description="Å")] = 0.5
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", max_norm=1.0))
    schedule: ScheduleConfig = ScheduleConfig("cosine", 5e-4, 5e-4 / FALL)
    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1, description="structures")] = 4
    max_programs: Annotated[int, Field(ge=1, description="shapes of arrays, each is compiled once")] = 3
    precision: Annotated[
        Literal["float32", "float64"], Field(description="of the network; positions and energies are float64")
    ] = "float32"
    matmul_precision: Annotated[
        Literal["float32", "tensorfloat32", "bfloat16"] | None,
        Field(description="of products on GPUs: float32, tensorfloat32, bfloat16; null: jax's default"),
    ] = None
    seed: int = 0
    freeze: Annotated[
        tuple[str, ...], Field(description="parameters that stay as they are, for example [descriptor]")
    ] = ()
    rates: Annotated[
        dict[str, float],
        Field(description="factors of the learning rate, for example {descriptor: 0.1, minimiser: 10}"),
    ] = field(default_factory=dict)
    ema_decay: Annotated[
        float | None, Field(description="for example 0.99: validate and save a running mean of the parameters")
    ] = None
    output: Annotated[str, Field(description="folder for config.json, CSV files, plot, states and models")] = (
        "finetuned"
    )
    validate_every: Annotated[int, Field(ge=1, description="epochs")] = 1
    save_every: Annotated[int, Field(ge=1, description="steps between states")] = 50
    keep: Annotated[int, Field(ge=1, description="states")] = 3
    patience: Annotated[int | None, Field(ge=1, description="stop after so many validations without a better one")] = (
        None
    )
    logger: Annotated[tuple[LoggerName, ...], Field(description="where records go, beside the tables")] = ("csv",)

    def __post_init__(self) -> None:
        if not self.pairs:
            raise ValueError("`pairs` names no file. List at least one, for example [relaxations.extxyz].")
        if not 0 <= self.hold_out < 1 or (self.hold_out == 0 and not self.validation):
            raise ValueError(
                f"hold_out is {self.hold_out}. Without `validation` files it must lie between 0 and 1: the best "
                "model is the one that relaxes structures best that it has not seen."
            )
        check_common(self)
        if self.basin <= 0 or self.fmax <= 0:
            raise ValueError(f"basin and fmax must be positive, got {self.basin} Å and {self.fmax} eV/Å.")
        self._check_cells()
        self._check_noise()
        self._check_minimiser()

    @property
    def files(self) -> list[str]:
        """All that a run reads: model and data."""
        return [self.base, *self.pairs, *self.validation, *(self.replay.files if self.replay else ())]

    def _check_cells(self) -> None:
        objective = getattr(self.objective, "relax", self.objective).cell
        if not self.variable_cell and (objective is not None or self.judge.cell is not None):
            raise ValueError("objective or judge relaxes the cell: set variable_cell, or leave their `cell` out.")

    def _check_noise(self) -> None:
        if not 0 <= self.noise < 1:
            raise ValueError(f"noise is {self.noise} Å; it must be at least 0 and below 1.")
        if self.noise and not isinstance(self.objective, StructureLossConfig):
            raise ValueError(f"noise moves starts; the objective {self.objective.type!r} begins at the target.")

    def _check_minimiser(self) -> None:
        if not self.learn_minimiser:
            return
        if not isinstance(self.objective, StructureLossConfig):
            raise ValueError(f"learn_minimiser: the objective {self.objective.type!r} relaxes nothing.")
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
    """How validation relaxes: with the cell setting of the objective unless `judge` has its own."""
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
    whole = merged(below, content)
    for change in changes:
        apply(whole, change)
    return validate(complete(whole), COMMAND if path is None else str(path), StructureTuneConfig)


def complete(content: dict[str, Any]) -> dict[str, Any]:
    """Plain data in which a group that differs from its defaults in some keys keeps the others."""
    content = dict(content)
    schedule = content.get("schedule")
    if isinstance(schedule, dict):
        lr = schedule.get("start_lr", 5e-4)
        stop = {"stop_lr": lr / FALL} if isinstance(lr, int | float) else {}
        content["schedule"] = {"type": "cosine", "start_lr": lr, **stop, **schedule}
    for name, defaults in (("optimizer", {"max_norm": 1.0}), ("judge", {"fmax": 0.01, "max_steps": 1000})):
        if isinstance(content.get(name), dict):
            content[name] = {**defaults, **content[name]}
    replay, objective = content.get("replay"), content.get("objective")
    if isinstance(replay, dict) and isinstance(replay.get("loss"), dict):
        content["replay"] = {**replay, "loss": {**REPLAY, **replay["loss"]}}
    if isinstance(objective, dict) and _kind(objective) == "structure" and isinstance(objective.get("relax"), dict):
        relax = {"adjoint": {"type": "unrolled"}, **objective["relax"]}
        content["objective"] = {**objective, "relax": relax}
    return content


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nested dicts, one laid over the other; where the `type` of a group changes, its other keys go."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        same = both and value.get("type", old.get("type")) == old.get("type", value.get("type"))
        found[key] = merged(old, value) if same else value
    return found
