"""What a fine-tuning on properties is made from: crystals with targets, a loss, and how long it learns."""

from collections.abc import Iterable
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lamjax.config import configuration
from lamjax.losses import PhononTargetConfig, PropertyLossConfig, TargetConfig
from lamjax.losses.properties import ELASTIC, UNITS, VIBRATIONAL
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.training.config import apply, check_common, read, validate
from lamjax.training.loggers import LoggerName
from lamjax.training.schedules import ScheduleConfig
from lamjax.training.state import OptimizerConfig
from lamjax.training.structures_config import FALL, REPLAY, ReplayConfig, merged

COMMAND = "lamjax finetune-properties"
LR = 2e-4
RELAX = {"fmax": 1e-3, "max_steps": 500}
TEMPLATE = """\
# lamjax finetune-properties MODEL FILES --config THIS: all keys with their defaults.
# `base` and `crystals` are the MODEL and the FILES of the command. Paths are relative to the folder where it runs.
base: model.lamjax                 # a lamjax bundle or a DeePMD-kit .pt, .dp, .yaml
head: null                         # its head, where there are several
crystals: [crystals.extxyz]        # with targets in their info: bulk_modulus_GPa=98.0, volume=40.9, ...
validation: []                     # crystals that are relaxed and compared, never trained on
targets: []                        # [{name: bulk_modulus, weight: 1.0, scale: 10.0, unit: GPa}, ...]: an error of
                                   # `scale` counts 1 (null: a tenth of the median target); empty: all that there are
phonons: {repeats: [2, 2, 2], mesh: [8, 8, 8], temperature: 300.0}   # of heat capacities
force_constants: {weight: 1.0, columns: 6, batch_size: 1}   # of crystals with force_constants=FORCE_CONSTANTS (a
                                   # file of phonopy beside theirs) and supercell="2 2 2": columns of the Hessian a step
relax: {fmax: 1.0e-3, max_steps: 500}   # how crystals are relaxed before their properties are computed; with the cell
error: absolute                    # of (property - target)/scale: absolute (smooth at 0) or squared
hold_out: 0.2                      # share of `crystals` that is held out where there is no `validation`
group_by: null                     # key of info, or "elements": crystals of one value are held out together
replay: null                       # {files: [labels.extxyz], weight: 1.0, batch_size: 8, bias: keep, loss: {...}}:
                                   # energies, forces, stresses, of earlier or of the same data, against forgetting
energy_key: null                   # key of the energy of replayed frames, where it is none of the usual ones; likewise
forces_key: null
stress_key: null                   # eV/Å³, positive in tension
virial_key: null                   # eV, -V stress
type_map: []                       # elements of types that a LAMMPS dump or a DeePMD set numbers
optimizer: {name: adam, max_norm: 1.0, options: {}}
schedule: {type: cosine, start_lr: 2.0e-4, stop_lr: 1.0e-5}
epochs: 10
batch_size: 4                      # crystals
max_programs: 2                    # shapes of arrays, each is compiled once (a few minutes); with heat capacities one
                                   # for each number of atoms
precision: float32                 # of the network; positions and energies are float64
matmul_precision: null             # of products on GPUs: float32, tensorfloat32, bfloat16; null: jax's default
seed: 0
freeze: []                         # parameters that stay as they are, for example [descriptor]
rates: {}                          # factors of the learning rate, for example {descriptor: 0.1}
ema_decay: null                    # for example 0.99: validate and save a running mean of the parameters
output: finetuned                  # folder for config.json, CSV files, plot, states and models
logger: [csv]                      # more places for the records: tensorboard, wandb, mlflow, each with the extra of its
                                   # name; the tables are written in any case
validate_every: 1                  # epochs
save_every: 50                     # steps between states
keep: 3                            # states
patience: null                     # stop after so many validations without a better one
"""


@configuration
class ForceConstantConfig:
    """How much of the force constants is learned in a step."""

    weight: float = 1.0  # of the mean square error per atom, (eV/Å²)²
    columns: int = 6  # of the Hessian, at random
    batch_size: Annotated[int, Field(ge=1)] = 1  # crystals

    def __post_init__(self):
        if self.weight <= 0 or self.columns < 1 or self.batch_size < 1:
            raise ValueError(f"force_constants: weight must be positive, columns and batch_size at least 1; got {self}")


@configuration
class PropertyTuneConfig:
    """A run of fine-tuning a stored model on properties of relaxed crystals."""

    base: str
    crystals: tuple[str, ...]
    head: str | None = None
    validation: tuple[str, ...] = ()
    targets: tuple[TargetConfig, ...] = ()
    phonons: PhononTargetConfig = PhononTargetConfig()
    force_constants: ForceConstantConfig = ForceConstantConfig()
    relax: RelaxConfig = field(default_factory=lambda: RelaxConfig(**RELAX, cell=CellConfig()))
    error: Literal["squared", "absolute"] = "absolute"
    hold_out: float = 0.2
    group_by: str | None = None
    replay: ReplayConfig | None = None
    energy_key: Annotated[str | None, Field(description="where labels are in the files, see `data.ReadOptions`")] = None
    forces_key: str | None = None
    stress_key: str | None = None
    virial_key: str | None = None
    type_map: tuple[str, ...] = ()
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", max_norm=1.0))
    schedule: ScheduleConfig = ScheduleConfig("cosine", LR, LR / FALL)
    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 4
    max_programs: Annotated[int, Field(ge=1)] = 2
    precision: Literal["float32", "float64"] = "float32"
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] | None = None
    seed: int = 0
    freeze: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    ema_decay: float | None = None
    output: str = "finetuned"
    logger: tuple[LoggerName, ...] = ("csv",)
    validate_every: Annotated[int, Field(ge=1)] = 1
    save_every: Annotated[int, Field(ge=1)] = 50
    keep: Annotated[int, Field(ge=1)] = 3
    patience: Annotated[int | None, Field(ge=1)] = None

    def __post_init__(self) -> None:
        if not self.crystals:
            raise ValueError("`crystals` names no file. List at least one, for example [crystals.extxyz].")
        if not 0 <= self.hold_out < 1 or (self.hold_out == 0 and not self.validation):
            raise ValueError(
                f"hold_out is {self.hold_out}. Without `validation` files it must lie between 0 and 1: the best "
                "model is the one whose properties are best for crystals that it has not seen."
            )
        check_common(self)
        if self.targets:
            loss_of(self, tuple(replace(target, scale=target.scale or 1.0) for target in self.targets))
        if self.relax.cell is None:
            raise ValueError("relax.cell is null: properties are those of crystals whose cells relax. Leave it out.")

    @property
    def files(self) -> list[str]:
        """All that a run reads: model and data."""
        return [self.base, *self.crystals, *self.validation, *(self.replay.files if self.replay else ())]


def loss_of(config: PropertyTuneConfig, targets: tuple[TargetConfig, ...]) -> PropertyLossConfig:
    """The loss of a config with these targets."""
    return PropertyLossConfig(targets, config.relax, config.error, config.phonons)


def units() -> str:
    """The properties that may be learned, and their units."""
    return "; ".join(f"{name} ({', '.join(known)})" for name, known in UNITS.items())


def cost(names: Iterable[str]) -> str:
    """What of a crystal must be computed for properties, in words."""
    names, found = set(names), ["relaxation"]
    found += ["elastic constants"] if names & ELASTIC else []
    return ", ".join(found + (["phonons"] if names & VIBRATIONAL else []))


def read_config(path: str | Path | None, content: dict[str, Any], changes: Iterable[str] = ()) -> PropertyTuneConfig:
    """The config of a YAML (or JSON) file, below it `content` (nested keys and values), then changes "key=value".

    Groups of which only some keys are given keep the other defaults of `TEMPLATE`. Raises FileNotFoundError, or
    ValueError that names every key that is unknown, missing or of a wrong type.
    """
    whole = merged({} if path is None else read(path, COMMAND), content)
    for change in changes:
        apply(whole, change)
    return validate(complete(whole), COMMAND if path is None else str(path), PropertyTuneConfig)


def complete(content: dict[str, Any]) -> dict[str, Any]:
    """Plain data in which a group that differs from its defaults in some keys keeps the others."""
    content = dict(content)
    schedule, replay = content.get("schedule"), content.get("replay")
    if isinstance(schedule, dict):
        lr = schedule.get("start_lr", LR)
        stop = {"stop_lr": lr / FALL} if isinstance(lr, int | float) else {}
        content["schedule"] = {"type": "cosine", "start_lr": lr, **stop, **schedule}
    for name, defaults in (("optimizer", {"max_norm": 1.0}), ("relax", {**RELAX, "cell": {}})):
        if isinstance(content.get(name), dict):
            content[name] = {**defaults, **content[name]}
    if isinstance(replay, dict):
        loss = replay.get("loss")
        content["replay"] = {"bias": "keep", **replay}
        content["replay"] |= {"loss": {**REPLAY, **loss}} if isinstance(loss, dict) else {}
    return content
