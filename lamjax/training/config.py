"""What a training run on labels is made from: a file holds only what differs from these defaults."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from lamjax.losses import LabelLossConfig
from lamjax.potential import PotentialConfig
from lamjax.training.schedules import ScheduleConfig
from lamjax.training.state import OptimizerConfig

TEMPLATE = """\
# lamjax train: only `train` and one of `model` and `base` are needed, the rest are defaults.
# Paths are relative to the folder where the command runs.
train: [data/train.extxyz]         # extxyz (also .gz), anything that ASE reads, folders of DeePMD data
validation: []                     # frames that are measured, never trained on
# tasks:                           # ... or several data sets, each with a head of the model, instead of train
#   oxides: {train: [data/oxides], validation: [], head: oxides, probability: 0.7, loss: {}, batch_size: auto}
#   water: {train: [data/water]}   # head: its name; probability of a step: by frames; loss, batch_size: those below
model:                             # a fresh model ...
  elements: [O, H]
  descriptor:                      # keys and defaults are those of DeePMD-kit's dpa2
    repinit: {rcut: 6.0, rcut_smth: 0.5, nsel: 120, axis_neuron: 12}
    three_body: {rcut: 4.0, rcut_smth: 3.5, sel: 48}
    repformer: {rcut: 4.0, rcut_smth: 3.5, nsel: 48, g2_dim: 32, update_g1_has_attn: false, update_g2_has_attn: false,
                update_g2_has_g1g1: false, update_style: res_residual, update_residual: 0.01}
  heads: [[Default, {neuron: [240, 240, 240]}]]
# base: model.lamjax               # ... or one to fine-tune: a lamjax bundle or a DeePMD-kit .pt, .dp
# head: Default                    # its head, where there are several
# bias: change                     # energy per element: change (fit of label - prediction), set (fit of labels), keep
loss: {start_pref_e: 0.02, limit_pref_e: 1.0, start_pref_f: 1000.0, limit_pref_f: 1.0,
       start_pref_v: 0.0, limit_pref_v: 0.0}           # limit + (start - limit) lr/start_lr
schedule: {type: exp, start_lr: 0.001, stop_lr: 1.0e-6, decay_steps: 5000, warmup_steps: 0}
optimizer: {name: adam, max_norm: null, options: {}}   # any optax optimiser; options are its keyword arguments
steps: 100000
batch_size: auto                   # a number of structures, or auto:N for ceil(N / atoms) of them; auto is auto:32
max_programs: 6                    # shapes of arrays, each is compiled once
precision: float32                 # of the network; energies are summed in float64
seed: 0
freeze: []                         # parameters that stay as they are, for example [descriptor]
ema_decay: null                    # for example 0.999: validate and save a running mean of the parameters
output: run                        # folder for states, lcurve.csv, config.json and the model
print_every: 100
validate_every: 1000
save_every: 1000
keep: 3                            # states
"""


@dataclass(frozen=True)
class TaskConfig:
    """One data set of a run with several, and the head that learns it."""

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    head: str | None = None  # the task's name
    probability: float | None = None  # of a step, relative to the other tasks'; None for all: the number of frames
    loss: LabelLossConfig | None = None  # that of the run
    batch_size: int | str | None = None  # that of the run
    __pydantic_config__: ClassVar = {"extra": "forbid"}


@dataclass(frozen=True)
class TrainConfig:
    """A run of training on labels, of one data set (`train`) or several (`tasks`).

    `model` begins a fresh model, `base` fine-tunes a stored one.
    """

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    model: PotentialConfig | None = None
    base: str | None = None
    head: str | None = None
    bias: Literal["change", "set", "keep"] = "change"  # for `base`; a fresh model always gets "set"
    loss: LabelLossConfig = LabelLossConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 100_000
    batch_size: int | str = "auto"
    max_programs: int = 6
    precision: Literal["float32", "float64"] = "float32"
    seed: int = 0
    freeze: tuple[str, ...] = ()
    ema_decay: float | None = None
    output: str = "run"
    print_every: int = 100
    validate_every: int = 1000
    save_every: int = 1000
    keep: int = 3
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self):
        if (self.model is None) == (self.base is None):
            raise ValueError("Give either `model` (a fresh model) or `base` (a model file to fine-tune), not both.")
        self._check_data()
        for name in ("steps", "max_programs", "print_every", "validate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file. `lamjax train --template` prints one to begin with.")
    try:
        content = yaml.load(path.read_text(), _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, see `lamjax train --template`.")
    for change in changes:
        _apply(content, change)
    return validate(content, str(path))


def validate(content: dict[str, Any], source: str = "config") -> TrainConfig:
    """The config of plain data; ValueError that begins with `source` and names every key that is wrong."""
    try:
        return TypeAdapter(TrainConfig).validate_python(content)
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"{source}: the config is not valid:\n" + "\n".join(faults)) from error


def to_json(config: TrainConfig) -> str:
    """The whole config, defaults included, as JSON text."""
    return TypeAdapter(TrainConfig).dump_json(config, indent=1).decode()


def _apply(content: dict[str, Any], change: str) -> None:
    """Set one dotted key; the value is read as YAML."""
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set takes key=value, for example schedule.start_lr=1e-4; got {change!r}.")
    *parents, last = key.strip().split(".")
    for name in parents:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise ValueError(f"--set {change}: {name} is not a group of keys.")
    content[last] = yaml.load(value, _Loader)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number (YAML 1.1 wants 1.0e-3) and No an element (there it is false)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, expression) for tag, expression in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
