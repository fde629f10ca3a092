"""A model in DeePMD-kit's own format (`.dp`), so that it runs wherever DeePMD-kit does. One head a file."""

import io
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import h5py
import numpy as np
import yaml

from lamjax.descriptors import DPA1Config, DPA2Config, DPA3Config
from lamjax.interop.deepmd import write_dpa3
from lamjax.interop.deepmd.options import descriptor_options
from lamjax.potential import CheckpointError, Params, PotentialConfig

FORMAT = "3.2.0"  # the release of DeePMD-kit whose format this is
# the C dumper is several times faster, and not in every build of PyYAML
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def yaml_bytes(config: PotentialConfig, params: Params, head: str) -> bytes:
    """The content of a `.yaml` file with one head of a model; much larger than a `.dp`."""

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: plain(value) for key, value in node.items()}
        if isinstance(node, list):
            return [plain(value) for value in node]
        if isinstance(node, np.ndarray):
            array = {"@class": "np.ndarray", "@is_variable": True, "@version": 1, "dtype": node.dtype.name}
            return {**array, "value": node.tolist()}
        return node

    return yaml.dump(plain(to_tree(config, params, head)), Dumper=_Dumper).encode()


def dp_bytes(config: PotentialConfig, params: Params, head: str) -> bytes:
    """The content of a `.dp` file with one head of a model."""
    tree = to_tree(config, params, head)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        names = iter(range(1_000_000))

        def store(node: Any, inside: bool) -> Any:
            if isinstance(node, dict):
                return {key: store(value, inside or key == "@variables") for key, value in node.items()}
            if isinstance(node, list):
                return [store(value, inside) for value in node]
            if inside and node is not None:
                name = f"/variable_{next(names):04d}"
                file.create_dataset(name, data=np.asarray(node))
                return name
            return node

        file.attrs["json"] = json.dumps(store(tree, inside=False), separators=(",", ":"))
    return buffer.getvalue()


def to_tree(config: PotentialConfig, params: Params, head: str) -> dict:
    """The serialised tree of one head, arrays below the keys `@variables`: the inverse of `tree.from_tree`.

    Raises CheckpointError for a model that DeePMD-kit cannot read back.
    """
    if not isinstance(config.descriptor, DPA1Config | DPA2Config | DPA3Config):
        raise CheckpointError(f"DeePMD-kit has no descriptor {config.descriptor.type}. Save the model as .lamjax.")
    if head not in params.heads:
        raise CheckpointError(f"the model has no head {head!r}; available: {', '.join(params.heads)}.")
    precision = str(_weights(params).dtype)
    if precision not in ("float64", "float32"):
        raise CheckpointError(f"parameters are {precision}; DeePMD-kit's models are float64 or float32.")
    if isinstance(config.descriptor, DPA2Config) and "g1_transform" not in params.descriptor:
        raise CheckpointError(
            "repinit's output is as wide as the repformer's g1_dim, so that there is no transform between them: "
            f"DeePMD-kit {FORMAT} writes such a model but cannot read it. Use another g1_dim or axis_neuron."
        )
    if getattr(config.descriptor, "graph", False) and np.any(params.descriptor["repinit"]["statistics"]["mean"]):
        raise CheckpointError(
            "the model's sums leave empty neighbour slots out, as DeePMD-kit's backend pt_expt does, and the mean of "
            "its environment is not zero. From a .dp DeePMD-kit would count them, which gives other energies."
        )
    return {
        "software": "deepmd-kit",
        "version": FORMAT,
        "time": str(datetime.now(UTC)),
        "backend": "lamjax",
        "model": model_entry(config, params, head),
        "model_def_script": _script(config, dict(config.heads)[head], descriptor_options(config.descriptor), precision),
        "@variables": {},
    }


def model_entry(config: PotentialConfig, params: Params, head: str) -> dict:
    """The tree's entry `model`, whether or not DeePMD-kit could read it back."""
    writer = _Writer(config.elements, str(_weights(params).dtype))
    head_config = dict(config.heads)[head]
    statistics = params.heads[head]["statistics"]
    descriptor: Any = config.descriptor
    options = descriptor_options(descriptor)
    describe = {DPA1Config: writer.dpa1, DPA2Config: writer.dpa2, DPA3Config: writer.dpa3}[type(config.descriptor)]
    return {
        **writer.entry("Model", 2),
        "type": "standard",
        "type_map": list(config.elements),
        "atom_exclude_types": list(head_config.exclude_types),
        "pair_exclude_types": [list(pair) for pair in config.pair_exclude_types],
        "rcond": None,
        "preset_out_bias": None,
        "@variables": {name: np.reshape(np.float64(statistics[name]), (1, -1, 1)) for name in ("out_bias", "out_std")},
        "descriptor": describe(config.descriptor, options, params.descriptor),
        "fitting": writer.fitting(head_config, params.heads[head], config.descriptor.width),
    }


def _weights(params: Params) -> np.ndarray:
    """The matrix whose precision is the model's."""
    return np.asarray(params.descriptor["type_embedding"]["w"])


def _script(config: PotentialConfig, head_config: Any, options: dict, precision: str) -> dict:
    """The model as DeePMD-kit's input file would say it."""
    fitting = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(head_config).items() if k != "exclude_types"}
    return {
        "type_map": list(config.elements),
        "descriptor": {**options, "precision": precision},
        "fitting_net": {**fitting, "precision": precision},
        "atom_exclude_types": list(head_config.exclude_types),
        "pair_exclude_types": [list(pair) for pair in config.pair_exclude_types],
    }


class _Writer:
    """Entries of the tree for one type map and precision."""

    def __init__(self, elements: tuple[str, ...], precision: str) -> None:
        self.elements, self.precision, self.n_types = list(elements), precision, len(elements)

    def entry(self, name: str, version: int) -> dict:
        return {"@class": name, "@version": version}

    def layer(self, params: dict, activation: str = "none", resnet: bool = False) -> dict:
        return {
            **self.entry("Layer", 2),
            "bias": "b" in params,
            "use_timestep": "idt" in params,
            "activation_function": activation,
            "resnet": resnet,
            "precision": self.precision,
            "trainable": True,
            "@variables": {name: _array(params.get(name)) for name in ("w", "b", "idt")},
        }

    def embedding_net(self, layers: list, neuron: Sequence[int], activation: str, resnet_dt: bool) -> dict:
        return {
            **self.entry("EmbeddingNetwork", 2),
            "in_dim": int(np.shape(layers[0]["w"])[0]),
            "neuron": list(neuron),
            "activation_function": activation,
            "resnet_dt": resnet_dt,
            "bias": "b" in layers[0],
            "precision": self.precision,
            "layers": [self.layer(layer, activation, resnet=True) for layer in layers],
        }

    def collection(self, network: dict, kind: str) -> dict:
        return {
            **self.entry("NetworkCollection", 1),
            "ndim": 0,
            "ntypes": self.n_types,
            "network_type": kind,
            "networks": [network],
        }

    def block(self, params: dict, config: Any, radial: Any, protection: float) -> dict:
        """A radial or three-body block; `radial` holds the activation and time step of both."""
        shared = (config.neuron, radial.activation_function, radial.resnet_dt)
        entries = self.environment(params["statistics"], config, protection)
        for name, entry in (("net", "embeddings"), ("net_strip", "embeddings_strip")):
            if name in params:
                entries[entry] = self.collection(self.embedding_net(params[name], *shared), "embedding_network")
        return entries

    def environment(self, statistics: dict, config: Any, protection: float) -> dict:
        """Cutoffs and statistics, one row for every slot."""
        n_slots = getattr(config, "nsel", None) or config.sel
        rows = {"davg": statistics["mean"], "dstd": statistics["stddev"]}
        return {
            "env_mat": {
                "rcut": config.rcut,
                "rcut_smth": config.rcut_smth,
                "protection": protection,
                "use_exp_switch": False,
            },
            "@variables": {k: np.repeat(_array(v)[:, None], n_slots, axis=1) for k, v in rows.items()},
        }

    def type_embedding(self, params: dict, config: Any, dim: int) -> dict:
        network = {**self.embedding_net([params], [dim], "Linear", False), "bias": config.use_tebd_bias}
        return {
            **self.entry("TypeEmbedNet", 2),
            "ntypes": self.n_types,
            "neuron": [dim],
            "resnet_dt": False,
            "precision": self.precision,
            "activation_function": "Linear",
            "trainable": True,
            "padding": True,
            "use_econf_tebd": config.use_econf_tebd,
            "use_tebd_bias": config.use_tebd_bias,
            "type_map": self.elements,
            "embedding": network,
        }

    def descriptor(self, config: Any, options: dict, version: int) -> dict:
        kept = {k: v for k, v in options.items() if k not in ("repinit", "repformer")}
        return {
            **self.entry("Descriptor", version),
            **kept,
            "ntypes": self.n_types,
            "precision": self.precision,
            "trainable": True,
            "type_map": self.elements,
        }

    def dpa1(self, config: DPA1Config, options: dict, params: dict) -> dict:
        attention = {"dotr": True, "scaling_factor": 1.0, "normalize": True, "temperature": None, "ln_eps": 1e-5}
        shared = {**attention, "trainable_ln": True}
        return {
            **self.descriptor(config, options, 2),
            **{("attn_dotr" if key == "dotr" else key): value for key, value in shared.items()},
            "attn": 128,
            "attn_mask": False,
            "sel": [config.sel],
            "spin": None,
            "type_embedding": self.type_embedding(params["type_embedding"], config, config.tebd_dim),
            "attention_layers": {
                **self.entry("NeighborGatedAttention", 1),
                **shared,
                "layer_num": 0,
                "nnei": config.sel,
                "embed_dim": config.neuron[-1],
                "hidden_dim": 128,
                "do_mask": False,
                "precision": self.precision,
                "attention_layers": [],
            },
            **self.block(params["repinit"], config, config, config.env_protection),
        }

    def dpa2(self, config: DPA2Config, options: dict, params: dict) -> dict:
        repinit, radial = params["repinit"], config.repinit
        entries = {
            **self.descriptor(config, options, 3),
            "repinit_args": options["repinit"],
            "repformer_args": {**options["repformer"], "trainable_ln": True},
            "type_embedding": self.type_embedding(params["type_embedding"], config, radial.tebd_dim),
            "g1_shape_tranform": self.layer(params["g1_transform"])
            if "g1_transform" in params
            else self.entry("Identity", 1),
            "repinit_variable": self.block(repinit, radial, radial, config.env_protection),
            "repformers_variable": self.repformers(config, params["repformer"]),
        }
        if config.three_body:
            entries["repinit_three_body_variable"] = self.block(
                params["three_body"], config.three_body, radial, config.env_protection
            )
        if config.add_tebd_to_repinit_out:
            entries["tebd_transform"] = self.layer(params["tebd_transform"])
        return entries

    def dpa3(self, config: DPA3Config, options: dict, params: dict) -> dict:
        return write_dpa3.dpa3(self, config, options, params)

    def repformers(self, config: DPA2Config, params: dict) -> dict:
        last = len(params["layers"]) - 1
        return {
            **self.environment(params["statistics"], config.repformer, config.env_protection),
            "g2_embd": self.layer(params["g2_embedding"]),
            "repformer_layers": [
                self.repformer_layer(config, layer, updates_pairs=k < last) for k, layer in enumerate(params["layers"])
            ],
        }

    def repformer_layer(self, config: DPA2Config, params: dict, updates_pairs: bool) -> dict:
        c = config.repformer
        left_out = ("nsel", "nlayers", "direct_dist", "update_residual", "update_residual_init", "set_davg_zero")
        smooth = {"smooth": config.smooth, "attnw_shift": 20.0}
        pairs = {"input_dim": c.g2_dim, "head_num": c.attn2_nhead}
        kinds = {
            "attn2g_map": (
                "Atten2Map",
                {**pairs, "hidden_dim": c.attn2_hidden, "has_gate": c.attn2_has_gate, **smooth},
            ),
            "attn2_mh_apply": ("Atten2MultiHeadApply", pairs),
            "attn2_ev_apply": ("Atten2EquiVarApply", pairs),
            "loc_attn": (
                "LocalAtten",
                {"input_dim": c.g1_dim, "head_num": c.attn1_nhead, "hidden_dim": c.attn1_hidden, **smooth},
            ),
        }
        entries = {
            **self.entry("RepformerLayer", 2),
            **{name: value for name, value in vars(c).items() if name not in left_out},
            "sel": [c.nsel],
            "ntypes": self.n_types,
            "update_chnnl_2": updates_pairs,
            "smooth": config.smooth,
            "precision": self.precision,
            "trainable_ln": True,
        }
        if c.update_style == "res_residual":
            entries["@variables"] = {}
        if not updates_pairs:  # the last layer does not update the pairs
            entries |= {"update_g2_has_g1g1": False, "update_g2_has_attn": False, "update_h2": False}
        for name, value in params.items():
            if name.endswith("_residual"):
                entries["@variables"][name] = [_array(vector) for vector in value]
            elif name == "attn2_lm":
                entries[name] = self.layer_norm(value, c.ln_eps)
            elif name in kinds:
                kind, settings = kinds[name]
                inner = {key: self.layer(layer) for key, layer in value.items()}
                entries[name] = {**self.entry(kind, 1), **settings, "precision": self.precision, **inner}
            else:
                entries[name] = self.layer(value)
        return entries

    def layer_norm(self, params: dict, eps: float) -> dict:
        variables = {name: _array(params[name]) for name in ("w", "b")}
        settings = {"eps": eps, "trainable": True, "precision": self.precision}
        return {**self.entry("LayerNorm", 1), **settings, "@variables": variables}

    def fitting(self, config: Any, params: dict, n_features: int) -> dict:
        *hidden, last = params["layers"]
        statistics = params["statistics"]
        shared = {
            "neuron": list(config.neuron),
            "activation_function": config.activation_function,
            "resnet_dt": config.resnet_dt,
            "precision": self.precision,
        }
        network = {
            **self.entry("FittingNetwork", 1),
            **shared,
            "in_dim": int(np.shape(params["layers"][0]["w"])[0]),
            "out_dim": 1,
            "bias_out": True,
            "layers": [
                *(self.layer(layer, config.activation_function, resnet=True) for layer in hidden),
                self.layer(last),
            ],
        }
        names = ("case_embd", "fparam_avg", "fparam_inv_std", "aparam_avg", "aparam_inv_std")
        return {
            **self.entry("Fitting", 4),
            **shared,
            "type": "ener",
            "var_name": "energy",
            "ntypes": self.n_types,
            "type_map": self.elements,
            "dim_descrpt": n_features,
            "dim_out": 1,
            "numb_fparam": config.numb_fparam,
            "numb_aparam": config.numb_aparam,
            "dim_case_embd": config.dim_case_embd,
            "default_fparam": None if config.default_fparam is None else list(config.default_fparam),
            "mixed_types": True,
            "nets": self.collection(network, "fitting_network"),
            "rcond": None,
            "exclude_types": list(config.exclude_types),
            "@variables": {
                "bias_atom_e": np.reshape(_array(statistics["bias_atom_e"]), (-1, 1)),
                **{name: _array(statistics.get(name)) for name in names},
            },
            "tot_ener_zero": False,
            "trainable": [True] * len(params["layers"]),
            "layer_name": None,
            "use_aparam_as_mask": False,
            "spin": None,
            "atom_ener": None,
        }


def _array(value: Any) -> np.ndarray | None:
    return None if value is None else np.asarray(value)
