"""Config of a training run on labels, and its reading: a file holds what differs from defaults."""

from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from lamjax.checkpoints import KINDS
from lamjax.config import configuration, template
from lamjax.config import files as config_files
from lamjax.config.files import apply as apply
from lamjax.config.files import differences as differences
from lamjax.config.files import read as read
from lamjax.config.files import to_json as to_json
from lamjax.data import frames_per_batch
from lamjax.losses import LabelLossConfig
from lamjax.potential import PotentialConfig
from lamjax.training.run_config import KEYS as KEYS
from lamjax.training.run_config import CommandConfig, LabelKeys
from lamjax.training.run_config import read_options as read_options

Kind = TypeVar("Kind")


@configuration
class TaskConfig(LabelKeys):
    """One data set of a run with several, and the head that learns it."""

    train: Annotated[
        tuple[str, ...], Field(description="extxyz (also .gz), anything that ASE reads, folders of DeePMD data")
    ]
    validation: Annotated[tuple[str, ...], Field(description="frames that are measured, never trained on")] = ()
    head: Annotated[str | None, Field(description="the task's name")] = None
    probability: Annotated[
        float | None, Field(description="of a step, relative to the other tasks'; None for all: the number of frames")
    ] = None
    loss: Annotated[LabelLossConfig | None, Field(description="that of the run")] = None
    batch_size: Annotated[int | str | None, Field(description="that of the run")] = None
    bias: Annotated[Literal["change", "set", "keep"] | None, Field(description="that of the run")] = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            frames_per_batch(1, self.batch_size)


@configuration
class TrainConfig(CommandConfig):
    """A run of training on labels, of one data set (`train`) or several (`tasks`).

    `model` begins a fresh model, `base` fine-tunes a stored one.
    """

    train: Annotated[
        tuple[str, ...], Field(description="extxyz (also .gz), anything that ASE reads, folders of DeePMD data")
    ] = ()
    validation: Annotated[tuple[str, ...], Field(description="frames that are measured, never trained on")] = ()
    hold_out: Annotated[
        float,
        Field(ge=0, lt=1, description="share of `train` that is held out at random where there is no `validation`"),
    ] = 0.0
    tasks: Annotated[
        dict[str, TaskConfig],
        Field(description="... or several data sets, each with a head of the model, instead of train"),
    ] = field(default_factory=dict)
    mix_levels: Annotated[
        bool, Field(description="whether one head may learn labels that frames say are of several labellers")
    ] = False
    tasks_per_step: Annotated[
        int, Field(ge=1, description="tasks drawn for one step; they may lie on different devices")
    ] = 1
    share_layers: Annotated[
        int | Literal["all"],
        Field(description="first layers that all heads have in common, or all (see dim_case_embd of a head)"),
    ] = 0
    model: Annotated[PotentialConfig | None, Field(description="a fresh model ...")] = None
    base: Annotated[str | None, Field(description=f"... or one to fine-tune: {KINDS}")] = None
    head: Annotated[str | None, Field(description="its head, where there are several")] = None
    add_heads: Annotated[dict[str, str], Field(description='name -> "random", "mean" or a head of the base')] = field(
        default_factory=dict
    )
    bias: Annotated[
        Literal["change", "set", "keep"], Field(description='for `base`; a fresh model always gets "set"')
    ] = "change"
    loss: LabelLossConfig = LabelLossConfig()
    steps: Annotated[int, Field(ge=1)] = 100_000
    batch_size: Annotated[
        int | str, Field(description="a number of structures, or auto:N, lists of about N atoms; auto is auto:32")
    ] = "auto"
    accumulate: Annotated[int, Field(ge=1, description="batches whose mean gradient makes one update")] = 1
    print_every: Annotated[int, Field(ge=1)] = 100
    monitor: Annotated[
        Literal["rmse_e", "rmse_f", "rmse_v", "rmse_s", "mae_e", "mae_f", "mae_v", "mae_s"],
        Field(description="the validation error that chooses best.lamjax, mean over tasks by probability"),
    ] = "rmse_f"
    plots: Annotated[bool, Field(description="parity and learning curves at the end")] = True
    tensorboard: Annotated[bool, Field(description="as logger: [tensorboard]")] = False

    def __post_init__(self) -> None:
        frames_per_batch(1, self.batch_size)
        if (self.model is None) == (self.base is None):
            raise ValueError("Give either `model` (a fresh model) or `base` (a model file to fine-tune), not both.")
        self._check_data()
        if self.add_heads and self.base is None:
            raise ValueError("`add_heads` adds heads to a `base`; a fresh model has those of `model.heads`.")
        if self.share_layers != "all" and self.share_layers < 0:
            raise ValueError(f'share_layers must be 0 or more, or "all", got {self.share_layers}.')

    @property
    def files(self) -> list[str]:
        """Every file that a run reads: model and data."""
        tasks = [path for task in self.tasks.values() for path in (*task.train, *task.validation)]
        return [*([self.base] if self.base else []), *self.train, *self.validation, *tasks]

    def _check_data(self) -> None:
        if self.tasks and (self.train or self.validation or self.head):
            raise ValueError("With `tasks`, give train, validation and head in each task, not for the run.")
        files = {f"tasks.{name}.train": task.train for name, task in self.tasks.items()} or {"train": self.train}
        if empty := [name for name, paths in files.items() if not paths]:
            raise ValueError(f"`{empty[0]}` names no file. List at least one, for example [train.extxyz].")
        probabilities = [task.probability for task in self.tasks.values()]
        if None in probabilities and any(probabilities) or any(p is not None and p <= 0 for p in probabilities):
            raise ValueError(f"Give a probability above 0 to all tasks or to none, got {probabilities}.")


def parse(path: str | Path, changes: Iterable[str] = ()) -> TrainConfig:
    """The config of a YAML (or JSON) file after changes like "schedule.start_lr=1e-4".

    Raises FileNotFoundError, or ValueError that names every key that is unknown, missing or of a wrong type.
    """
    content = read(path)
    for change in changes:
        apply(content, change)
    return validate(content, str(path))


def validate(content: dict[str, Any], source: str = "config", kind: type[Kind] = TrainConfig) -> Kind:
    """The config of plain data, by default of a training; ValueError names every key that is wrong."""
    return config_files.validate(content, source, kind)


def schema(kind: Any = TrainConfig, title: str = "lamjax train") -> str:
    """The JSON schema of a config, with which an editor completes and checks YAML files."""
    return config_files.schema(kind, title)


_TASKS = """\
# tasks:                           # ... or several data sets, each with a head of the model, instead of train
#   oxides: {train: [data/oxides], validation: [], head: oxides, probability: 0.7, loss: {}, batch_size: auto}
#   water: {train: [data/water]}   # head: its name; probability: by frames; loss, batch_size, bias: those below
"""
_MODEL = """\
model:                             # a fresh model ...
  elements: [O, H]
  descriptor:                      # keys and defaults are those of DeePMD-kit's dpa2
    repinit: {rcut: 6.0, rcut_smth: 0.5, nsel: 120, axis_neuron: 12}
    three_body: {rcut: 4.0, rcut_smth: 3.5, sel: 48}
    repformer: {rcut: 4.0, rcut_smth: 3.5, nsel: 48, g2_dim: 32, update_g1_has_attn: false, update_g2_has_attn: false,
                update_g2_has_g1g1: false, update_style: res_residual, update_residual: 0.01}
  # descriptor:                    # ... or DPA-3 (or {type: dpa1, rcut: 6.0, sel: 120})
  #   type: dpa3
  #   activation_function: silut:10.0
  #   repflow: {n_dim: 128, e_dim: 64, a_dim: 32, nlayers: 6, e_rcut: 6.0, e_rcut_smth: 5.3, e_sel: 120, a_rcut: 4.0,
  #             a_rcut_smth: 3.5, a_sel: 30, a_compress_rate: 1, a_compress_e_rate: 2, a_compress_use_split: true,
  #             smooth_edge_update: true, edge_init_use_dist: true, use_exp_switch: true}
  heads: [[Default, {neuron: [240, 240, 240]}]]
"""
_BASE = """\
# base: model.lamjax               # ... or one to fine-tune: a lamjax bundle, a DeePMD-kit model or Nequix's .nqx
# head: Default                    # its head, where there are several
# add_heads: {new: mean}           # heads to add to it: a copy of a head, the mean of all, or random
# bias: change                     # energy per element: change (fit of label - prediction), set (fit of labels), keep
"""
TEMPLATE = template(
    TrainConfig(train=("data/train.extxyz",), base="model.lamjax"),
    "lamjax train: only `train` and one of `model` and `base` are needed, the rest are defaults.\n"
    "Paths are relative to the folder where the command runs.",
    {"tasks": _TASKS, "model": _MODEL, "base": _BASE, "head": "", "add_heads": "", "bias": ""},
)
