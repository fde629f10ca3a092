"""Config of a fine-tuning on properties: crystals with targets, a loss, and the length of the training."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from lamjax.config import configuration, read, template
from lamjax.losses import PhononTargetConfig, PropertyLossConfig, TargetConfig
from lamjax.losses.property_targets import ELASTIC, UNITS, VIBRATIONAL
from lamjax.relaxation import CellConfig, RelaxConfig
from lamjax.training.schedules import ScheduleConfig
from lamjax.training.tuning_config import FALL, TuneConfig, completed, read_tuning

COMMAND = "lamjax finetune-properties"
LR = 2e-4
RELAX = {"fmax": 1e-3, "max_steps": 500}


@configuration
class ForceConstantConfig:
    """How much of the force constants is learned in a step."""

    weight: Annotated[float, Field(gt=0, description="of the mean square error per atom, (eV/Å²)²")] = 1.0
    columns: Annotated[int, Field(ge=1, description="of the Hessian, at random")] = 6
    batch_size: Annotated[int, Field(ge=1, description="crystals")] = 1


@configuration
class PropertyTuneConfig(TuneConfig):
    """A run of fine-tuning a stored model on properties of relaxed crystals."""

    crystals: Annotated[
        tuple[str, ...], Field(description="with targets in their info: bulk_modulus_GPa=98.0, volume=40.9, ...")
    ]
    _: KW_ONLY
    targets: Annotated[
        tuple[TargetConfig, ...],
        Field(
            description="[{name: bulk_modulus, weight: 1.0, scale: 10.0, unit: GPa}, ...]: an error of `scale` counts "
            "1 (null: a tenth of the median target); empty: all that there are"
        ),
    ] = ()
    phonons: Annotated[PhononTargetConfig, Field(description="of heat capacities")] = PhononTargetConfig()
    force_constants: Annotated[
        ForceConstantConfig,
        Field(
            description="of crystals with force_constants=FORCE_CONSTANTS (a file of phonopy beside theirs) and "
            'supercell="2 2 2": columns of the Hessian a step'
        ),
    ] = ForceConstantConfig()
    relax: Annotated[
        RelaxConfig, Field(description="how crystals are relaxed before their properties are computed; with the cell")
    ] = field(default_factory=lambda: RelaxConfig(**RELAX, cell=CellConfig()))
    error: Annotated[
        Literal["squared", "absolute"],
        Field(description="of (property - target)/scale: absolute (smooth at 0) or squared"),
    ] = "absolute"
    hold_out: Annotated[
        float, Field(ge=0, lt=1, description="share that is held out where there is no `validation`")
    ] = 0.2
    group_by: Annotated[
        str | None, Field(description='key of info, or "elements": crystals of one value are held out together')
    ] = None
    schedule: ScheduleConfig = ScheduleConfig("cosine", LR, LR / FALL)
    max_programs: Annotated[
        int,
        Field(
            ge=1,
            description="shapes of arrays, each is compiled once (a few minutes); with heat capacities one for each "
            "number of atoms",
        ),
    ] = 2

    def __post_init__(self) -> None:
        if not self.crystals:
            raise ValueError("`crystals` names no file. List at least one, for example [crystals.extxyz].")
        super().__post_init__()
        if self.targets:
            loss_of(self, tuple(replace(target, scale=target.scale or 1.0) for target in self.targets))
        if self.relax.cell is None:
            raise ValueError("relax.cell is null: properties are those of crystals whose cells relax. Leave it out.")

    @property
    def files(self) -> list[str]:
        """Every file that a run reads: model and data."""
        return [self.base, *self.crystals, *self.validation, *(self.replay.files if self.replay else ())]


def loss_of(config: PropertyTuneConfig, targets: tuple[TargetConfig, ...]) -> PropertyLossConfig:
    """The loss of a config with these targets."""
    return PropertyLossConfig(targets, config.relax, config.error, config.phonons)


def units() -> str:
    """The properties that may be learned, and their units."""
    return "; ".join(f"{name} ({', '.join(known)})" for name, known in UNITS.items())


def cost(names: Iterable[str]) -> str:
    """The computations that properties of a crystal need, in words."""
    names, needed = set(names), ["relaxation"]
    needed += ["elastic constants"] if names & ELASTIC else []
    return ", ".join(needed + (["phonons"] if names & VIBRATIONAL else []))


def read_config(path: str | Path | None, content: dict[str, Any], changes: Iterable[str] = ()) -> PropertyTuneConfig:
    """The config of a YAML (or JSON) file, below it `content` (nested keys and values), then changes "key=value".

    Groups of which only some keys are given keep the other defaults of `TEMPLATE`. Raises FileNotFoundError, or
    ValueError that names every key that is unknown, missing or of a wrong type.
    """
    below = {} if path is None else read(path, COMMAND)
    return read_tuning(below, content, changes, path or COMMAND, complete, PropertyTuneConfig)


def complete(content: dict[str, Any]) -> dict[str, Any]:
    """Plain data in which a group that differs from its defaults in some keys keeps the others."""
    return completed(content, LR, relax={**RELAX, "cell": {}}, replay={"bias": "keep"})


TEMPLATE = template(
    PropertyTuneConfig("model.lamjax", ("crystals.extxyz",)),
    f"{COMMAND} MODEL FILES --config THIS: all keys with their defaults.\n"
    "`base` and `crystals` are the MODEL and the FILES of the command. Paths are relative to the folder where it runs.",
)
