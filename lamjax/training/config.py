"""What a training run on labels is made from, and how configs are read: a file holds what differs from defaults."""

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from lamjax.arguments import as_tuples, describe, plain
from lamjax.data import ReadOptions, frames_per_batch
from lamjax.losses import LabelLossConfig
from lamjax.potential import PotentialConfig
from lamjax.training.schedules import ScheduleConfig
from lamjax.training.state import OptimizerConfig

TEMPLATE = """\
# lamjax train: only `train` and one of `model` and `base` are needed, the rest are defaults.
# Paths are relative to the folder where the command runs.
train: [data/train.extxyz]         # extxyz (also .gz), anything that ASE reads, folders of DeePMD data
validation: []                     # frames that are measured, never trained on
energy_key: null                   # key of the energy in the files, where it is none of the usual ones; likewise
forces_key: null                   # (a task may have its own)
stress_key: null                   # eV/Å³, positive in tension
virial_key: null                   # eV, -V stress
type_map: []                       # elements of types that a LAMMPS dump or a DeePMD set numbers
hold_out: 0.0                      # share of `train` that is held out at random where there is no `validation`
# tasks:                           # ... or several data sets, each with a head of the model, instead of train
#   oxides: {train: [data/oxides], validation: [], head: oxides, probability: 0.7, loss: {}, batch_size: auto}
#   water: {train: [data/water]}   # head: its name; probability: by frames; loss, batch_size, bias: those below
mix_levels: false                  # whether one head may learn labels that frames say are of several labellers
tasks_per_step: 1                  # tasks drawn for one step; they may lie on different devices
share_layers: 0                    # first layers that all heads have in common, or all (see dim_case_embd of a head)
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
# base: model.lamjax               # ... or one to fine-tune: a lamjax bundle or a DeePMD-kit .pt, .dp
# head: Default                    # its head, where there are several
# add_heads: {new: mean}           # heads to add to it: a copy of a head, the mean of all, or random
# bias: change                     # energy per element: change (fit of label - prediction), set (fit of labels), keep
loss: {start_pref_e: 0.02, limit_pref_e: 1.0, start_pref_f: 1000.0, limit_pref_f: 1.0,
       start_pref_v: 0.0, limit_pref_v: 0.0}           # limit + (start - limit) lr/start_lr
schedule: {type: exp, start_lr: 0.001, stop_lr: 1.0e-6, decay_steps: 5000, warmup_steps: 0}
optimizer: {name: adam, max_norm: null, options: {}}   # any of optax; muon with start_lr 0.005 learns faster
steps: 100000
batch_size: auto                   # a number of structures, or auto:N, lists of about N atoms; auto is auto:32
accumulate: 1                      # batches whose mean gradient makes one update
max_programs: 6                    # shapes of arrays, each is compiled once
precision: float32                 # of the network; energies are summed in float64
matmul_precision: null             # of products on GPUs: float32, tensorfloat32, bfloat16; null: jax's default
seed: 0
freeze: []                         # parameters that stay as they are, for example [descriptor]
rates: {}                          # factors of the learning rate, for example {descriptor: 0.1, heads/new: 1.0}
ema_decay: null                    # for example 0.999: validate and save a running mean of the parameters
output: run                        # folder for states, lcurve.csv, config.json and the model
print_every: 100
validate_every: 1000
save_every: 1000
keep: 3                            # states
monitor: rmse_f                    # the validation error that chooses best.lamjax, mean over tasks by probability
patience: null                     # stop after so many validations without a better one
plots: true                        # parity and learning curves at the end
tensorboard: false                 # needs the extra [tensorboard]
"""


KEYS = ("energy_key", "forces_key", "stress_key", "virial_key")  # in the order of ReadOptions
Config = TypeVar("Config")
# what may change when a run goes on
_HARMLESS = {"output", "print_every", "save_every", "keep", "patience", "plots", "tensorboard", "monitor"}
_COUNTS = (
    "steps",
    "accumulate",
    "tasks_per_step",
    "max_programs",
    "print_every",
    "validate_every",
    "save_every",
    "keep",
    "patience",
)


@dataclass(frozen=True)
class TaskConfig:
    """One data set of a run with several, and the head that learns it."""

    train: tuple[str, ...]
    validation: tuple[str, ...] = ()
    head: str | None = None  # the task's name
    probability: float | None = None  # of a step, relative to the other tasks'; None for all: the number of frames
    loss: LabelLossConfig | None = None  # that of the run
    batch_size: int | str | None = None  # that of the run
    bias: Literal["change", "set", "keep"] | None = None  # that of the run
    energy_key: str | None = None  # those of the run
    forces_key: str | None = None
    stress_key: str | None = None
    virial_key: str | None = None
    type_map: tuple[str, ...] = ()
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        as_tuples(self)
        if self.batch_size is not None:
            frames_per_batch(1, self.batch_size)


@dataclass(frozen=True)
class TrainConfig:
    """A run of training on labels, of one data set (`train`) or several (`tasks`).

    `model` begins a fresh model, `base` fine-tunes a stored one.
    """

    train: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    energy_key: str | None = None  # where labels are in the files, see `data.ReadOptions`
    forces_key: str | None = None
    stress_key: str | None = None
    virial_key: str | None = None
    type_map: tuple[str, ...] = ()  # elements of types that a LAMMPS dump or a DeePMD set numbers
    hold_out: float = 0.0
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    mix_levels: bool = False
    tasks_per_step: int = 1
    share_layers: int | Literal["all"] = 0
    model: PotentialConfig | None = None
    base: str | None = None
    head: str | None = None
    add_heads: dict[str, str] = field(default_factory=dict)  # name -> "random", "mean" or a head of the base
    bias: Literal["change", "set", "keep"] = "change"  # for `base`; a fresh model always gets "set"
    loss: LabelLossConfig = LabelLossConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    steps: int = 100_000
    batch_size: int | str = "auto"
    accumulate: int = 1
    max_programs: int = 6
    precision: Literal["float32", "float64"] = "float32"
    matmul_precision: Literal["float32", "tensorfloat32", "bfloat16"] | None = None
    seed: int = 0
    freeze: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    ema_decay: float | None = None
    output: str = "run"
    print_every: int = 100
    validate_every: int = 1000
    save_every: int = 1000
    keep: int = 3
    monitor: Literal["rmse_e", "rmse_f", "rmse_v", "rmse_s", "mae_e", "mae_f", "mae_v", "mae_s"] = "rmse_f"
    patience: int | None = None
    plots: bool = True
    tensorboard: bool = False
    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        as_tuples(self)
        frames_per_batch(1, self.batch_size)
        if (self.model is None) == (self.base is None):
            raise ValueError("Give either `model` (a fresh model) or `base` (a model file to fine-tune), not both.")
        self._check_data()
        if not 0 <= self.hold_out < 1:
            raise ValueError(f"hold_out must be at least 0 and less than 1, got {self.hold_out}.")
        if self.add_heads and self.base is None:
            raise ValueError("`add_heads` adds heads to a `base`; a fresh model has those of `model.heads`.")
        check_common(self, _COUNTS)
        if self.share_layers != "all" and self.share_layers < 0:
            raise ValueError(f'share_layers must be 0 or more, or "all", got {self.share_layers}.')

    @property
    def files(self) -> list[str]:
        """All that a run reads: model and data."""
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


def read_options(*configs: Any) -> ReadOptions:
    """How files are read: each key from the first config that has it."""

    def first(name: str) -> Any:
        return next((value for config in configs if (value := getattr(config, name))), None)

    return ReadOptions(*map(first, KEYS), first("type_map") or ())


def check_common(config: Any, counts: Iterable[str]) -> None:
    """ValueError for what no run of any kind can have: numbers below 1 among `counts`, rates, ema_decay."""
    for name in counts:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if wrong := {name: rate for name, rate in config.rates.items() if rate < 0}:
        raise ValueError(f"rates must be 0 or more, got {wrong}.")
    check_ema(config.ema_decay)


def check_ema(decay: float | None) -> None:
    """ValueError for what is no weight of a running mean."""
    if decay is not None and not 0 < decay < 1:
        raise ValueError(f"ema_decay must lie between 0 and 1, got {decay}.")


def parse(path: str | Path, changes: Iterable[str] = ()) -> TrainConfig:
    """The config of a YAML (or JSON) file after changes like "schedule.start_lr=1e-4".

    Raises FileNotFoundError, or ValueError that names every key that is unknown, missing or of a wrong type.
    """
    content = read(path)
    for change in changes:
        apply(content, change)
    return validate(content, str(path))


def read(path: str | Path, command: str = "lamjax train") -> dict[str, Any]:
    """The keys and values of a YAML (or JSON) file. Raises FileNotFoundError, or ValueError if it holds no such."""
    path, hint = Path(path), f"`{command} --template`"
    if not path.is_file():
        what = "a folder, not a config file" if path.is_dir() else "no such config file"
        raise FileNotFoundError(f"{path}: {what}. {hint} prints one to begin with.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file. A config is YAML, see {hint}.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected keys and values, see {hint}.")
    return content


def validate(content: dict[str, Any], source: str = "config", kind: type[Config] = TrainConfig) -> Config:
    """The config of plain data; ValueError that begins with `source` and names every key that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(plain(content, kind))
    except ValidationError as error:
        faults = "\n".join(f"  {_fault(fault, kind)}" for fault in _meant(error.errors()))
        raise ValueError(f"{source}: the config is not valid:\n{faults}") from error


def schema(kind: type = TrainConfig, title: str = "lamjax train") -> str:
    """The JSON schema of a config, with which an editor completes and checks YAML files."""
    found = _with_singles(TypeAdapter(kind).json_schema())
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **found})


def _with_singles(node: Any) -> Any:
    """The schema in which a single value stands for a list of one, as `validate` takes it."""
    if isinstance(node, list):
        return [_with_singles(x) for x in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_singles(x) for key, x in node.items()}
    if node.get("type") == "array" and isinstance(node.get("items"), dict) and "prefixItems" not in node:
        several = {key: node.pop(key) for key in ("type", "items")}
        return {"anyOf": [several, several["items"]], **node}
    return node


def differences(old: Config, new: Config) -> list[str]:
    """What decides the course of a run and differs between two configs: "loss.limit_pref_f: 1.0 -> 2.0"."""
    a, b = (_flat(json.loads(to_json(config))) for config in (old, new))
    return [
        f"{key}: {a.get(key)} -> {b.get(key)}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key) and key.partition(".")[0] not in _HARMLESS
    ]


def _flat(content: dict, above: str = "") -> dict[str, Any]:
    """{"a.b": value} of nested dicts."""
    found = {}
    for key, value in content.items():
        nested = isinstance(value, dict) and value
        found |= _flat(value, f"{above}{key}.") if nested else {f"{above}{key}": value}
    return found


def _meant(errors: Any) -> list[dict]:
    """The errors less those of alternatives (classes) that the key `type` says are not meant."""
    wrong = {
        error["loc"][:-1]
        for error in errors
        if error["type"] == "literal_error" and error["loc"][-1:] == ("type",) and _is_class(error["loc"][:-1])
    }

    def is_meant(loc: tuple) -> bool:
        inside = [branch for branch in wrong if loc[: len(branch)] == branch]
        if not inside:
            return True
        branch = min(inside, key=len)
        siblings = {e["loc"][: len(branch)] for e in errors if e["loc"][: len(branch) - 1] == branch[:-1]}
        return siblings <= wrong and loc == (*branch, "type")  # the type fits none of them: only that is told

    found, types = [], {}
    for error in [error for error in errors if is_meant(error["loc"])]:
        if error["loc"][:-1] in wrong:  # the type fits no alternative: they are one fault
            first = types.setdefault(error["loc"][:-2], error)
            error["loc"] = (*error["loc"][:-2], "type")
            if first is not error:
                first["ctx"] = {"expected": f"{first['ctx']['expected']}, {error['ctx']['expected']}"}
                continue
        found.append(error)
    return found


def _is_class(loc: tuple) -> bool:
    """Whether a place is one of several alternatives, which pydantic calls by the names of their classes."""
    return bool(loc) and str(loc[-1])[:1].isupper()


def _fault(error: dict, kind: type) -> str:
    """One line of a validation error; for an unknown key the known one that is meant, or all there are."""
    place = ".".join(map(str, error["loc"])) or "config"
    context, value = error.get("ctx", {}), error.get("input")
    match error["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            known = _keys(error["loc"][:-1], kind)
            close = _near(error["loc"][-1], known)
            hint = close or (f"Known keys: {', '.join(known)}." if known else "")
            return f"{place}: unknown key. {hint}".rstrip()
        case "union_tag_invalid":
            return f"{place}.type: {_unsupported(context['tag'], context['expected_tags'])}"
        case "literal_error":
            return f"{place}: {_unsupported(value, context['expected'])}"
        case "union_tag_not_found" | "dataclass_type" | "dict_type":
            if isinstance(value, dict):
                return f"{place}: the key `type` is missing."
            return f"{place}: expected keys and values, got {describe(value)}."
        case "objective":
            return f"{place}: {error['msg']}, got {value.get('type')!r}." if isinstance(value, dict) else error["msg"]
        case "missing":
            return f"{place}: is missing."
        case "value_error":
            return f"{place}: {context['error']}"
    return f"{place}: {_EXPECTED.get(error['type'], error['msg'])}, got {describe(value)}."


_EXPECTED = {
    "tuple_type": "expected a list",
    "string_type": "expected a text",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_parsing": "expected a number",
    "float_type": "expected a number",
    "bool_parsing": "expected true or false",
    "bool_type": "expected true or false",
}


def _unsupported(value: Any, expected: str) -> str:
    """What is supported instead of a value; `expected` is pydantic's list of it."""
    known = re.findall(r"'([^']*)'", expected) or [expected]
    said = f"{value!r} is not supported; supported: {', '.join(known)}."
    return f"{said} {_near(value, known)}".rstrip()


def _near(value: Any, known: list[str]) -> str:
    """The known name that is meant, as a question; empty if none is like it."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(value).lower(), lower, n=1)
    return f"Did you mean {lower[close[0]]}?" if close else ""


def _keys(path: tuple, kind: type) -> list[str]:
    """The keys that a config knows below a path, looked up in its schema; one of several alternatives goes by name."""
    root = TypeAdapter(kind).json_schema()
    node = root
    for part in path:
        options = _options(node, root)
        within = [o["properties"][part] for o in options if part in o.get("properties", ())]
        named = [o for o in options if part in (o.get("title"), o.get("properties", {}).get("type", {}).get("const"))]
        others = [o["additionalProperties"] for o in options if isinstance(o.get("additionalProperties"), dict)]
        node = [*within, *named, *others, options[0]][0]
    return sorted({key for option in _options(node, root) for key in option.get("properties", ())})


def _options(node: dict, root: dict) -> list[dict]:
    """A node of a schema and whatever it refers to or chooses among."""
    found = [node]
    for other in (*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("prefixItems", ())):
        found += _options(other, root)
    if "$ref" in node:
        found += _options(root["$defs"][node["$ref"].rpartition("/")[2]], root)
    return found


def to_json(config: Config) -> str:
    """The whole config, defaults included, as JSON text."""
    return TypeAdapter(type(config)).dump_json(config, indent=1).decode()


def apply(content: dict[str, Any], change: str, option: str = "--set") -> None:
    """Set one dotted key; the value is read as YAML. `option` is what the user gave it with."""
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{option} takes key=value, for example schedule.start_lr=1e-4; got {change!r}.")
    *parents, last = key.strip().split(".")
    for name in parents:
        if content.get(name) is None:
            content[name] = {}
        content = content[name]
        if not isinstance(content, dict):
            raise ValueError(f"{option} {change}: {name} is not a group of keys.")
    try:
        content[last] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        said = str(error).splitlines()[-1].strip() if not getattr(error, "problem", "") else error.problem
        raise ValueError(f"{option} {change}: the value is not YAML ({said}). Quote it as one word.") from error


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
