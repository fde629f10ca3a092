"""Common parts of the configs of runs: keys of labels, training, output."""

from dataclasses import KW_ONLY, field
from typing import Annotated, Any, Literal

from pydantic import Field

from lamjax.config import configuration
from lamjax.data import ReadOptions
from lamjax.training.loggers import LoggerName
from lamjax.training.schedules import ScheduleConfig
from lamjax.training.state import OptimizerConfig

KEYS = ("energy_key", "forces_key", "stress_key", "virial_key")  # of ReadOptions
Decay = Annotated[
    float | None, Field(gt=0, lt=1, description="for example 0.99: validate and save a running mean of the parameters")
]
MatmulPrecision = Annotated[
    Literal["float32", "tensorfloat32", "bfloat16"] | None,
    Field(description="of products on GPUs: float32, tensorfloat32, bfloat16; null: jax's default"),
]


@configuration
class LabelKeys:
    """Keys of labels in files that do not use the usual names, and the elements of numbered types."""

    _: KW_ONLY
    energy_key: Annotated[
        str | None, Field(description="key of the energy in the files, where it is none of the usual ones; likewise")
    ] = None
    forces_key: str | None = None
    stress_key: Annotated[str | None, Field(description="eV/Å³, positive in tension")] = None
    virial_key: Annotated[str | None, Field(description="eV, -V stress")] = None
    type_map: Annotated[
        tuple[str, ...], Field(description="elements of types that a LAMMPS dump or a DeePMD set numbers")
    ] = ()


@configuration
class PrecisionConfig:
    """Precision of the training."""

    _: KW_ONLY
    precision: Annotated[
        Literal["float32", "float64"], Field(description="of the network; energies are summed in float64")
    ] = "float32"
    matmul_precision: MatmulPrecision = None


@configuration
class LearningConfig:
    """Frozen parts and rates of learning, and the intervals of validation and saving."""

    _: KW_ONLY
    freeze: Annotated[
        tuple[str, ...], Field(description="parameters that stay as they are, for example [descriptor]")
    ] = ()
    rates: Annotated[
        dict[str, Annotated[float, Field(ge=0)]],
        Field(description="factors of the learning rate, for example {descriptor: 0.1, heads/new: 1.0}"),
    ] = field(default_factory=dict)
    ema_decay: Decay = None
    matmul_precision: MatmulPrecision = None
    validate_every: Annotated[int, Field(ge=1, description="steps")] = 1000
    save_every: Annotated[int, Field(ge=1, description="steps between states")] = 1000
    keep: Annotated[int, Field(ge=1, description="states")] = 3
    patience: Annotated[int | None, Field(ge=1, description="stop after so many validations without a better one")] = (
        None
    )
    logger: Annotated[
        tuple[LoggerName, ...],
        Field(
            description="more places for the records: tensorboard, wandb, mlflow, each with the extra of its name; "
            "the tables are written in any case"
        ),
    ] = ("csv",)


@configuration
class RunConfig(LearningConfig):
    """Settings of a run that do not depend on its loss: optimiser, learning rate, length, and intervals of output."""

    output: Annotated[str, Field(description="folder")]
    steps: Annotated[int, Field(description="updates")]
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = ScheduleConfig()
    accumulate: Annotated[int, Field(ge=1, description="batches whose mean gradient makes one update")] = 1
    print_every: Annotated[int, Field(ge=1)] = 100
    validate_first: Annotated[
        bool, Field(description="before the first step too: the untrained model may be the best")
    ] = False


@configuration
class CommandConfig(LabelKeys, PrecisionConfig, LearningConfig):
    """Common part of the configs of all commands that train a model."""

    _: KW_ONLY
    optimizer: Annotated[OptimizerConfig, Field(description="any of optax; muon with start_lr 0.005 learns faster")] = (
        field(default_factory=OptimizerConfig)
    )
    schedule: Annotated[ScheduleConfig, Field(description="of the learning rate")] = ScheduleConfig()
    max_programs: Annotated[int, Field(ge=1, description="shapes of arrays, each is compiled once")] = 6
    seed: int = 0
    output: Annotated[str, Field(description="folder for config.json, tables, plots, states and models")] = "run"


def read_options(*configs: Any) -> ReadOptions:
    """The options for reading files, each key from the first config that has it."""

    def first(name: str) -> Any:
        return next((value for config in configs if (value := getattr(config, name))), None)

    return ReadOptions(**{key: first(key) for key in KEYS}, elements=first("type_map") or ())
