"""DeePMD-kit's training inputs (input.json) as configs of `lamjax train`: plain dicts in, plain dicts out.

Absent keys get DeePMD-kit's defaults. What changes numbers and has no counterpart is refused by name; what does not
(logs, caches, seeds of parts), or has no counterpart by design, is listed with the reason.
"""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ase.data

from lamjax import potential as potentials
from lamjax.interop.deepmd import options
from lamjax.interop.deepmd.sections import Section
from lamjax.interop.deepmd.words import short
from lamjax.potential import DEFAULT_HEAD, PotentialConfig

_ALIASES = {
    "training": {
        "numb_steps": ("stop_batch", "num_step", "num_steps", "numb_step"),
        "numb_epoch": ("num_epochs", "num_epoch", "numb_epochs"),
    },
    "data": {"auto_prob": ("auto_prob_style",), "sys_probs": ("sys_weights",), "numb_btch": ("numb_batch",)},
}
_LEGACY_DATA = ("systems", "set_prefix", "batch_size", "sys_probs", "sys_weights", "auto_prob", "auto_prob_style")
_LEGACY_OPTIMIZER = {"opt_type": "type", **{k: k for k in ("weight_decay", "adam_beta1", "adam_beta2")}}
_WARMUP = ("warmup_steps", "warmup_ratio", "warmup_start_factor")
# dpa1: defaults of input files, which differ from those of the class that models in files were made with
_DPA1_DEFAULTS = {"sel": "auto", "neuron": [10, 20, 40], "axis_neuron": 4, "smooth_type_embedding": False}
_LOSS = {
    *(f"{which}_pref_{term}" for which in ("start", "limit") for term in "efv"),
    *("relative_f", "use_huber", "huber_delta", "loss_func", "f_use_norm", "intensive_ener_virial"),
}
_SCHEDULE = {
    "exp": {"decay_steps": 5000, "decay_rate": None, "smooth": False},
    "cosine": {},
    "wsd": {"decay_phase_ratio": 0.1, "decay_type": "inverse_linear"},
}

FRAMES = "statistics are taken from all frames"
SEED = "the run's seed is the only one"
FILES = "the run's folder is `output`, its curve lcurve.csv, its states are in states/"
LOGGING = "concerns logs, timing and profiling alone"
SETUP = "concerns how DeePMD-kit computes, not what"


class Conversion(NamedTuple):
    """A config for `lamjax train` as plain data, and what of the input has no place in it."""

    config: dict[str, Any]
    dropped: tuple[tuple[str, str], ...]  # key of the input, why it was not carried over


_SECTION, _SHARED = (dict, "keys and values"), ((dict, str), "keys and values, or the name of a shared part")
_KINDS: dict[str, tuple[Any, str]] = {  # kinds of the values of keys
    **dict.fromkeys(("model", "training", "learning_rate", "loss", "optimizer", "model_dict", "shared_dict"), _SECTION),
    **dict.fromkeys(("data_dict", "loss_dict", "model_prob", "training_data", "validation_data"), _SECTION),
    **dict.fromkeys(("repinit", "repformer", "repflow", "three_body"), _SECTION),
    **dict.fromkeys(("descriptor", "fitting_net"), _SHARED),
    "type_map": ((list, str), "a list of elements"),
    "systems": ((list, str), "a list of folders"),
    **dict.fromkeys(("type", "precision", "activation_function"), (str, "a word")),
}


def convert(content: dict[str, Any], locate: Callable[[str], str] = str) -> Conversion:
    """The config of a training input for one data set or several; `locate` maps the paths of its systems.

    Keys that begin with an underscore are comments. Raises ValueError that names the key for what lamjax does not do.
    """
    _check_kinds({"model": None, "training": None, **content})
    top = Section(_modern(content), "", [])
    training = top.section("training", _ALIASES["training"])
    config = (_several if "model_dict" in top.peek("model") else _single)(top, training, locate)
    n_steps = _steps(training)
    config["schedule"] = _schedule(top.section("learning_rate"), n_steps)
    config["optimizer"] = _optimizer(top.section("optimizer"), training)
    config |= {"steps": n_steps, **_run(training)}
    top.drop("validation measures all frames of the validation data", "validating")
    top.close()
    return Conversion(config, tuple(dict.fromkeys(top.dropped)))


def _single(top: Section, training: Section, locate: Callable) -> dict[str, Any]:
    model = top.section("model")
    descriptor, fitting = model.section("descriptor"), model.section("fitting_net")
    parts = [_net(descriptor, "descriptor"), _net(fitting, "heads")]
    config = _potential(model, parts[0][0], parts[1][0], DEFAULT_HEAD)
    return {
        **_data(training, locate),
        "model": json.loads(potentials.to_json(config)),
        "loss": _loss(top.section("loss")),
        **_precision_and_freeze(top, parts),
    }


def _several(top: Section, training: Section, locate: Callable) -> dict[str, Any]:
    """One descriptor, a head for every branch, a task for every head."""
    model = top.section("model")
    branches, shared = model.need("model_dict"), model.section("shared_dict")
    for_all = model.rest()  # keys beside the branches hold for all of them
    branches = {
        name: Section({**for_all, **branch}, f"model.model_dict.{name}", top.dropped)
        for name, branch in branches.items()
    }
    type_map = _shared_type_map(branches, shared)
    descriptor = _net(_shared_descriptor(branches, shared), "descriptor")
    fittings, one_net = _fittings(branches, shared)
    configs = {
        name: _potential(branch, descriptor[0], fittings[name][0], name, type_map) for name, branch in branches.items()
    }
    top.children += branches.values()
    shared.drop("no branch refers to it", *shared.left)
    first = next(iter(configs.values()))
    if other := [name for name, c in configs.items() if c.pair_exclude_types != first.pair_exclude_types]:
        raise ValueError(f"model.model_dict.{other[0]}.pair_exclude_types differs from that of the first branch.")
    whole = PotentialConfig(
        first.elements, first.descriptor, tuple(c.heads[0] for c in configs.values()), first.pair_exclude_types
    )
    return {
        "tasks": _tasks(top, training, list(branches), locate),
        "model": json.loads(potentials.to_json(whole)),
        **({"share_layers": "all"} if one_net else {}),
        **_precision_and_freeze(top, [descriptor, *fittings.values()]),
    }


def _tasks(top: Section, training: Section, names: list[str], locate: Callable) -> dict[str, Any]:
    training.refuse("Give numb_steps and model_prob.", num_epoch_dict={})
    data, losses = training.section("data_dict"), top.section("loss_dict")
    probabilities = training.take("model_prob", {})
    if not probabilities:
        training.note("model_prob", "absent: tasks are drawn by their number of frames, not of systems")
    elif wrong := sorted(set(names) ^ probabilities.keys()):
        raise ValueError(f"training.model_prob.{wrong[0]}: give the probability of every branch: {', '.join(names)}.")
    tasks = {}
    for name in names:
        task = {**_data(data.section(name), locate), "loss": _loss(losses.section(name))}
        tasks[name] = {**task, "head": name, "probability": probabilities.get(name)}
    return tasks


def _shared_type_map(branches: dict[str, Section], shared: Section) -> list[str]:
    type_maps = {}
    for name, branch in branches.items():
        value = branch.need("type_map")
        type_maps[name] = shared.peek(value.partition(":")[0]) if isinstance(value, str) else value
    first = next(iter(type_maps.values()))
    if other := [name for name, value in type_maps.items() if value != first or not first]:
        raise ValueError(f"model.model_dict.{other[0]}.type_map: all branches need the same type_map. Share one.")
    for key in [key for key, value in shared.left.items() if value == first]:
        del shared.left[key]
    return first


def _shared_descriptor(branches: dict[str, Section], shared: Section) -> Section:
    """The descriptor that all branches refer to as a whole."""
    parts = {name: branch.need("descriptor") for name, branch in branches.items()}
    whole = {value.removesuffix(":0") if isinstance(value, str) else None for value in parts.values()}
    if len(whole) > 1 or not whole <= shared.left.keys():
        if len(parts) == 1 and isinstance(next(iter(parts.values())), dict):
            ((name, value),) = parts.items()
            return Section(value, f"model.model_dict.{name}.descriptor", shared.dropped)
        raise ValueError(
            f"model.model_dict: the branches' descriptors are {short(parts)}. All heads of a lamjax model share one "
            f"descriptor as a whole: name one entry of model.shared_dict ({', '.join(shared.left)}) in every branch."
        )
    descriptor = shared.section(whole.pop())
    if descriptor.left.get("add_tebd_to_repinit_out"):
        descriptor.note("add_tebd_to_repinit_out", "its weights are shared among all heads, in DeePMD-kit they are not")
    return descriptor


def _fittings(branches: dict[str, Section], shared: Section) -> tuple[dict[str, tuple], bool]:
    """The fitting nets of the branches, and whether one is shared by all; one that some share becomes one for each."""
    sections, users, nets = {}, {}, {}
    for name, branch in branches.items():
        value = branch.need("fitting_net")
        if isinstance(value, str):
            key = value.partition(":")[0]
            if key not in sections and key not in shared.left:
                raise ValueError(f"{branch.name('fitting_net')} = {short(value)}: model.shared_dict has no such entry.")
            if key not in sections:
                sections[key] = _net(shared.section(key), "heads")
            users.setdefault(key, []).append(name)
            nets[name] = sections[key]
        else:
            nets[name] = _net(Section(value, branch.name("fitting_net"), branch.dropped), f"heads/{name}")
    one_net = len(branches) > 1 and [len(names) for names in users.values()] == [len(branches)]
    for key, names in users.items():
        if len(names) > 1 and not one_net:
            shared.note(key, f"fitting net shared among branches {', '.join(names)}: every head has its own parameters")
    return nets, one_net


def _net(section: Section, freeze_as: str) -> tuple[dict, str, list[str]]:
    """Options of a descriptor or fitting net, its precision, and what is to be frozen."""
    section.drop(SEED, "seed")
    section.refuse("Remove it.", rcond=None)
    if section.peek("repformer"):
        Section(section.peek("repformer"), section.name("repformer"), []).refuse("Leave it out.", trainable_ln=True)
    section.refuse("Leave it out.", trainable_ln=True)
    trainable = section.take("trainable", True)
    trainable = all(trainable) if isinstance(trainable, list) else trainable
    precision = section.take("precision", "default")
    return section.rest(), precision, [] if trainable else [freeze_as]


def _potential(
    model: Section, descriptor: dict, fitting: dict, head: str, type_map: Sequence[str] | None = None
) -> PotentialConfig:
    model.drop(FRAMES, "data_stat_nbatch", "data_bias_nsample")
    model.drop("says nothing of the model", "info", "model_branch_alias", "srtab_add_bias")
    model.drop("to fine-tune, put `base: model file` in place of `model`", "finetune_head")
    model.refuse("Leave it out.", data_stat_protect=0.01, preset_out_bias=None, type="standard")
    if descriptor.get("type") in ("dpa1", "se_atten", "se_atten_v2"):
        zero_mean = descriptor.get("type") != "se_atten_v2"
        descriptor = {"set_davg_zero": zero_mean, **_DPA1_DEFAULTS, **_renamed(descriptor)}
    keys = {"type_map": type_map} if type_map else {}
    if names := [n for n in type_map or model.peek("type_map") or () if n not in ase.data.atomic_numbers or n == "X"]:
        raise ValueError(
            f"{model.name('type_map')} holds {', '.join(map(str, names[:12]))}, which are no chemical symbols. Name "
            "elements there and in the type_map.raw of the data: lamjax's types are elements."
        )
    return options.model_config({**model.rest(), **keys, "descriptor": descriptor, "fitting_net": fitting}, head)


def _renamed(descriptor: dict) -> dict:
    names = {"n_axis_neuron": "axis_neuron", "smooth_type_embdding": "smooth_type_embedding"}
    return {names.get(key, key): value for key, value in descriptor.items()}


def _precision_and_freeze(top: Section, parts: list[tuple]) -> dict[str, Any]:
    """One precision for the whole network, the widest that was asked for; DeePMD-kit's default is float64."""
    precisions = {"float64" if precision == "default" else precision for _, precision, _ in parts}
    if other := sorted(precisions - {"float32", "float64"}):
        raise ValueError(f"model: precision {short(other[0])} is not supported. Use float32 or float64.")
    if len(precisions) > 1:
        top.note("model", "parts of different precision: all of the network is float64")
    freeze = list(dict.fromkeys(name for _, _, names in parts for name in names))
    return {"precision": max(precisions), "freeze": freeze}


def _data(section: Section, locate: Callable) -> dict[str, Any]:
    section.drop("statistics are computed anew", "stat_file", "stat_file_mode")
    train, validation = (section.section(f"{name}_data", _ALIASES["data"]) for name in ("training", "validation"))
    for part in (train, validation):
        part.refuse("Name the systems in `systems`.", rglob_patterns=None)
        part.refuse("Systems are drawn by their frames; to weigh them otherwise, make tasks.", sys_probs=None)
        part.drop("folders are called set.*", "set_prefix")
    train.refuse("Systems are drawn by their frames; to weigh them otherwise, make tasks.", auto_prob="prob_sys_size")
    train.refuse("Remove such frames from the data.", min_pair_dist=0)
    validation.drop("validation measures all frames", "batch_size", "numb_btch", "auto_prob")
    return {
        "train": _systems(train, locate, train.need("systems")),
        "validation": _systems(validation, locate, validation.take("systems", [])),
        "batch_size": _batch_size(train),
    }


def _systems(section: Section, locate: Callable, systems: Any) -> list[str]:
    systems = [systems] if isinstance(systems, str) else systems
    for path in systems:
        if "#" in path or path.rstrip("/").endswith((".hdf5", ".h5", ".lmdb")):
            raise ValueError(
                f"{section.name('systems')}: {path} is no folder of npy files, which is what lamjax reads."
            )
    return [locate(path) for path in systems]


def _batch_size(section: Section) -> int | str:
    size = section.take("batch_size", "auto")
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    if isinstance(size, int) or size == "auto" or (isinstance(size, str) and size.startswith("auto:")):
        return size
    raise ValueError(f"{section.name('batch_size')} = {short(size)} is not supported. Give a number, auto or auto:N.")


def _loss(section: Section) -> dict[str, Any]:
    kind = section.take("type", "ener")
    if kind not in ("ener", "ener_hess"):
        raise ValueError(f"{section.name('type')} = {short(kind)} is not supported (only 'ener').")
    absent = {f"{which}_pref_{term}": 0 for which in ("start", "limit") for term in ("h", "ae", "pf", "gf")}
    section.refuse("Leave it out.", **absent, enable_atom_ener_coeff=False)
    for key in ("use_default_pf", "numb_generalized_coord"):  # of terms that are refused
        section.take(key)
    return {key: section.take(key) for key in list(section.left) if key in _LOSS and section.left[key] is not None}


def _schedule(section: Section, n_steps: int) -> dict[str, Any]:
    kind = section.take("type", "exp")
    if kind not in _SCHEDULE:
        raise ValueError(f"{section.name('type')} = {short(kind)} is not supported; known: {', '.join(_SCHEDULE)}.")
    section.drop("a run is one process", "scale_by_worker")
    start, stop, ratio = section.need("start_lr"), section.take("stop_lr"), section.take("stop_lr_ratio")
    warmup, share = section.take("warmup_steps", 0), section.take("warmup_ratio")
    for a, b, names in ((stop, ratio, "stop_lr and stop_lr_ratio"), (warmup, share, "warmup_steps and warmup_ratio")):
        if a and b is not None:
            raise ValueError(f"{section.path}: {names} exclude each other. Remove one of them.")
    if stop is None:
        stop = 5e-8 if ratio is None else start * ratio
    return {
        "type": kind,
        "start_lr": start,
        "stop_lr": stop,
        "warmup_steps": warmup if share is None else int(share * n_steps),
        "warmup_start_factor": section.take("warmup_start_factor", 0.0),
        **{key: section.take(key, default) for key, default in _SCHEDULE[kind].items()},
    }


def _optimizer(section: Section, training: Section) -> dict[str, Any]:
    kind = section.take("type", "Adam")
    if kind not in ("Adam", "AdamW"):
        raise ValueError(f"{section.name('type')} = {short(kind)} is not supported; known: Adam, AdamW.")
    settings = {"b1": section.take("adam_beta1", 0.9), "b2": section.take("adam_beta2", 0.999)}
    if kind == "AdamW":
        settings["weight_decay"] = section.take("weight_decay", 0.0)
    section.refuse("An L2 penalty in the gradient is not there; AdamW decays weights.", weight_decay=0)
    norm = training.take("gradient_max_norm", 0)
    return {"name": kind.lower(), "max_norm": norm or None, "options": settings}


def _steps(training: Section) -> int:
    training.refuse("Give numb_steps.", numb_epoch=None)
    return training.need("numb_steps")


def _run(training: Section) -> dict[str, Any]:
    training.drop(FILES, "disp_file", "save_ckpt", "save_dir")
    training.drop(LOGGING, "disp_training", "time_training", "disp_avg", "profiling", "profiling_file")
    training.drop(LOGGING, "enable_profiler", "tensorboard", "tensorboard_log_dir", "tensorboard_freq")
    training.drop(SETUP, "zero_stage", "neighbor_graph_method", "enable_compile", "enable_tf32")
    training.drop("states are kept by their number", "ckpt_keep_ratio", "ema_ckpt_keep")
    training.drop("has had no meaning for long", "numb_test")
    training.refuse("Leave it out.", mixed_precision=None, acc_freq=1, change_bias_after_training=False)
    decay, ema = training.take("ema_decay", 0.999), training.take("enable_ema", False)
    save = training.take("save_freq", 1000)
    return {
        "seed": training.take("seed", 0),
        "ema_decay": decay if ema else None,
        "print_every": training.take("disp_freq", 1000),
        "validate_every": save,
        "save_every": save,
        "keep": training.take("max_ckpt_keep", 5),
    }


def _check_kinds(section: dict[str, Any], path: str = "") -> None:
    """ValueError that names a key whose value is of another kind than DeePMD-kit's: a number for a section, say."""
    for key, value in section.items():
        where = f"{path}.{key}" if path else key
        kinds, meant = _KINDS.get(key, (object, ""))
        wrong = not isinstance(value, kinds) and (value is not None or where in ("model", "training"))
        names = value if key in ("type_map", "systems") and isinstance(value, list) else []
        if wrong or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{where}: expected {meant}, got {short(value)}.")
        if isinstance(value, dict):
            _check_kinds(value, where)


def _modern(content: dict[str, Any]) -> dict[str, Any]:
    """The input with settings at their present places, where DeePMD-kit too looks for them."""
    content = copy.deepcopy(content)
    training = content["training"]
    if "systems" in training:  # version 1
        training["training_data"] = {key: training.pop(key) for key in _LEGACY_DATA if key in training}
        _end_of_decay(content)
    for section, names in (("optimizer", _LEGACY_OPTIMIZER), ("learning_rate", {key: key for key in _WARMUP})):
        moved = {new: training.pop(old) for old, new in names.items() if old in training}
        if moved:
            content[section] = {**content.get(section, {}), **moved}
    return content


def _end_of_decay(content: dict[str, Any]) -> None:
    """Version 1 gave a decay rate; since then it is the last learning rate that counts."""
    names = ("numb_steps", *_ALIASES["training"]["numb_steps"])
    n_steps = next((content["training"][name] for name in names if name in content["training"]), None)
    rate = content.get("learning_rate", {})
    if "decay_rate" in rate and n_steps is not None:
        decay = rate.pop("decay_rate")
        rate["stop_lr"] = rate["start_lr"] * decay ** (n_steps / rate.get("decay_steps", 5000))
