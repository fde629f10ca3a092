"""Repformer: layers that update atoms (g1), pairs (g2) and, optionally, directions (h2).

A layer reads only its input values. Numbers such as 7.3 refer to the terms in the order in which the residual
vectors multiply them. `ns` is the configured nsel: what empty slots add to a softmax is written in closed form, so the
arrays are only as wide as the structures need.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from lamjax import nn, numerics
from lamjax.descriptors.environment import Environment, ShellView, statistics_init
from lamjax.descriptors.updates import combine, residuals_init

BLOCK = {"cpu": 2048}  # atoms that are treated together, of structures with more
OTHERWISE = 16_384
SHIFT = 20.0  # of the attention logits, so that a vanishing switch means weight exp(-20)


class Pairs(NamedTuple):
    """What all layers share: the neighbour slots of the repformer's shell."""

    indices: jax.Array  # (n_atoms, ns)
    mask: jax.Array  # (n_atoms, ns)
    switch: jax.Array  # (n_atoms, ns)
    weight: jax.Array  # (n_atoms, ns) the switch, or the mask where not smooth
    symmetry_scale: jax.Array  # (n_atoms, 1, 1) 1/sqrt(ns) or 1/ns of Q
    mean_scale: jax.Array  # (n_atoms, 1) 1/ns of the convolution
    n_sel: int
    smooth: bool


class Values(NamedTuple):
    """What the layers update."""

    g1: jax.Array  # (n_atoms, g1_dim), of atoms
    g2: jax.Array  # (n_atoms, ns, g2_dim), of pairs
    h2: jax.Array  # (n_atoms, ns, 3), directions


class Sent(NamedTuple):
    """What all atoms show to those that they are neighbours of."""

    g1: jax.Array  # (n_atoms, g1_dim)
    projected: Any  # (n_atoms, g2_dim) for the convolution, where it is of g2
    key_value: Any  # (n_atoms, (attn1_hidden + g1_dim) heads) for the attention


class Gates(NamedTuple):
    """What the maps between neighbours j and k of an atom share: (n_atoms, j, 1, k), the same for all heads."""

    gate: jax.Array  # h2_j · h2_k
    weight: jax.Array  # w_j w_k
    gain: jax.Array  # what multiplies the softmax: h2_j · h2_k / sqrt(3), times w_j w_k where smooth; 0 on padding
    mask: jax.Array  # both are neighbours


def init(key: Array, config: Any, n_types: int, dtype: DTypeLike | None = None) -> dict[str, Any]:
    keys = nn.split(key, config.nlayers + 1)
    return {
        "g2_embedding": nn.linear_init(keys[0], 1, config.g2_dim, dtype=dtype),
        "layers": [
            _layer_init(k, config, last=layer == config.nlayers - 1, dtype=dtype) for layer, k in enumerate(keys[1:])
        ],
        "statistics": statistics_init(n_types, dtype),
    }


def apply(params: PyTree, config: Any, smooth: bool, g1: Array, view: ShellView) -> Array:
    """g1 (n_atoms, g1_dim) after all layers."""
    act, env = nn.activation(config.activation_function), view.env
    if config.direct_dist:
        radial = jnp.where(env.mask, numerics.safe_norm(view.displacements) / config.rcut, 0)
        h2 = jnp.where(env.mask[..., None], view.displacements / config.rcut, 0)
    else:
        radial, h2 = env.matrix[..., 0], env.matrix[..., 1:]
    pairs = _pairs(config, smooth, view.indices, env, h2.dtype)
    values = Values(act(g1), act(nn.linear(params["g2_embedding"], radial[..., None])), h2)
    size = block()
    gates = _gates(pairs, h2) if len(g1) <= size else None
    for p in params["layers"]:
        sent = _sent(p, config, values.g1)
        if gates is None:
            values = _in_blocks(p, config, pairs, sent, values, size)
            continue
        new = _layer(p, config, pairs, gates, sent, values)
        gates = gates if new.h2 is values.h2 else _gates(pairs, new.h2)
        values = new
    return values.g1


def block() -> int:
    """Atoms whose pairs of neighbours are in memory together; structures of fewer are evaluated whole."""
    return BLOCK.get(jax.default_backend(), OTHERWISE)


def _in_blocks(p: PyTree, c: Any, pairs: Pairs, sent: Sent, values: Values, size: int) -> Values:
    """One layer of many atoms, some at a time: maps between the neighbours of all of them do not fit memory."""

    def rows(arrays: dict, values: Values) -> Values:
        some = pairs._replace(**arrays)
        return _layer(p, c, some, _gates(some, values.h2), sent, values)

    arrays = {name: x for name, x in pairs._asdict().items() if name not in ("n_sel", "smooth")}
    return numerics.in_blocks(rows, size, arrays, values)


def _sent(p: PyTree, c: Any, g1: Array) -> Sent:
    """Projected once per atom, then gathered."""
    conv = c.update_g1_has_conv and not c.g1_out_conv
    projected = nn.linear(p["proj_g1g2"], g1) if conv else None
    return Sent(g1, projected, nn.linear(p["loc_attn"]["mapkv"], g1) if c.update_g1_has_attn else None)


def _gates(pairs: Pairs, h2: Array) -> Gates:
    gate = jnp.einsum("njx,nkx->njk", h2, h2)[:, :, None, :]
    weight = (pairs.switch[:, :, None] * pairs.switch[:, None, :])[:, :, None, :]
    mask = (pairs.mask[:, :, None] & pairs.mask[:, None, :])[:, :, None, :]
    gain = jnp.where(mask, gate / 3**0.5, 0) * (weight if pairs.smooth else 1)
    # the barrier keeps XLA from computing these anew for every head and layer
    return Gates(*jax.lax.optimization_barrier((gate, weight, gain)), mask)


def _pairs(config: Any, smooth: Any, indices: Array, env: Environment, dtype: DTypeLike | None) -> Pairs:
    mask = env.mask.astype(dtype)
    if smooth:
        ones = jnp.ones((len(indices), 1), dtype)
        mean = ones / config.nsel
        symmetry = ones / (config.nsel**0.5 if config.use_sqrt_nnei else config.nsel)
        weight = env.switch
    else:
        n_real = jnp.sum(mask, axis=1, keepdims=True)
        mean = 1 / (1e-4 + n_real)
        has_any = n_real > 0
        root = jnp.where(has_any, jnp.sqrt(jnp.where(has_any, n_real, 1)), 0)
        symmetry = 1 / (1e-4 + root) if config.use_sqrt_nnei else mean
        weight = mask
    return Pairs(indices, env.mask, env.switch, weight, symmetry[..., None], mean, config.nsel, smooth)


def _layer_init(key: Array, config: Any, last: bool, dtype: DTypeLike | None = None) -> dict[str, dict[str, Any]]:
    c = config
    k = iter(nn.split(key, 24))
    ax, n1, n2 = c.axis_neuron, c.g1_dim, c.g2_dim
    width = (
        n1 * (not c.g1_out_mlp)
        + n2 * (c.update_g1_has_conv and not c.g1_out_conv)
        + ax * n2 * c.update_g1_has_grrg
        + ax * n1 * c.update_g1_has_drrd
    )
    p = {"linear1": nn.linear_init(next(k), width, n1, dtype=dtype)}
    if c.g1_out_mlp:
        p["g1_self_mlp"] = nn.linear_init(next(k), n1, n1, dtype=dtype)
    if c.update_g1_has_conv:
        shape = (n2, n1) if c.g1_out_conv else (n1, n2)
        p["proj_g1g2"] = nn.linear_init(next(k), *shape, bias=False, dtype=dtype)
    if c.update_g1_has_attn:
        p["loc_attn"] = {
            "mapq": nn.linear_init(next(k), n1, c.attn1_hidden * c.attn1_nhead, bias=False, dtype=dtype),
            "mapkv": nn.linear_init(next(k), n1, (c.attn1_hidden + n1) * c.attn1_nhead, bias=False, dtype=dtype),
            "head_map": nn.linear_init(next(k), n1 * c.attn1_nhead, n1, dtype=dtype),
        }
    if not last:
        p |= _pair_update_init(next(k), c, dtype)
    if c.update_style == "res_residual":
        p |= _residual_init(next(k), c, last, dtype)
    return p


def _pair_update_init(key: Array, c: Any, dtype: DTypeLike | None) -> dict[str, dict[str, Any]]:
    k = iter(nn.split(key, 8))
    n1, n2 = c.g1_dim, c.g2_dim
    p = {"linear2": nn.linear_init(next(k), n2, n2, dtype=dtype)}
    if c.update_g2_has_g1g1:
        p["proj_g1g1g2"] = nn.linear_init(next(k), n1, n2, bias=False, dtype=dtype)
    if c.update_g2_has_attn or c.update_h2:
        p["attn2g_map"] = {
            "mapqk": nn.linear_init(next(k), n2, 2 * c.attn2_hidden * c.attn2_nhead, bias=False, dtype=dtype)
        }
    if c.update_g2_has_attn:
        p["attn2_mh_apply"] = {
            "mapv": nn.linear_init(next(k), n2, n2 * c.attn2_nhead, bias=False, dtype=dtype),
            "head_map": nn.linear_init(next(k), n2 * c.attn2_nhead, n2, dtype=dtype),
        }
        p["attn2_lm"] = nn.layer_norm_init(n2, dtype)
    if c.update_h2:
        p["attn2_ev_apply"] = {"head_map": nn.linear_init(next(k), c.attn2_nhead, 1, bias=False, dtype=dtype)}
    return p


def _residual_init(key: Array, c: Any, last: bool, dtype: DTypeLike | None) -> dict[str, Any]:
    n_g1 = c.g1_out_mlp + (c.update_g1_has_conv and c.g1_out_conv) + 1 + c.update_g1_has_attn
    n_g2 = 0 if last else 1 + c.update_g2_has_g1g1 + c.update_g2_has_attn
    n_h2 = 0 if last else int(c.update_h2)

    keys = nn.split(key, 3)
    sizes = {"g1_residual": (n_g1, c.g1_dim), "g2_residual": (n_g2, c.g2_dim), "h2_residual": (n_h2, 1)}
    return {
        name: residuals_init(k, n, width, c.update_residual, c.update_residual_init, dtype)
        for k, (name, (n, width)) in zip(keys, sizes.items(), strict=True)
    }


def _layer(p: PyTree, c: Any, pairs: Pairs, gates: Gates, sent: Sent, values: Values) -> Values:
    """One layer of the atoms of `pairs`; without `linear2` it is the last and leaves g2 and h2 alone."""
    g1_j = sent.g1[pairs.indices]
    _, g2, h2 = values
    new_g1 = combine(c.update_style, p.get("g1_residual"), _g1_terms(p, c, pairs, sent, values, g1_j))
    if "linear2" not in p:
        return values._replace(g1=new_g1)
    attention = _pair_attention(p["attn2g_map"], c, pairs, gates, g2) if "attn2g_map" in p else None
    new_g2 = combine(c.update_style, p.get("g2_residual"), _g2_terms(p, c, pairs, values, g1_j, attention))
    if c.update_h2:
        h2_update = _equivariant_apply(p["attn2_ev_apply"], attention, h2)
        h2 = combine(c.update_style, p.get("h2_residual"), [h2, h2_update])
    return Values(new_g1, new_g2, h2)


def _g1_terms(p: PyTree, c: Any, pairs: Pairs, sent: Sent, values: Values, g1_j: Array) -> list[Array]:
    """g1 itself and its updates: self, convolution, symmetrisation, attention (7.3 a-e)."""
    act, (g1, g2, h2) = nn.activation(c.activation_function), values
    terms = [g1]
    mixed = []
    if c.g1_out_mlp:
        terms.append(act(nn.linear(p["g1_self_mlp"], g1)))
    else:
        mixed.append(g1)
    if c.update_g1_has_conv and c.g1_out_conv:
        filters = nn.linear(p["proj_g1g2"], g2)
        terms.append(_weighted_sum(filters * g1_j, pairs))
    elif c.update_g1_has_conv:
        mixed.append(_weighted_sum(g2 * sent.projected[pairs.indices], pairs))
    if c.update_g1_has_grrg:
        mixed.append(_symmetrise(g2, h2, pairs, c.axis_neuron))
    if c.update_g1_has_drrd:
        mixed.append(_symmetrise(g1_j, h2, pairs, c.axis_neuron))
    terms.append(act(nn.linear(p["linear1"], jnp.concatenate(mixed, axis=-1))))
    if c.update_g1_has_attn:
        terms.append(_local_attention(p["loc_attn"], c, pairs, sent.key_value, g1))
    return terms


def _g2_terms(p: PyTree, c: Any, pairs: Pairs, values: Values, g1_j: Array, attention: Any) -> list:
    """g2 itself and its updates: linear, g1 g1, pair attention (7.4)."""
    g1, g2, _ = values
    terms = [g2, nn.activation(c.activation_function)(nn.linear(p["linear2"], g2))]
    if c.update_g2_has_g1g1:
        terms.append(nn.linear(p["proj_g1g1g2"], g1[:, None, :] * g1_j * pairs.weight[..., None]))
    if c.update_g2_has_attn:
        update = _multi_head_apply(p["attn2_mh_apply"], attention, g2)
        terms.append(nn.layer_norm(p["attn2_lm"], update, c.ln_eps))
    return terms


def _weighted_sum(edges: Array, pairs: Pairs) -> Array:
    """(1/ns) Σ_j edges_j weight_j."""
    return jnp.sum(edges * pairs.weight[..., None], axis=1) * pairs.mean_scale


def _symmetrise(g: Array, h2: Array, pairs: Pairs, axis_neuron: int) -> Array:
    """Qᵀ[:ax] Q / 3 with Q = scale Σ_j h2_j ⊗ g_j weight_j (7.2), flattened with the channel fastest."""
    q = jnp.einsum("nwx,nwc->nxc", h2 * pairs.weight[..., None], g) * pairs.symmetry_scale
    return (jnp.einsum("nxa,nxc->nac", q[..., :axis_neuron], q) / 3).reshape(len(g), -1)


def _softmax(logits: Array, weight: Array, mask: Array, pairs: Pairs) -> Array:
    """Softmax over the last axis (7.5). Smooth: of (logit + 20) weight - 20 over all ns slots, absent ones included;
    else over real neighbours only."""
    if not pairs.smooth:
        logits = jnp.where(mask, logits, -1e30)
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        e = jnp.where(mask, jnp.exp(logits - top), 0)
        total = jnp.sum(e, axis=-1, keepdims=True)
        return e / jnp.where(total > 0, total, 1)
    z = (logits + SHIFT) * weight - SHIFT
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(z, axis=-1, keepdims=True), -SHIFT))
    e = jnp.exp(z - top)
    absent = pairs.n_sel - logits.shape[-1]
    return e / (jnp.sum(e, axis=-1, keepdims=True) + absent * jnp.exp(-SHIFT - top))


def _pair_attention(p: PyTree, c: Any, pairs: Pairs, gates: Gates, g2: Array) -> Array:
    """The map a_h[j, k] between neighbours j and k of one atom, gated by h2_j · h2_k: (n_atoms, j, head, k)."""
    n, width, n2 = g2.shape
    w_qk = p["mapqk"]["w"].reshape(n2, c.attn2_hidden, 2, c.attn2_nhead)
    # q·k = g2 (Wq Wkᵀ) g2ᵀ: one product instead of two where the hidden width is not smaller than g2's
    kernel = jnp.einsum("cdh,edh->che", w_qk[:, :, 0], w_qk[:, :, 1]) / c.attn2_hidden**0.5
    query = (g2 @ kernel.reshape(n2, -1)).reshape(n, width * c.attn2_nhead, n2)
    logits = jnp.einsum("nqc,nkc->nqk", query, g2).reshape(n, width, c.attn2_nhead, width)
    if c.attn2_has_gate:
        logits = logits * gates.gate
    return _softmax(logits, gates.weight, gates.mask, pairs) * gates.gain


def _multi_head_apply(p: PyTree, attention: Array, g2: Array) -> Array:
    """Σ_h (Σ_k a_h[j, k] g2_k) Wv_h Wo_h + b; value and output maps of a head are one n2 × n2 matrix."""
    n, width, n2 = g2.shape
    n_head = attention.shape[2]
    w_v = p["mapv"]["w"].reshape(n2, n2, n_head)
    w_o = p["head_map"]["w"].reshape(n2, n_head, n2)
    kernel = jnp.einsum("cdh,dhe->hce", w_v, w_o).reshape(n_head * n2, n2)
    mixed = (attention.reshape(n, width * n_head, width) @ g2).reshape(n, width, n_head * n2)
    return mixed @ kernel + p["head_map"]["b"]


def _equivariant_apply(p: PyTree, attention: Array, h2: Array) -> Array:
    """Σ_h head_map_h Σ_k a_h[j, k] h2_k."""
    mixed = jnp.einsum("njhk,h->njk", attention, p["head_map"]["w"][:, 0])
    return mixed @ h2


def _local_attention(p: PyTree, c: Any, pairs: Pairs, sent: Array, g1: Array) -> Array:
    """Attention of an atom to its neighbours (7.5), by the keys and values that they send."""
    n, n1 = g1.shape
    query = nn.linear(p["mapq"], g1).reshape(n, c.attn1_hidden, c.attn1_nhead)
    key_value = sent.reshape(len(sent), c.attn1_hidden + n1, c.attn1_nhead)[pairs.indices]
    keys, values = key_value[:, :, : c.attn1_hidden], key_value[:, :, c.attn1_hidden :]
    logits = jnp.einsum("ndh,nwdh->nhw", query, keys) / c.attn1_hidden**0.5
    weight = pairs.switch[:, None, :]
    attention = _softmax(logits, weight, pairs.mask[:, None, :], pairs)
    attention = jnp.where(pairs.mask[:, None, :], attention * weight if pairs.smooth else attention, 0)
    mixed = jnp.einsum("nhw,nwch->nhc", attention, values).reshape(n, -1)
    return nn.linear(p["head_map"], mixed)
