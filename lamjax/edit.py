"""A trained model as data: heads and elements added, averaged, removed, renamed; two models mixed; the net as a table.

Every function takes (potential, params) and returns a new pair; nothing is changed in place.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from types import NoneType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lamjax.arguments import expect
from lamjax.descriptors import repinit
from lamjax.descriptors.base import type_embedding, type_inputs
from lamjax.descriptors.embedding import TypedNet
from lamjax.heads import EnergyHeadConfig, energy_head
from lamjax.potential import Params, Potential, PotentialConfig, build, check_potential, check_structure, network_dtype

_NEEDS_KEY = "A new element without a like has a random embedding: give a key, or like={new: known}."
# What an element that the model has never seen gets, as in DeePMD-kit; all other parameters do not depend on types.
_UNSEEN = {"mean": 0.0, "stddev": 0.1, "bias_atom_e": 0.0, "out_bias": 0.0, "out_std": 1.0}


def add_head(
    potential: Potential,
    params: Params,
    name: str,
    source: str | Sequence[str] | None = None,
    key: Array | None = None,
    config: EnergyHeadConfig | None = None,
) -> tuple[Potential, Params]:
    """The model with one more head, last in the list: a copy of `source`, the mean of several, or (None) a random one.

    A mean is taken leaf by leaf over weights and statistics, output biases included. A random head needs a `key`; it
    has the `config` of the first head unless another is given, output bias 0 and case embedding 0 (a vector that tells
    data sets apart has no place for a new one; copies keep that of their source).
    Raises ValueError for a name that exists, an unknown source, or a mean over heads of different configs.
    """
    old = _config_of(potential)
    _require_new(old, name)
    if source is None:
        config = config or old.heads[0][1]
        head = _random_head(old, params, config, key)
    elif config is not None:
        raise ValueError(f"Head {name!r} takes its config from its source {source!r}: leave out config, or source.")
    else:
        names = _checked_names(old, source)
        config = _common_config(old, names)
        head = jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *[params.heads[n] for n in names])
    new = replace(old, heads=(*old.heads, (name, config)))
    return build(new, potential.head), params._replace(heads={**params.heads, name: head})


def select_heads(potential: Potential, params: Params, names: str | Sequence[str]) -> tuple[Potential, Params]:
    """The model with these heads alone, in this order.

    The chosen head stays chosen if it is among them; else none is, or the only one.
    """
    old = _config_of(potential)
    names = _checked_names(old, names)
    configs = dict(old.heads)
    new = replace(old, heads=tuple((name, configs[name]) for name in names))
    chosen = potential.head if potential.head in names else None
    return build(new, chosen), params._replace(heads={name: params.heads[name] for name in names})


def remove_heads(potential: Potential, params: Params, names: str | Sequence[str]) -> tuple[Potential, Params]:
    """The model without these heads; at least one must remain. The chosen head as in `select_heads`."""
    old = _config_of(potential)
    removed = _checked_names(old, names)
    left = [name for name in old.head_names if name not in removed]
    if not left:
        raise ValueError(f"A model needs a head: {', '.join(removed)} are all that there are. Leave one of them.")
    return select_heads(potential, params, left)


def rename_head(potential: Potential, params: Params, old: str, new: str) -> tuple[Potential, Params]:
    """The model with head `old` called `new`; if it was the chosen one it still is."""
    config = _config_of(potential)
    _checked_names(config, old)
    _require_new(config, new)
    names = {name: new if name == old else name for name in config.head_names}
    renamed = replace(config, heads=tuple((names[name], c) for name, c in config.heads))
    heads = {names[name]: head for name, head in params.heads.items()}
    return build(renamed, names.get(potential.head)), params._replace(heads=heads)


def restrict_elements(potential: Potential, params: Params, elements: Sequence[str]) -> tuple[Potential, Params]:
    """The model that knows these elements alone, in this order: smaller arrays, the same energies, forces and virials.

    Exclusions of pairs and types follow their elements. Raises ValueError for an element that the model does not know.
    """
    config = _config_of(potential)
    elements = _symbols(elements)
    if unknown := [e for e in elements if e not in config.elements]:
        raise ValueError(
            f"Element {', '.join(unknown)} is not in the model's type map [{', '.join(config.elements)}]. "
            "Name some of these, or add the element with extend_elements."
        )
    if not elements:
        raise ValueError(f"A model needs an element: name some of [{', '.join(config.elements)}].")
    return _with_types(potential, params, elements, [config.elements.index(e) for e in elements], None)


def extend_elements(
    potential: Potential,
    params: Params,
    new: Sequence[str],
    like: Mapping[str, str] | None = None,
    key: Array | None = None,
) -> tuple[Potential, Params]:
    """The model with further elements at the end of its type map; what it says of the others stays the same.

    `like={"Ge": "Si"}` makes Ge behave as Si does: type embedding, statistics, biases, exclusions. An element without a
    model gets what DeePMD-kit gives it: a type embedding drawn from U(0, 1), for which `key` is needed, mean 0 and
    standard deviation 0.1 of the environment (the constant of a model that has one), bias 0. With embeddings of
    electronic configurations the vectors follow from the elements, and only statistics, biases and exclusions are new.
    Raises ValueError for an element that is known already, or a model element that is not.
    """
    config = _config_of(potential)
    expect(like, (Mapping, NoneType), "like says which element a new one is like", "For example like={'Ge': 'Si'}.")
    new, like = _symbols(new), dict(like or {})
    if known := [e for e in new if e in config.elements]:
        raise ValueError(f"Element {', '.join(known)} is already in the type map [{', '.join(config.elements)}].")
    if foreign := [e for e in like.values() if e not in config.elements]:
        raise ValueError(f"No element {', '.join(foreign)} to copy in the type map [{', '.join(config.elements)}].")
    if unused := [e for e in like if e not in new]:
        raise ValueError(f"like names {', '.join(unused)}, but the new elements are [{', '.join(new)}].")
    origins = [*range(len(config.elements)), *(config.elements.index(like[e]) if e in like else None for e in new)]
    return _with_types(potential, params, (*config.elements, *new), origins, key)


def interpolate(potential: Potential, params: Params, other: Params, share: float) -> tuple[Potential, Params]:
    """The model on the straight line from `params` (share 0) to `other` (share 1), both of `potential`.

    Between a model and what fine-tuning made of it lie models that keep more of what the first knew (Wortsman et al.,
    CVPR 2022, arXiv 2109.01903): measure a few shares on data of both kinds. Statistics and output biases move too.
    Raises CheckpointError where `other` has other heads, elements or shapes.
    """
    check_structure(_config_of(potential), other)
    return potential, jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), params, other)


def tabulate(
    potential: Potential, params: Params, closest: float = 0.5, tolerance: float = 1e-8
) -> tuple[Potential, Params]:
    """The model with its radial net (repinit, or all of DPA-1) as a table: the same numbers to `tolerance`, faster.

    `closest` (Å) is where the table ends: atoms nearer than that give NaN, which calculator and commands report.
    `tolerance` is relative, of the net and, ten times it, of its slope. For evaluation: the second derivative of a
    cubic spline jumps, and no net is left to train. Of 23 elements it takes seconds, of 89 about a minute and 1 GB:
    restrict them first where fewer are enough.
    Raises ValueError for a model that is a table already or has no such net, or a tolerance that cannot be reached.
    """
    config = _config_of(potential)
    if not (closest > 0 and tolerance > 0):
        raise ValueError(f"closest (Å) and tolerance must be above 0, got {closest} and {tolerance}.")
    descriptor: Any = config.descriptor
    if not hasattr(descriptor, "with_table"):
        raise ValueError(f"A {descriptor.type} model has no radial net that a table could replace. Use it as it is.")
    block = descriptor.repinit
    if block.table is not None:
        raise ValueError("The radial net of this model is a table already.")
    with jax.enable_x64(True):
        exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params.descriptor)
        inputs = type_inputs(config.elements, descriptor.use_econf_tebd)
        embedding = type_embedding(exact["type_embedding"], inputs)
        net = TypedNet(exact["repinit"], block, descriptor.smooth, embedding)
        table, nets = repinit.tabulate(net, descriptor.env_protection, closest, tolerance)
    dtype = params.descriptor["type_embedding"]["w"].dtype
    new_block = {name: jnp.asarray(x, dtype) for name, x in nets.items()}
    new_block["statistics"] = params.descriptor["repinit"]["statistics"]
    new_params = params._replace(descriptor={**params.descriptor, "repinit": new_block})
    return build(replace(config, descriptor=descriptor.with_table(table)), potential.head), new_params


def _with_types(
    potential: Potential, params: Params, elements: Sequence[str] | None, origins: list[int | None], key: Array
) -> tuple[Potential, Params]:
    """The model of other elements, of which number k takes the place that `origins[k]` had; None: one never seen."""
    old = potential.config
    if old.descriptor.table is not None:
        raise ValueError("The radial net is a table for these elements. Change the elements before `tabulate`.")
    descriptor = replace(old.descriptor, exclude_types=_moved_pairs(old.descriptor.exclude_types, origins))
    heads = tuple(
        (name, replace(c, exclude_types=tuple(k for k, origin in enumerate(origins) if origin in c.exclude_types)))
        for name, c in old.heads
    )
    pairs = _moved_pairs(old.pair_exclude_types, origins)
    new = replace(old, elements=tuple(elements), descriptor=descriptor, heads=heads, pair_exclude_types=pairs)
    constant = [block.stddev for block in descriptor.blocks if block.stddev is not None]
    unseen = _UNSEEN | ({"stddev": constant[0]} if constant else {})
    moved = jax.tree_util.tree_map_with_path(lambda path, leaf: _moved_leaf(path, leaf, origins, unseen), params)
    name = old.descriptor.element_rows
    if name is not None:
        move = _moved_embedding if name == "type_embedding" else _moved_species
        rows = move(params.descriptor[name], origins, key)
        moved = moved._replace(descriptor={**moved.descriptor, name: rows})
    return build(new, potential.head), moved


def _moved_leaf(path: Any, leaf: Any, origins: Sequence[int | None], unseen: Mapping[str, float]) -> Array:
    """A leaf of a `statistics` dict with a row for each type, re-indexed; any other leaf as it is."""
    *_, parent, name = (getattr(k, "key", None) for k in path)
    if parent != "statistics" or name not in unseen:
        return leaf
    return _moved_rows(leaf, origins, unseen[name])


def _moved_rows(leaf: Any, origins: Sequence[int | None], unseen: Any) -> Array:
    """leaf[origins], and `unseen` where the origin is None; the dtype stays, numpy stays numpy."""
    xp = jnp if isinstance(leaf, jax.Array) else np
    is_new = np.array([origin is None for origin in origins]).reshape(-1, *[1] * (leaf.ndim - 1))
    rows = leaf[np.array([origin or 0 for origin in origins])]
    return xp.where(is_new, xp.asarray(unseen, leaf.dtype), rows)


def _moved_embedding(params: dict, origins: Sequence[int | None], key: Array) -> dict:
    """The type embedding T = X W (+ b) + R with the rows of T re-indexed and new ones drawn from U(0, 1).

    R, the residual of a dense layer, is there only if the width of T is the number of types or twice that. Where it
    comes, goes or moves, W makes up for it.
    """
    w = params["w"]
    n_old, dim = w.shape
    drawn = 0.0
    if None in origins:
        if key is None:
            raise ValueError(_NEEDS_KEY)
        drawn = jax.random.uniform(key, (len(origins), dim)) - params.get("b", 0)
    correction = _moved_rows(_residual(n_old, dim), origins, 0.0) - _residual(len(origins), dim)
    return {**params, "w": _moved_rows(w, origins, drawn) + correction.astype(w.dtype)}


def _moved_species(params: dict, origins: Sequence[int | None], key: Array) -> dict:
    """Tables with a row for each element, re-indexed; new rows are drawn from N(0, 1)."""
    if None in origins and key is None:
        raise ValueError(_NEEDS_KEY)
    drawn = {name: 0.0 for name in params}
    if None in origins:
        keys = dict(zip(params, jax.random.split(key, len(params)), strict=True))
        drawn = {name: jax.random.normal(keys[name], (len(origins), w.shape[1])) for name, w in params.items()}
    return {name: _moved_rows(w, origins, drawn[name]) for name, w in params.items()}


def _residual(n_types: int, dim: int) -> np.ndarray:
    """R of `nn.dense` for one-hot input: I, [I, I], or nothing."""
    return np.tile(np.eye(n_types), dim // n_types) if dim in (n_types, 2 * n_types) else np.zeros((n_types, dim))


def _moved_pairs(pairs: Any, origins: Sequence[int | None]) -> tuple[tuple[int, int], ...]:
    """The excluded pairs in the numbers of the new types, each once."""
    excluded = {frozenset(pair) for pair in pairs}
    n = range(len(origins))
    return tuple((a, b) for a in n for b in n if a <= b and frozenset((origins[a], origins[b])) in excluded)


def _random_head(config: PotentialConfig, params: Params, head: EnergyHeadConfig, key: Array) -> Any:
    if key is None:
        raise ValueError(
            f"A random head needs a key, for example jax.random.key(0); or copy one of: {', '.join(config.head_names)}."
        )
    dtype = network_dtype(params)
    fresh = energy_head(head, config.descriptor.width, len(config.elements)).init(key, dtype)
    return jax.tree.map(jnp.asarray, fresh)


def _common_config(config: PotentialConfig, names: Sequence[str]) -> EnergyHeadConfig:
    """The config that all these heads have, or a ValueError that names where they differ."""
    configs = dict(config.heads)
    first = configs[names[0]]
    for name in names[1:]:
        differ = [f.name for f in fields(first) if getattr(first, f.name) != getattr(configs[name], f.name)]
        if differ:
            differences = "; ".join(f"{k}: {getattr(first, k)} and {getattr(configs[name], k)}" for k in differ)
            raise ValueError(f"Heads {names[0]!r} and {name!r} have no mean, they differ in {differences}.")
    return first


def _config_of(potential: Potential) -> PotentialConfig:
    check_potential(potential, "A function of edit")
    if not isinstance(potential.config, PotentialConfig):
        kind = type(potential.config).__name__
        raise ValueError(f"A potential of {kind} has no heads and elements to edit; only models of `build` do.")
    return potential.config


def _checked_names(config: PotentialConfig, names: str | Iterable[str]) -> tuple[str, ...]:
    """The names, each once, all of them heads of the model; at least one."""
    names = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    if unknown := [name for name in names if name not in config.head_names]:
        raise ValueError(f"Head {', '.join(map(repr, unknown))} is unknown; available: {', '.join(config.head_names)}.")
    if not names:
        raise ValueError(f"No head was named; available: {', '.join(config.head_names)}.")
    return names


def _require_new(config: PotentialConfig, name: str) -> None:
    if not name or name in config.head_names:
        fault = "A head needs a name" if not name else f"Head {name!r} exists already"
        raise ValueError(f"{fault}; the model has: {', '.join(config.head_names)}. Choose another name.")


def _symbols(elements: Sequence[str]) -> tuple[str, ...]:
    if isinstance(elements, str):
        raise ValueError(f"elements is a list of chemical symbols, got the text {elements!r}: write [{elements!r}].")
    return tuple(elements)
