"""DeePMD-kit's native model files (`.dp`, HDF5), read with h5py alone into a config and parameters."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig, ThreeBodyConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import (
    DEFAULT_HEAD,
    CheckpointError,
    Params,
    PotentialConfig,
    cast_params,
    check_structure,
)

_SUPPORTED = "a DPA-2 (`dpa2`) energy model"


def is_dp(path: str | Path) -> bool:
    """True if the file is (readable) HDF5 with DeePMD-kit's model attribute; told by content, not by name."""
    try:
        with h5py.File(path) as file:
            return "json" in file.attrs
    except OSError:
        return False


def read_dp(path: str | Path) -> dict:
    """The serialised tree of a `.dp` file with its arrays in place. Nothing of the file is executed."""
    try:
        with h5py.File(path) as file:
            return _resolve(json.loads(file.attrs["json"]), file, inside=False)
    except (OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path}: not a complete DeePMD-kit `.dp` file ({error}). Expected HDF5 with the attribute 'json' and the "
            "arrays that it names. Was the copy truncated?"
        ) from error


def load_dp(path: str | Path, dtype=None, head: str | None = None) -> tuple[PotentialConfig, Params]:
    """Config and parameters of a `.dp` file, arrays in `dtype` (default: jax's default float).

    A `.dp` holds one head; it is called `head` or "Default".
    """
    tree = read_dp(path)
    try:
        return from_tree(tree, dtype, head or DEFAULT_HEAD)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def from_tree(tree: dict, dtype=None, head: str = DEFAULT_HEAD) -> tuple[PotentialConfig, Params]:
    """Config and parameters of DeePMD-kit's serialised tree; nothing unknown, missing or misshapen."""
    model = tree.get("model", {})
    kind = (model.get("type"), model.get("descriptor", {}).get("type"), model.get("fitting", {}).get("type"))
    if kind != ("standard", "dpa2", "ener"):
        raise CheckpointError(f"model, descriptor and fitting are of type {kind}; supported: {_SUPPORTED}.")
    config = PotentialConfig(
        elements=tuple(model["type_map"]),
        descriptor=_descriptor_config(model["descriptor"]),
        heads=((head, _head_config(model["fitting"], model.get("atom_exclude_types") or [])),),
        pair_exclude_types=_pairs(model.get("pair_exclude_types")),
    )
    config = _with_actual_means(config, model["descriptor"])
    params = Params(_descriptor_params(model["descriptor"]), {head: _head_params(model)})
    check_structure(config, params)
    return config, cast_params(params, dtype)


def _resolve(node: Any, file, inside: bool):
    """The tree with dataset names below an `@variables` key replaced by arrays."""
    if isinstance(node, dict):
        return {key: _resolve(value, file, inside or key == "@variables") for key, value in node.items()}
    if isinstance(node, list):
        return [_resolve(value, file, inside) for value in node]
    return np.asarray(file[node][()]) if inside and isinstance(node, str) else node


def _descriptor_config(d: dict) -> DPA2Config:
    _refuse(d, use_econf_tebd=False)
    repinit, repformer = dict(d["repinit_args"]), dict(d["repformer_args"])
    three = {
        key.removeprefix("three_body_"): repinit.pop(key) for key in list(repinit) if key.startswith("three_body_")
    }
    use_three_body = repinit.pop("use_three_body", False)
    repformer.pop("trainable_ln", None)
    if d["@version"] < 3:  # older models know no such switches: what they do not say was off
        repformer |= {"use_sqrt_nnei": False, "g1_out_conv": False, "g1_out_mlp": False}
    for block in ("repinit_variable", "repformers_variable", "repinit_three_body_variable"):
        _refuse(d.get(block, {}).get("env_mat", {}), use_exp_switch=False)
    return DPA2Config(
        repinit=_config(RepinitConfig, repinit, "repinit"),
        three_body=_config(ThreeBodyConfig, three, "three_body") if use_three_body else None,
        repformer=_config(RepformerConfig, repformer, "repformer"),
        concat_output_tebd=d["concat_output_tebd"],
        smooth=d["smooth"],
        exclude_types=_pairs(d["exclude_types"]),
        env_protection=d["env_protection"],
        use_tebd_bias=d.get("use_tebd_bias", d["@version"] < 2),
        add_tebd_to_repinit_out=d["add_tebd_to_repinit_out"],
    )


def _head_config(f: dict, exclude_types: list) -> EnergyHeadConfig:
    _refuse(f, numb_fparam=0, numb_aparam=0, mixed_types=True, spin=None, atom_ener=None, tot_ener_zero=False)
    return EnergyHeadConfig(
        neuron=tuple(f["neuron"]),
        activation_function=f["activation_function"],
        resnet_dt=f["resnet_dt"],
        dim_case_embd=f.get("dim_case_embd", 0),
        exclude_types=tuple(sorted({*f["exclude_types"], *exclude_types})),
    )


def _config(cls, keys: dict, block: str):
    known = {name: _tuples(value) for name, value in keys.items() if name in cls.__dataclass_fields__}
    if unknown := sorted(keys.keys() - known.keys()):
        raise CheckpointError(f"{block} has the option {', '.join(unknown)}, which lamjax does not know.")
    return cls(**known)


def _refuse(keys: dict, **supported) -> None:
    """An option with another value than the one that is implemented is an error, never ignored."""
    for name, value in supported.items():
        if (keys.get(name, value) or value) != value:
            raise CheckpointError(f"option {name} = {keys[name]!r} is not supported (supported: {value!r}).")


def _tuples(value):
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _pairs(value) -> tuple[tuple[int, int], ...]:
    return tuple(tuple(pair) for pair in value or ())


def _with_actual_means(config: PotentialConfig, d: dict) -> PotentialConfig:
    """`set_davg_zero` as the statistics say it: only then may the empty slots of repinit be left out."""
    zero = not np.any(d["repinit_variable"]["@variables"]["davg"])
    descriptor = replace(config.descriptor, repinit=replace(config.descriptor.repinit, set_davg_zero=bool(zero)))
    return replace(config, descriptor=descriptor)


def _descriptor_params(d: dict) -> dict:
    repformers = d["repformers_variable"]
    params = {
        "type_embedding": _layer(d["type_embedding"]["embedding"]["layers"][0]),
        "repinit": _embedding(d["repinit_variable"], "repinit"),
        "repformer": {
            "g2_embedding": _layer(repformers["g2_embd"]),
            "layers": [_repformer_layer(layer) for layer in repformers["repformer_layers"]],
            "statistics": _statistics(repformers, "repformer"),
        },
    }
    if "repinit_three_body_variable" in d:
        params["three_body"] = _embedding(d["repinit_three_body_variable"], "three_body")
    if d["g1_shape_tranform"]["@class"] != "Identity":
        params["g1_transform"] = _layer(d["g1_shape_tranform"])
    if d["add_tebd_to_repinit_out"]:
        params["tebd_transform"] = _layer(d["tebd_transform"])
    return params


def _embedding(block: dict, name: str) -> dict:
    params = {"net": _net(block["embeddings"]), "statistics": _statistics(block, name)}
    if "embeddings_strip" in block:
        params["net_strip"] = _net(block["embeddings_strip"])
    return params


def _repformer_layer(layer: dict) -> dict:
    params = {}
    for name, value in layer.items():
        if isinstance(value, dict) and "@class" in value:
            inner = {k: _layer(v) for k, v in value.items() if isinstance(v, dict) and "@class" in v}
            params[name] = inner or _layer(value)
    for name, vectors in layer.get("@variables", {}).items():
        if vectors is not None and (vectors or layer["update_style"] == "res_residual"):
            params[name] = list(vectors)
    return params


def _head_params(model: dict) -> dict:
    variables = model["fitting"]["@variables"]
    statistics = {
        "bias_atom_e": np.reshape(variables["bias_atom_e"], -1),
        "out_bias": np.reshape(model["@variables"]["out_bias"], -1),
        "out_std": np.reshape(model["@variables"]["out_std"], -1),
    }
    if variables.get("case_embd") is not None:
        statistics["case_embd"] = variables["case_embd"]
    return {"layers": _net(model["fitting"]["nets"]), "statistics": statistics}


def _net(collection: dict) -> list:
    return [_layer(layer) for layer in collection["networks"][0]["layers"]]


def _layer(layer: dict) -> dict:
    return {name: value for name, value in layer["@variables"].items() if value is not None}


def _statistics(block: dict, name: str) -> dict:
    """mean and stddev per type; files hold one row a slot, all alike."""
    rows = {"mean": block["@variables"]["davg"], "stddev": block["@variables"]["dstd"]}
    for key, values in rows.items():
        if np.any(values != values[:, :1]):
            raise CheckpointError(f"the {key} of {name} differs from neighbour slot to slot, which is not supported.")
    if np.any(rows["mean"][..., 1:]):
        raise CheckpointError(f"the angular mean of {name} is not zero, which is not supported.")
    return {key: values[:, 0] for key, values in rows.items()}
