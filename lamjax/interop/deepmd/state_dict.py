"""The content of DeePMD-kit's torch checkpoints (named tensors, options of every branch) as config and parameters."""

import re
from typing import Any

import jax
import numpy as np

from lamjax import pytree
from lamjax.descriptors import DPA1Config
from lamjax.interop.deepmd import options
from lamjax.interop.deepmd.tree import statistics, with_actual_means
from lamjax.interop.deepmd.words import short
from lamjax.potential import CheckpointError, Params, PotentialConfig, build

_LEAVES = {"w": "matrix", "b": "bias"}
# tensors that hold no parameter: nets under a second name; what is also an option; what a compressed model has
_COPIES = re.compile(r"\.filter_layers(_strip)?\._networks\.")
_DERIVED = re.compile(r"\.(_?min_nbor_dist|type_mask|graph_lower_disabled)$")
_TABLES = re.compile(r"\.(type_embd_data|compress_(info|data)\.\d+)$")
# names of the backend `pt_expt`, and those of `pt`
_EXPORTABLE = (
    (re.compile(r"\.(?:embeddings|nets)(_strip)?\._module_networks\."), r".filter_layers\1.networks."),
    (re.compile(r"\.(?:embeddings|nets)(_strip)?\._networks\."), r".filter_layers\1._networks."),
    (re.compile(r"(?<!\.embedding)\.embedding_net\."), ".embedding.embedding_net."),
    (re.compile(r"\.w$"), ".matrix"),
    (re.compile(r"\.b$"), ".bias"),
)
_SWITCHES = ("use_sqrt_nnei", "g1_out_conv", "g1_out_mlp")
_MOST = 12  # names listed of each kind of fault


def from_checkpoint(content: Any, head: str | None = None) -> tuple[PotentialConfig, Params]:
    """Config and parameters (numpy, as stored) of all heads of a checkpoint's content.

    Every tensor must be used, present and of the shape that the options say; CheckpointError lists what is not.
    With `head`, only this one is read where the branches do not share their descriptor.
    """
    named, sections = _sections(content)
    tensors = _without_copies(named)
    if head is not None and head not in sections:
        raise CheckpointError(f"Head {short(head)} is unknown; available: {', '.join(sections)}.")
    graph = any("._module_networks." in key for key in content.get("model", content))  # a checkpoint of `pt_expt`
    branches = {name: _branch(name, section, tensors, graph) for name, section in sections.items()}
    _check_copies(named)
    foreign = [key for key in tensors if key.split(".")[:2] not in [["model", name] for name in sections]]
    if foreign:
        raise CheckpointError(f"tensors belong to no branch of {', '.join(sections)}: {_list(foreign)}.")
    if differing := _differing(branches):
        if head is None:
            raise CheckpointError(
                f"the descriptors of the heads {', '.join(differing)} differ from that of {next(iter(branches))}: they "
                f"are several models. Name one: head=..., of {', '.join(branches)}."
            )
        branches = {head: branches[head]}
    first, params = next(iter(branches.values()))
    config = PotentialConfig(
        first.elements,
        first.descriptor,
        tuple(head for config, _ in branches.values() for head in config.heads),
        first.pair_exclude_types,
    )
    heads = {name: p.heads[name] for name, (_, p) in branches.items()}
    return config, Params(params.descriptor, heads)


def _sections(content: Any) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    """The tensors by name, and the options of every branch."""
    state = content.get("model", content) if isinstance(content, dict) else {}
    extra = state.get("_extra_state") if isinstance(state, dict) else None
    if not isinstance(extra, dict) or "model_params" not in extra:
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"a torch checkpoint without DeePMD-kit's model options (it holds {short(keys)}); "
            f"supported: {options.SUPPORTED}."
        )
    others = {key: value for key, value in state.items() if not isinstance(value, np.ndarray) and key != "_extra_state"}
    others |= {f"_extra_state.{key}": extra[key] for key in extra if key not in ("model_params", "train_infos")}
    if others:
        names = ", ".join(f"{key} = {short(value)}" for key, value in others.items())
        raise CheckpointError(f"the file holds {names[:300]}, which lamjax does not know.")
    section = extra["model_params"]
    return _parameters(state), _branches(section)


def _branches(section: dict) -> dict[str, dict]:
    """The options of every branch, by its name."""
    if "model_dict" not in section:
        return {"Default": section}
    if unknown := sorted(section.keys() - options.MODEL_KEYS - {"model_dict", "shared_dict"}):
        raise CheckpointError(
            f"model_params has {unknown[0]} = {short(section[unknown[0]])}, which lamjax does not know."
        )
    return section["model_dict"]


def _parameters(state: dict) -> dict[str, np.ndarray]:
    """The parameters by the names that the backend `pt` gives them, without what holds none."""
    named = {}
    for key, value in state.items():
        if not isinstance(value, np.ndarray) or _DERIVED.search(key):
            continue
        for pattern, name in _EXPORTABLE:
            key = pattern.sub(name, key)
        if _TABLES.search(key):
            if value.size:
                raise CheckpointError(f"the model is compressed ({key}): {options.COMPRESSED}")
            continue
        if key in named:
            raise CheckpointError(f"the file holds {key} twice, under the names of two backends of DeePMD-kit.")
        named[key] = value
    return named


def _without_copies(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: value for key, value in named.items() if not _COPIES.search(key)}


def _check_copies(named: dict[str, np.ndarray]) -> None:
    """CheckpointError for a tensor that differs from the one whose second name it has."""
    for key in filter(_COPIES.search, named):
        original = key.replace("._networks.", ".networks.")
        if not np.array_equal(named[key], named.get(original, np.nan), equal_nan=True):
            raise CheckpointError(f"{key} is a second name of {original}, but they differ: the file is damaged.")


def _branch(name: str, section: dict, tensors: dict[str, np.ndarray], graph: bool) -> tuple[PotentialConfig, Params]:
    """Config and parameters of one branch; `graph` as in `tree.from_tree`."""
    prefix = f"model.{name}.atomic_model."
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    try:
        config = options.model_config({**section, "descriptor": _completed(section.get("descriptor", {}), own)}, name)
    except CheckpointError as error:
        raise CheckpointError(f"branch {name}: {error}") from error
    radial = "se_atten" if isinstance(config.descriptor, DPA1Config) else "repinit"
    template = jax.eval_shape(build(config).init, jax.random.key(0))
    paths = jax.tree_util.tree_flatten_with_path(template)[0]
    expected = {tensor_name(pytree.path_name(path), name, radial): leaf.shape for path, leaf in paths}
    own = {key: _by_type(key, value) for key, value in own.items()}
    if (repeated := own.pop("fitting_net.default_fparam_tensor", None)) is not None and repeated.size:
        default = section["fitting_net"].get("default_fparam")
        if not np.array_equal(np.ravel(repeated), np.asarray(default or (), repeated.dtype)):
            raise CheckpointError(f"branch {name}: default_fparam is {short(default)}, its tensor {repeated.tolist()}.")
    _check(name, expected, own)
    params = jax.tree.unflatten(jax.tree.structure(template), [own[key] for key in expected])
    return with_actual_means(config, params, graph), params


def tensor_name(path: str, head: str, radial: str) -> str:
    """DeePMD-kit's name, below `model.<branch>.atomic_model.`, of a parameter of lamjax.

    `radial` is what the first block is called there: "repinit", or "se_atten" in DPA-1.
    """
    *parts, leaf = path.split("/")
    leaf = _LEAVES.get(leaf, leaf)
    match parts:
        case ["descriptor", "type_embedding" | "chg_embedding" | "spin_embedding" as table]:
            return f"descriptor.{table}.embedding.embedding_net.layers.0.{leaf}"
        case ["descriptor", "mix_cs_mlp"]:
            return f"descriptor.mix_cs_mlp.{leaf}"
        case ["descriptor", "repflow", "edge_embedding" | "angle_embedding" as net]:
            return f"descriptor.repflows.{net.replace('embedding', 'embd')}.{leaf}"
        case ["descriptor", "repflow", "layers", *rest]:
            return ".".join(["descriptor.repflows.layers", *rest, leaf])
        case ["descriptor", "g1_transform"]:
            return f"descriptor.g1_shape_tranform.{leaf}"
        case ["descriptor", "tebd_transform"]:
            return f"descriptor.tebd_transform.{leaf}"
        case ["descriptor", block, "statistics"]:
            return f"descriptor.{_block(block, radial)}.{leaf}"
        case ["descriptor", block, "net" | "net_strip" as net, layer]:
            strip = "_strip" if net == "net_strip" else ""
            return f"descriptor.{_block(block, radial)}.filter_layers{strip}.networks.0.layers.{layer}.{leaf}"
        case ["descriptor", "repformer", "g2_embedding"]:
            return f"descriptor.repformers.g2_embd.{leaf}"
        case ["descriptor", "repformer", "layers", *rest]:
            return ".".join(["descriptor.repformers.layers", *rest, leaf])
        case ["heads", name, "layers", layer] if name == head:
            return f"fitting_net.filter_layers.networks.0.layers.{layer}.{leaf}"
        case ["heads", name, "statistics"] if name == head:
            return leaf if leaf.startswith("out_") else f"fitting_net.{leaf}"
    raise KeyError(path)


def _block(name: str, radial: str) -> str:
    names = {"three_body": "repinit_three_body", "repformer": "repformers", "repflow": "repflows"}
    return {"repinit": radial, **names}[name]


def _completed(descriptor: dict, own: dict[str, np.ndarray]) -> dict:
    """The options with what files leave out read off the tensors: older switches, and `sel` given as "auto"."""
    options = dict(descriptor)
    options.setdefault("use_tebd_bias", "descriptor.type_embedding.embedding.embedding_net.layers.0.bias" in own)
    widths = {block: own[f"descriptor.{block}.mean"].shape[1] for block in _BLOCKS if f"descriptor.{block}.mean" in own}
    if options.get("type") == "dpa2" and {"repinit", "repformer"} <= options.keys():
        repinit, repformer = dict(options["repinit"]), dict(options["repformer"])
        old = "g1_out_mlp" not in repformer and not any(".g1_self_mlp." in key for key in own)
        for switch in _SWITCHES if old else ():  # models that know no such switches: what they do not say was off
            repformer.setdefault(switch, False)
        for block, key, name in ((repinit, "nsel", "repinit"), (repinit, "three_body_sel", "repinit_three_body")):
            _resolve(block, key, widths.get(name))
        _resolve(repformer, "nsel", widths.get("repformers"))
        options |= {"repinit": repinit, "repformer": repformer}
    elif options.get("type") == "dpa3":
        repflow = dict(options.get("repflow") or {})
        _resolve(repflow, "e_sel", widths.get("repflows"))
        options["repflow"] = repflow
    else:
        _resolve(options, "sel", widths.get("se_atten"))
    return options


_BLOCKS = ("repinit", "repinit_three_body", "repformers", "repflows", "se_atten")


def _resolve(block: dict, key: str, width: int | None) -> None:
    if isinstance(block.get(key), str) and width is not None:
        block[key] = width


def _by_type(key: str, value: np.ndarray) -> np.ndarray:
    """The tensor without the axes that hold nothing: one row a slot, one number a type."""
    *_, last = key.split(".")
    if last in ("mean", "stddev") and value.ndim == 3:
        zero = np.zeros_like(value)
        angular = ".repflows." in key
        return statistics(**{"mean": zero, "stddev": zero, last: value}, name=key, angular=angular)[last]
    return value.reshape(-1) if re.search(r"(out_bias|out_std|bias_atom_e|case_embd|param_\w+)$", key) else value


def _check(branch: str, expected: dict[str, tuple], own: dict[str, np.ndarray]) -> None:
    faults = {
        "missing": [f"{key} {shape}" for key, shape in expected.items() if key not in own],
        "unused": [f"{key} {value.shape}" for key, value in own.items() if key not in expected and value.size],
        "misshapen": [
            f"{key} has {own[key].shape}, expected {shape}"
            for key, shape in expected.items()
            if key in own and own[key].shape != shape
        ],
    }
    lines = [f"{kind}: {_list(names)}" for kind, names in faults.items() if names]
    if lines:
        raise CheckpointError(f"branch {branch}: the tensors do not fit the model's options; {'; '.join(lines)}.")


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(sorted(names)[:_MOST]) + more


def _differing(branches: dict[str, tuple[PotentialConfig, Params]]) -> list[str]:
    """Branches whose elements, descriptor or excluded pairs are not those of the first."""
    (first, params), *_ = branches.values()
    leaves = jax.tree.leaves(params.descriptor)

    def same(config: PotentialConfig, other: Params) -> bool:
        mine, its = ((c.elements, c.descriptor, c.pair_exclude_types) for c in (first, config))
        return mine == its and all(map(np.array_equal, leaves, jax.tree.leaves(other.descriptor)))

    return [name for name, (config, other) in branches.items() if not same(config, other)]
