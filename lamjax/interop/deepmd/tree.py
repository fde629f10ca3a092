"""DeePMD-kit's serialised model tree, as `.dp` and `.yaml` files hold it, and lamjax's config and parameters."""

from dataclasses import replace
from typing import Any

import numpy as np

from lamjax.descriptors import DPA1Config, DPA3Config
from lamjax.interop.deepmd import audit, options, write
from lamjax.interop.deepmd.words import short
from lamjax.potential import DEFAULT_HEAD, CheckpointError, Params, PotentialConfig, check_structure

# keys of a descriptor's entry beside its options
_STRUCTURE = {
    *("@class", "@version", "@variables", "type_embedding", "env_mat", "embeddings", "embeddings_strip"),
    *("attention_layers", "repinit_args", "repformer_args", "g1_shape_tranform", "tebd_transform"),
    *("repinit_variable", "repinit_three_body_variable", "repformers_variable"),
    *("repflow_args", "repflow_variable", "chg_embedding", "spin_embedding", "mix_cs_mlp"),
}
_FITTING_STRUCTURE = {"@class", "@version", "@variables", "nets"}


def from_tree(tree: dict, graph: bool = False) -> tuple[PotentialConfig, Params]:
    """Config and parameters (numpy, as stored) of a tree; nothing unknown, missing or misshapen. It holds one head.

    With `graph` the file is one whose sums DeePMD-kit takes over neighbours alone, not over `sel` slots.
    """
    model = tree.get("model", {})
    kind = (model.get("type"), model.get("descriptor", {}).get("type"), model.get("fitting", {}).get("type"))
    if kind[0] != "standard" or None in kind:
        raise CheckpointError(
            f"model, descriptor and fitting are of type {short(kind)}; supported: {options.SUPPORTED}."
        )
    audit.check_kind(tree)
    descriptor = model["descriptor"]
    config = PotentialConfig(
        elements=tuple(model["type_map"]),
        descriptor=options.descriptor_config(_descriptor_options(descriptor)),
        heads=((DEFAULT_HEAD, _head_config(model)),),
        pair_exclude_types=tuple(tuple(pair) for pair in model.get("pair_exclude_types") or ()),
    )
    audit.check_formats(model)
    params = Params(_descriptor_params(config.descriptor, descriptor), {DEFAULT_HEAD: _head_params(model)})
    config = with_actual_means(config, params, graph)
    check_structure(config, params)
    audit.check_entries(model, write.model_entry(config, params, DEFAULT_HEAD))
    return config, params


def with_actual_means(config: PotentialConfig, params: Params, graph: bool = False) -> PotentialConfig:
    """`set_davg_zero` as the statistics say it: only then may the empty slots of the radial block be left out.

    With `graph` DeePMD-kit itself leaves them out.
    """
    if isinstance(config.descriptor, DPA3Config):  # whose empty slots never count
        return config
    zero = not np.any(params.descriptor["repinit"]["statistics"]["mean"])
    descriptor = config.descriptor
    if isinstance(descriptor, DPA1Config):
        descriptor = replace(descriptor, set_davg_zero=zero, graph=graph)
    else:
        first: Any = descriptor
        descriptor = replace(first, repinit=replace(first.repinit, set_davg_zero=zero))
    return replace(config, descriptor=descriptor)


def statistics(mean: np.ndarray, stddev: np.ndarray, name: str, angular: bool = False) -> dict:
    """mean and stddev per type; files hold one row a slot, all alike. With `angular` any column may have a mean."""
    rows = {"mean": mean, "stddev": stddev}
    for key, values in rows.items():
        if np.any(values != values[:, :1]):
            raise CheckpointError(f"the {key} of {name} differs from neighbour slot to slot, which is not supported.")
    if np.any(mean[..., 1:]) and not angular:
        raise CheckpointError(f"the angular mean of {name} is not zero, which is not supported.")
    return {key: values[:, 0] for key, values in rows.items()}


def _descriptor_options(d: dict) -> dict:
    """The options among a descriptor's entries, older versions completed."""
    options = {key: value for key, value in d.items() if key not in _STRUCTURE}
    if d["type"] == "dpa3":  # its copies of the options in `env_mat` are not the true ones
        return {**options, "repflow": d["repflow_args"]}
    for block in (d, *(d.get(name, {}) for name in _STRUCTURE if name.endswith("_variable"))):
        if block.get("env_mat", {}).get("use_exp_switch"):
            raise CheckpointError("use_exp_switch = True is not supported (supported: False).")
    options.setdefault("use_tebd_bias", d["@version"] < 2)
    if d["type"] == "dpa2":
        repformer = dict(d["repformer_args"])
        if d["@version"] < 3:  # older models know no such switches: what they do not say was off
            repformer |= {"use_sqrt_nnei": False, "g1_out_conv": False, "g1_out_mlp": False}
        options |= {"repinit": d["repinit_args"], "repformer": repformer}
    return options


def _head_config(model: dict) -> Any:
    fitting = {key: value for key, value in model["fitting"].items() if key not in _FITTING_STRUCTURE}
    return options.head_config(fitting, model.get("atom_exclude_types") or ())


def _descriptor_params(config: Any, d: dict) -> dict:
    embedding = _type_embedding(d["type_embedding"])
    if isinstance(config, DPA3Config):
        return {"type_embedding": embedding, **_dpa3_params(config, d)}
    if isinstance(config, DPA1Config):
        return {"type_embedding": embedding, "repinit": _embedding(d, "the environment")}
    repformers = d["repformers_variable"]
    params = {
        "type_embedding": embedding,
        "repinit": _embedding(d["repinit_variable"], "repinit"),
        "repformer": {
            "g2_embedding": _layer(repformers["g2_embd"]),
            "layers": [_repformer_layer(layer) for layer in repformers["repformer_layers"]],
            "statistics": _block_statistics(repformers, "repformer"),
        },
    }
    if "repinit_three_body_variable" in d:
        params["three_body"] = _embedding(d["repinit_three_body_variable"], "three_body")
    if d["g1_shape_tranform"]["@class"] != "Identity":
        params["g1_transform"] = _layer(d["g1_shape_tranform"])
    if d["add_tebd_to_repinit_out"]:
        params["tebd_transform"] = _layer(d["tebd_transform"])
    return params


def _dpa3_params(config: DPA3Config, d: dict) -> dict:
    block = d["repflow_variable"]
    variables = block["@variables"]
    repflow = {
        "edge_embedding": _layer(block["edge_embd"]),
        "angle_embedding": _layer(block["angle_embd"]),
        "layers": [_repflow_layer(layer) for layer in block["repflow_layers"]],
        "statistics": statistics(variables["davg"], variables["dstd"], "repflow", angular=True),
    }
    if not config.add_chg_spin_ebd:
        return {"repflow": repflow}
    tables = {name: _type_embedding(d[name]) for name in ("chg_embedding", "spin_embedding")}
    return {"repflow": repflow, **tables, "mix_cs_mlp": _layer(d["mix_cs_mlp"])}


def _repflow_layer(layer: dict) -> dict:
    params = {name: _layer(value) for name, value in layer.items() if isinstance(value, dict) and "@class" in value}
    vectors = {**layer, **layer.get("@variables", {})}  # the first version had them among the options
    names = ("n_residual", "e_residual", "a_residual")
    return params | {name: list(vectors[name]) for name in names if len(vectors.get(name) or ())}


def _type_embedding(entry: dict) -> dict:
    return _layer(entry["embedding"]["layers"][0])


def _embedding(block: dict, name: str) -> dict:
    params = {"net": _net(block["embeddings"]), "statistics": _block_statistics(block, name)}
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
    for name in ("fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std", "case_embd"):
        if variables.get(name) is not None:
            statistics[name] = np.reshape(variables[name], -1)
    return {"layers": _net(model["fitting"]["nets"]), "statistics": statistics}


def _net(collection: dict) -> list:
    return [_layer(layer) for layer in collection["networks"][0]["layers"]]


def _layer(layer: dict) -> dict:
    return {name: value for name, value in layer["@variables"].items() if value is not None}


def _block_statistics(block: dict, name: str) -> dict:
    return statistics(block["@variables"]["davg"], block["@variables"]["dstd"], name)
