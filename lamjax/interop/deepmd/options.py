"""DeePMD-kit's option dictionaries (of an input file, a checkpoint or a serialised model) and lamjax's configs.

What lamjax does not implement is refused by name; what changes no number (seeds, which parts are trained) is left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lamjax.descriptors import (
    DPA1Config,
    DPA2Config,
    DPA3Config,
    RepflowConfig,
    RepformerConfig,
    RepinitConfig,
    ThreeBodyConfig,
)
from lamjax.heads import EnergyHeadConfig
from lamjax.interop.deepmd.words import short
from lamjax.potential import CheckpointError, PotentialConfig

SUPPORTED = (
    'an energy model (fitting "ener") with the descriptor "dpa2" or "dpa3", or "dpa1"/"se_atten" with attn_layer 0'
)
COMPRESSED = "tables stand for its embedding nets. Use the model that it was compressed from."
_TEBD = "repformer_add_type_ebd_to_seq"  # the older name of add_tebd_to_repinit_out
DescriptorConfig = DPA1Config | DPA2Config | DPA3Config
DPA1_NAMES = ("dpa1", "se_atten", "se_atten_v2")
_OWN = {"table", "graph"}  # options of lamjax's configs that DeePMD-kit lacks
# without influence on the function that a model is: training, statistics of a fresh model, where it runs
_TRAINING = {"seed", "precision", "trainable", "trainable_ln", "ntypes", "type_map", "type"}
MODEL_KEYS = {
    *("type_map", "descriptor", "fitting_net", "pair_exclude_types", "atom_exclude_types", "type"),
    *("data_stat_nbatch", "data_stat_protect", "data_bias_nsample", "preset_out_bias", "srtab_add_bias"),
    *("finetune_head", "info", "rcond", "model_branch_alias", "bridging_r_inner", "bridging_r_outer"),
    "hessian_mode",  # whether second derivatives are given out too
}
# attention, of which there is none with attn_layer 0
ATTENTION = {"attn", "attn_dotr", "attn_mask", "scaling_factor", "normalize", "temperature", "ln_eps"}


def model_config(section: dict, head: str) -> PotentialConfig:
    """The config of a branch's `model` section, its head called `head`; CheckpointError names what is not known."""
    kind = section.get("type", "standard")
    if kind != "standard" or "descriptor" not in section or "fitting_net" not in section:
        raise CheckpointError(
            f"the model is of type {short(kind)} with keys {short(sorted(section))}; supported: {SUPPORTED}."
        )
    section = {key: value for key, value in section.items() if value is not None}
    _refuse_values(section, {"bridging_method": "None", "use_srtab": None, "spin": None}, "model")
    _refuse_unknown(section, MODEL_KEYS, "model")
    if "type_map" not in section:
        raise CheckpointError("the model has no type_map: its elements are not known.")
    return PotentialConfig(
        elements=tuple(section["type_map"]),
        descriptor=descriptor_config(section["descriptor"]),
        heads=((head, head_config(section["fitting_net"], section.get("atom_exclude_types") or ())),),
        pair_exclude_types=_tuples(section.get("pair_exclude_types") or []),
    )


def descriptor_config(options: dict) -> DescriptorConfig:
    """The config of a descriptor's options, absent ones as DeePMD-kit's classes set them."""
    kind = options.get("type")
    if kind == "dpa2":
        return _dpa2(dict(options))
    if kind == "dpa3":
        return _dpa3(dict(options))
    if kind in DPA1_NAMES:
        return _dpa1(dict(options))
    raise CheckpointError(f"the descriptor is of type {short(kind)}; supported: {SUPPORTED}.")


def head_config(options: dict, exclude_types: Sequence[int] = ()) -> EnergyHeadConfig:
    """The config of a fitting net's options; `exclude_types` are the model's `atom_exclude_types`."""
    options = dict(options)
    if (kind := options.get("type", "ener")) != "ener":
        raise CheckpointError(f"the fitting net is of type {short(kind)}; supported: {SUPPORTED}.")
    _refuse_values(
        options,
        {"mixed_types": True, "use_aparam_as_mask": False, "tot_ener_zero": False, "dim_out": 1, "var_name": "energy"},
        "fitting_net",
    )
    if not any(energy is not None for energy in options.get("atom_ener") or ()):
        options.pop("atom_ener", None)
    _refuse_set(options, ("atom_ener", "spin", "layer_name"), "fitting_net")
    _renamed(options, "n_neuron", "neuron")
    options["exclude_types"] = sorted(exclude_types)  # DeePMD-kit overrides the fitting net's own list by the model's
    return _config(EnergyHeadConfig, options, "fitting_net", ignored=_TRAINING | {"rcond", "dim_descrpt"})


def descriptor_options(config: DescriptorConfig) -> dict:
    """A config as DeePMD-kit's flat options: the inverse of `descriptor_config`."""
    if isinstance(config, DPA3Config):
        return _plain({**vars(config), "repflow": vars(config.repflow)})
    block = dict(vars(config if isinstance(config, DPA1Config) else config.repinit))
    if block.pop("table") is not None:
        raise CheckpointError("the radial net is a table, which DeePMD-kit does not know. Write the model it is of.")
    if isinstance(config, DPA1Config):
        block.pop("graph")
        return {**_plain(block), "attn_layer": 0}
    repinit = {**block, "use_three_body": config.three_body is not None}
    three = config.three_body or ThreeBodyConfig()
    repinit |= {f"three_body_{name}": value for name, value in vars(three).items()}
    options = {k: v for k, v in vars(config).items() if k not in ("repinit", "three_body", "repformer")}
    return _plain({**options, "repinit": repinit, "repformer": vars(config.repformer)})


def _dpa2(options: dict) -> DPA2Config:
    if flat := sorted(key for key in options if key.startswith(("repinit_", "repformer_")) and key != _TEBD):
        raise CheckpointError(
            f"the descriptor's options are flat ({', '.join(flat[:2])}, ...), as DeePMD-kit 3.0.0a0 wrote them, for "
            "models that differ from today's. Use a release of the model for DeePMD-kit 3.0.0b4 or later."
        )
    repinit, repformer = dict(options.pop("repinit")), dict(options.pop("repformer"))
    three = {
        key.removeprefix("three_body_"): repinit.pop(key) for key in list(repinit) if key.startswith("three_body_")
    }
    _renamed(options, _TEBD, "add_tebd_to_repinit_out")
    use_three_body = repinit.pop("use_three_body", False)
    if repformer.get("ln_eps", 1e-5) is None:
        del repformer["ln_eps"]
    blocks = {
        "repinit": _config(RepinitConfig, repinit, "repinit"),
        "three_body": _config(ThreeBodyConfig, three, "three_body") if use_three_body else None,
        "repformer": _config(RepformerConfig, repformer, "repformer", ignored={"trainable_ln"}),
    }
    return _config(DPA2Config, {**options, **blocks}, "descriptor", ignored=_TRAINING)


def _dpa3(options: dict) -> DPA3Config:
    if not (repflow := options.pop("repflow", None)):
        raise CheckpointError("the descriptor is of type 'dpa3' but has no options `repflow` of its layers.")
    repflow = dict(repflow)
    for old, new in (("edge_use_dist", "edge_init_use_dist"), ("use_env_envelope", "use_exp_switch")):
        _renamed(repflow, old, new)
    if repflow.pop("skip_stat", False):  # the older form of the same
        repflow["fix_stat_std"] = 0.3
    for cutoff in "ea":
        if isinstance(repflow.get(f"{cutoff}_sel"), list):
            repflow[f"{cutoff}_sel"] = sum(repflow[f"{cutoff}_sel"])
    options["repflow"] = _config(RepflowConfig, repflow, "repflow")
    return _config(DPA3Config, options, "descriptor", ignored=_TRAINING)


def _dpa1(options: dict) -> DPA1Config:
    if (layers := options.pop("attn_layer", 2)) != 0:
        raise CheckpointError(f"the descriptor has attn_layer {layers}; supported: {SUPPORTED}.")
    _refuse_set(options, ("spin", "use_exp_switch"), "descriptor")
    _refuse_values(options, {"lmax": 1}, "descriptor")
    _renamed(options, "smooth_type_embdding", "smooth_type_embedding")
    _renamed(options, "n_axis_neuron", "axis_neuron")
    if options["type"] == "se_atten_v2":
        options |= {"tebd_input_mode": "strip", "smooth_type_embedding": True}
    if options.pop("stripped_type_embedding", None):  # the older name of the same
        options["tebd_input_mode"] = "strip"
    if isinstance(options.get("sel"), list):  # one number for each type of other descriptors
        options["sel"] = sum(options["sel"])
    return _config(DPA1Config, options, "descriptor", ignored=_TRAINING | ATTENTION)


def _config(cls, options: dict, block: str, ignored: Any = frozenset()) -> Any:
    fields = cls.__dataclass_fields__.keys() - _OWN
    known = {name: _tuples(value) for name, value in options.items() if name in fields}
    _refuse_unknown(options, known.keys() | ignored, block)
    for name in ("nsel", "sel", "e_sel", "a_sel"):
        if isinstance(sel := known.get(name), str):
            raise CheckpointError(f"{block} has {name} {short(sel)}: give the number of neighbours that it stands for.")
    known.pop("type", None)
    try:
        return cls(**known)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{block}: {error}") from error


def _refuse_unknown(options: dict, known: Any, block: str) -> None:
    if unknown := sorted(options.keys() - set(known)):
        listed = ", ".join(f"{name} = {short(options[name])}" for name in unknown[:6])
        raise CheckpointError(f"{block} has the option {listed}, which lamjax does not know.")


def _refuse_values(options: dict, supported: dict[str, Any], block: str) -> None:
    for name, value in supported.items():
        got = options.pop(name, value)
        if got is not None and (isinstance(got, np.ndarray) or got != value):
            raise CheckpointError(f"{block} has {name} = {short(got)}, which is not supported (supported: {value!r}).")


def _refuse_set(options: dict, names: tuple[str, ...], block: str) -> None:
    """Options that are only supported where they are absent, empty or false."""
    for name in names:
        got = options.pop(name, None)
        if got is not None and (np.size(got) if isinstance(got, np.ndarray) else got):
            raise CheckpointError(f"{block} has {name} = {short(got)}, which is not supported.")


def _renamed(options: dict, old: str, new: str) -> None:
    if old in options:
        options[new] = options.pop(old)


def _tuples(value: Any) -> tuple[tuple[tuple, ...], ...]:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
