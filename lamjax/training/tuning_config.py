"""Common config of fine-tuning on structures and on properties: a base, replay, and how its configs are read."""

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from lamjax.checkpoints import KINDS
from lamjax.config import apply, configuration, merged, validate
from lamjax.data import frames_per_batch
from lamjax.losses import LabelLossConfig
from lamjax.training.run_config import CommandConfig
from lamjax.training.state import OptimizerConfig

FALL = 20  # from the first to the last learning rate, unless the config says otherwise
# prefactors of the replayed labels: (0.1 eV/Å)² is then as much as Dq = 1 amu^1/2 Å
REPLAY: dict[str, Any] = {"start_pref_e": 1.0, "limit_pref_e": 1.0, "start_pref_f": 100.0, "limit_pref_f": 100.0}
REPLAY |= {"start_pref_v": 1.0, "limit_pref_v": 1.0}  # without stresses a cell that relaxes is not held
Kind = TypeVar("Kind")


@configuration
class ReplayConfig:
    """Labelled frames that are learned beside the structures; their loss is added with a weight.

    The prefactors do not follow the learning rate by default, as the structure error does not.
    """

    files: tuple[str, ...]
    weight: Annotated[float, Field(gt=0)] = 1.0
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


@configuration
class TuneConfig(CommandConfig):
    """A run of fine-tuning a stored model."""

    base: Annotated[str, Field(description=KINDS)]
    _: KW_ONLY
    head: Annotated[str | None, Field(description="its head, where there are several")] = None
    validation: Annotated[
        tuple[str, ...], Field(description="structures that are relaxed and compared, never trained on")
    ] = ()
    hold_out: Annotated[
        float, Field(ge=0, lt=1, description="share that is held out instead where there is no `validation`")
    ] = 0.1
    group_by: Annotated[
        str | None, Field(description="key of info, such as family: what has one value is held out together")
    ] = None
    replay: Annotated[
        ReplayConfig | None,
        Field(
            description="{files: [labels.extxyz], weight: 1.0, batch_size: 8, bias: change, loss: {...}}: energies, "
            "forces, stresses, of earlier or of the same data, against forgetting"
        ),
    ] = None
    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1, description="structures")] = 4
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig("adam", max_norm=1.0))
    output: Annotated[str, Field(description="folder for config.json, CSV files, plot, states and models")] = (
        "finetuned"
    )
    validate_every: Annotated[int, Field(ge=1, description="epochs")] = 1
    save_every: Annotated[int, Field(ge=1, description="steps between states")] = 50

    def __post_init__(self) -> None:
        if self.hold_out == 0 and not self.validation:
            raise ValueError(
                "hold_out is 0. Without `validation` files it must lie between 0 and 1: the best model is the one that "
                "is best for structures that it has not seen."
            )


def read_tuning(
    below: dict[str, Any],
    above: dict[str, Any],
    changes: Iterable[str],
    source: str | Path,
    complete: Callable[[dict[str, Any]], dict[str, Any]],
    kind: type[Kind],
) -> Kind:
    """The config of plain data, one laid over the other, then changes "key=value"; `complete` adds defaults of groups.

    Raises ValueError that names `source` and every key that is unknown, missing or of a wrong type.
    """
    whole = merged(below, above)
    for change in changes:
        apply(whole, change)
    return validate(complete(whole), str(source), kind)


def completed(content: dict[str, Any], start_lr: float, **groups: dict[str, Any]) -> dict[str, Any]:
    """Plain data in which a group (schedule, optimizer, replay.loss and `groups`) keeps the defaults of other keys."""
    content = dict(content)
    schedule, replay = content.get("schedule"), content.get("replay")
    if isinstance(schedule, dict):
        lr = schedule.get("start_lr", start_lr)
        stop = {"stop_lr": lr / FALL} if isinstance(lr, int | float) else {}
        content["schedule"] = {"type": "cosine", "start_lr": lr, **stop, **schedule}
    for name, defaults in {"optimizer": {"max_norm": 1.0}, **groups}.items():
        if isinstance(content.get(name), dict):
            content[name] = {**defaults, **content[name]}
    if isinstance(replay, dict) and isinstance(replay.get("loss"), dict):
        content["replay"] = {**content["replay"], "loss": {**REPLAY, **replay["loss"]}}
    return content
