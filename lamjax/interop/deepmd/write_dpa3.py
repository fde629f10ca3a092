"""The DPA-3 descriptor as an entry of DeePMD-kit's serialised model tree."""

from typing import Any

import numpy as np

from lamjax.descriptors import DPA3Config

# options that only the whole descriptor has, not every layer of it
_OF_ALL = ("nlayers", "fix_stat_std", "edge_init_use_dist", "use_exp_switch")
_VECTORS = ("n_residual", "e_residual", "a_residual")


def dpa3(writer: Any, config: DPA3Config, options: dict, params: dict) -> dict:
    """The entry; `writer` makes the parts that all descriptors have (`write._Writer`)."""
    c = config.repflow
    entries = {
        **writer.descriptor(config, options, 2),
        "repflow_args": options["repflow"],
        "type_embedding": writer.type_embedding(params["type_embedding"], config, c.n_dim),
        "repflow_variable": _repflow(writer, config, params["repflow"]),
    }
    del entries["repflow"]
    if config.add_chg_spin_ebd:
        entries |= {name: _table(writer, params[name]) for name in ("chg_embedding", "spin_embedding")}
        entries["mix_cs_mlp"] = writer.layer(params["mix_cs_mlp"])
    return entries


def _repflow(writer: Any, config: DPA3Config, params: dict) -> dict:
    c = config.repflow
    rows = {"davg": params["statistics"]["mean"], "dstd": params["statistics"]["stddev"]}
    return {
        "edge_embd": writer.layer(params["edge_embedding"]),
        "angle_embd": writer.layer(params["angle_embedding"]),
        "repflow_layers": [_layer(writer, config, layer) for layer in params["layers"]],
        # DeePMD-kit writes so whatever the model is, and does not read it
        "env_mat": {"rcut": c.e_rcut, "rcut_smth": c.e_rcut_smth, "protection": 0.0, "use_exp_switch": False},
        "@variables": {name: np.repeat(np.asarray(v)[:, None], c.e_sel, axis=1) for name, v in rows.items()},
    }


def _layer(writer: Any, config: DPA3Config, params: dict) -> dict:
    c = config.repflow
    entries = {
        **writer.entry("RepFlowLayer", 2),
        **{name: value for name, value in vars(c).items() if name not in _OF_ALL},
        "e_sel": [c.e_sel],
        "ntypes": writer.n_types,
        "activation_function": config.activation_function,
        "precision": writer.precision,
    }
    entries |= {name: writer.layer(value) for name, value in params.items() if name not in _VECTORS}
    if c.update_style == "res_residual":
        vectors = {name: [np.asarray(v) for v in params.get(name, ())] for name in _VECTORS}
        entries["@variables"] = vectors
    return entries


def _table(writer: Any, params: dict) -> dict:
    """The table of charges or of multiplicities: an embedding of as many types as it has rows."""
    n, width = np.shape(params["w"])
    return writer.type_embedding(params, DPA3Config(), width) | {"ntypes": n, "type_map": None}
