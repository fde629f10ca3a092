"""Repflow: layers that update atoms (N, n_dim), edges (E, e_dim) and angles (A, a_dim).

Edges are directed, from an atom i to a neighbour j; angles are ordered pairs (ij, ik) of the nearest edges of an atom,
j = k included, so that they are dense blocks beside a prefix of the edge list. Every sum carries the switch: an empty
slot adds nothing, and arrays are only as wide as the structures need. The concatenated inputs of a layer's matrices are
never built: the rows that belong to atoms are multiplied once per atom, those of edges once per edge.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from lamjax import nn, numerics
from lamjax.descriptors.dpa3.config import RepflowConfig
from lamjax.descriptors.environment import Switch, environment_matrix, statistics_init
from lamjax.descriptors.updates import combine, residuals_init

BLOCK = {"cpu": 1 << 17}  # numbers of the largest array of the atoms that are treated together: as caches hold
OTHERWISE = 1 << 26


class Graph(NamedTuple):
    """What all layers share. `width` are the slots of edges, `narrow` those with angles."""

    indices: Int[Array, "n_atoms width"]
    weight: Float[Array, "n_atoms width"]  # w_ij / ne; 0 on padding
    directions: Float[Array, "n_atoms width 3"]  # w_ij H_ij / sqrt(ne); 0 on padding
    radial: Float[Array, "n_atoms width"]  # what edges start from
    has_angles: Bool[Array, "n_atoms narrow"]
    angle_weight: Float[Array, "n_atoms narrow"]  # wa_ij / na^(1/4), so that a pair has the product; 0 on padding
    cosines: Float[Array, "n_atoms narrow narrow"]  # c_ijk / sqrt(pi)


class Given(NamedTuple):
    """What the neighbours of a block of atoms give to their edges; gathered at once, for its derivative is a loop."""

    nodes: Float[Array, "n_atoms width n_dim"]
    message: Float[Array, "n_atoms width _"]  # N_j W of node_edge_linear
    edge: Float[Array, "n_atoms width e_dim"]  # N_j W of edge_self_linear


class Centre(NamedTuple):
    """What atoms give to their own edges and angles, N_i W + b (n_atoms, _)."""

    message: Float[Array, "n_atoms _"]
    edge: Float[Array, "n_atoms e_dim"]
    angles: tuple[Float[Array, "n_atoms _"], ...]  # for new angles and for messages of angles


class LayerWeights(NamedTuple):
    """The rows of a layer's matrices that belong to edges and angles, taken apart outside the loop over blocks."""

    message: Float[Array, "e_dim _"]  # of E_ij
    edge: Float[Array, "e_dim e_dim"]  # of E_ij
    angle: tuple[Float[Array, "a_dim _"], ...]  # of A_ijk, for new angles (if there are any) and for messages of angles
    on_angles: Float[Array, "_ _"] | None  # of e'_ij and e'_ik, side by side for the same


class LayerBlock(NamedTuple):
    """What the updates of one layer share, for a block of atoms."""

    params: PyTree
    weights: LayerWeights
    config: RepflowConfig
    act: Callable
    graph: Graph  # of the block
    given: Given
    centre: Centre  # of the block


class Angles(NamedTuple):
    """A = left @ right. Before the first update they are the cosine times one vector, which is not multiplied out."""

    left: Float[Array, "n_atoms narrow narrow _"] | None
    right: Float[Array, "_ n_features"] | None

    def times(self, w: Float[Array, "n_features n_out"]) -> Array:
        """A W."""
        if self.right is None:
            return nn.linear({"w": w}, self.left)
        return self.left * (self.right @ w)[0]

    def value(self) -> Array | None:
        return self.left if self.right is None else self.left * self.right[0]


class AngleMap(NamedTuple):
    """One linear map of the angles of a block of atoms, [A_ijk, n'_i, e'_ik, e'_ij] W + b."""

    w: Float[Array, "a_dim n_out"]  # the rows of A_ijk
    j: Float[Array, "n_atoms narrow n_out"]  # the parts of e'_ij and of n'_i, with b
    k: Float[Array, "n_atoms narrow n_out"]  # the part of e'_ik

    def of(self, angles: Angles) -> Float[Array, "n_atoms narrow narrow n_out"]:
        return angles.times(self.w) + self.j[:, :, None] + self.k[:, None]


_NONE = Angles(None, None)  # where nothing depends on them


def init(key: Array, c: RepflowConfig, n_types: int, dtype: DTypeLike | None = None) -> dict[str, Any]:
    keys = nn.split(key, c.nlayers + 2)
    return {
        "edge_embedding": nn.linear_init(keys[0], 1, c.e_dim, dtype=dtype),
        "angle_embedding": nn.linear_init(keys[1], 1, c.a_dim, bias=False, dtype=dtype),
        "layers": [_layer_init(k, c, dtype) for k in keys[2:]],
        "statistics": statistics_init(n_types, dtype, c.fix_stat_std or 1.0),
    }


def numbers_kept(c: RepflowConfig, width: int, narrow: int) -> int:
    """How many numbers of an atom its forces need of the layers at least: edges and angles that each began with."""
    n_angles = max(0, c.nlayers - 2) if c.update_angle else 0  # the first layer's are cosines
    return narrow**2 * (n_angles * c.a_dim + 1) + width * ((c.nlayers - 1) * c.e_dim + 6)


def graph(
    c: RepflowConfig, params: PyTree, types: Array, indices: Array, masks: Any, displacements: Array, protection: float
) -> Graph:
    """Geometry of edges and angles; `masks` are those of the two shells, without excluded pairs."""
    r = numerics.safe_norm(displacements)
    mask = masks[0] & (r <= c.e_rcut)  # the exponential switch does not end there
    radial = Switch(c.e_rcut, c.e_rcut_smth, protection, c.use_exp_switch)
    env = environment_matrix(displacements, mask, types, params["statistics"], radial)
    narrow = masks[1].shape[1]
    near = r[:, :narrow]
    has_angles = masks[1] & mask[:, :narrow] & (near < c.a_rcut)
    switch = numerics.exponential_switch if c.use_exp_switch else numerics.switch
    unit = displacements[:, :narrow] / (near + 1e-6)[..., None]
    ne, na = c.divisors
    return Graph(
        indices=indices,
        weight=env.switch / ne,
        directions=env.matrix[..., 1:] * (env.switch / ne**0.5)[..., None],
        radial=r if c.edge_init_use_dist else env.matrix[..., 0],
        has_angles=has_angles,
        angle_weight=jnp.where(has_angles, switch(near, c.a_rcut_smth, c.a_rcut) / na**0.25, 0),
        cosines=jnp.einsum("njx,nkx->njk", unit, unit) * ((1 - 1e-6) / jnp.pi**0.5),
    )


def apply(params: PyTree, c: RepflowConfig, act: Callable, graph: Graph, nodes: Array) -> Array:
    """N (n_atoms, n_dim) after all layers. What the energy does not depend on at the end is not computed."""
    n_atoms = len(nodes)
    graph, nodes = numerics.whole_blocks(_block_size(c, graph), (graph, nodes))
    edges = nn.linear(params["edge_embedding"], graph.radial[..., None])
    edges = edges if c.edge_init_use_dist else act(edges)
    angles = Angles(graph.cosines[..., None], params["angle_embedding"]["w"])
    last = c.nlayers - 1
    for k, p in enumerate(params["layers"]):
        nodes, edges, angles = _layer(p, c, act, graph, nodes, edges, angles, left=last - k)
    return nodes[:n_atoms]


def _block_size(c: RepflowConfig, graph: Graph) -> int:
    """How many atoms are treated together."""
    width, narrow = graph.indices.shape[1], graph.has_angles.shape[1]
    numbers = max(narrow * narrow * max(c.e_dim, c.a_dim), width * c.n_dim * c.n_multi_edge_message)
    return max(1, BLOCK.get(jax.default_backend(), OTHERWISE) // numbers)


def _layer(
    p: PyTree, c: RepflowConfig, act: Callable, graph: Graph, nodes: Array, edges: Array, angles: Angles, left: int
) -> tuple:
    """One layer, some atoms at a time: the pairs of edges of all atoms do not fit a processor's caches.

    Products of atoms are made for all of them at once: of a few, a matrix is read that is larger than they are.
    """
    n = c.n_dim
    given = [nodes, *(nodes @ p[name]["w"][n : 2 * n] for name in ("node_edge_linear", "edge_self_linear"))]
    table, ends = jnp.concatenate(given, axis=-1), np.cumsum([x.shape[-1] for x in given])
    weights = _weights(p, c, updates_angles=c.update_angle and (left > 1 or c.sequential_update))
    update = _sequential if c.sequential_update else _parallel

    def rows(graph: Any, centre: Any, edges: Array, features: Array) -> tuple:
        given = Given(*jnp.split(table[graph.indices], ends[:-1], axis=-1))
        layer = LayerBlock(p, weights, c, act, graph, given, centre)
        around, edges, new = update(layer, edges, Angles(features, angles.right), left)
        return around, edges, new.left

    size, centre = _block_size(c, graph), _centre(p, c, nodes)
    around, edges, new = numerics.in_blocks(rows, size, graph, centre, edges, angles.left)
    return _new_nodes(p, c, act, nodes, *around), edges, Angles(new, None if c.update_angle else angles.right)


def _weights(p: PyTree, c: RepflowConfig, updates_angles: bool) -> LayerWeights:
    message, edge = (p[name]["w"][2 * c.n_dim :] for name in ("node_edge_linear", "edge_self_linear"))
    if not c.update_angle:
        return LayerWeights(message, edge, (), None)
    names = ("angle_self_linear", "edge_angle_linear1") if updates_angles else ("edge_angle_linear1",)
    from_node, from_edge = c.compressed
    ends = [c.a_dim, c.a_dim + from_node, c.a_dim + from_node + from_edge]
    angle, _, of_k, of_j = zip(*(jnp.split(p[name]["w"], ends) for name in names), strict=True)
    return LayerWeights(message, edge, angle, jnp.concatenate([*of_j, *of_k], axis=1))


def _centre(p: PyTree, c: RepflowConfig, nodes: Array) -> Centre:
    def share(name: str, nodes: Array, first: int) -> Array:
        return nodes @ p[name]["w"][first : first + nodes.shape[-1]] + p[name]["b"]

    message, edge = share("node_edge_linear", nodes, 0), share("edge_self_linear", nodes, 0)
    if not c.update_angle:
        return Centre(message, edge, ())
    nodes = _compressed(p, c, "n", nodes)
    names = ("angle_self_linear", "edge_angle_linear1")
    return Centre(message, edge, tuple(share(name, nodes, c.a_dim) for name in names))


def _layer_init(key: Array, c: RepflowConfig, dtype: DTypeLike | None = None) -> dict[str, Any]:
    n, e, a, m, h = c.n_dim, c.e_dim, c.a_dim, c.axis_neuron, c.n_multi_edge_message
    from_node, from_edge = c.compressed
    z = a + from_node + 2 * from_edge
    shapes = {
        "node_self_mlp": (n, n),
        "node_sym_linear": (m * (n + e), n),
        "node_edge_linear": (2 * n + e, h * n),
        "edge_self_linear": (2 * n + e, e),
    }
    if c.update_angle:
        shapes |= {"edge_angle_linear1": (z, e), "edge_angle_linear2": (e, e), "angle_self_linear": (z, a)}
    compress = {}
    if c.update_angle and c.a_compress_rate and not c.a_compress_use_split:
        compress = {"a_compress_n_linear": (n, from_node), "a_compress_e_linear": (e, from_edge)}
    k = iter(nn.split(key, 12))
    params = {name: nn.linear_init(next(k), *shape, dtype=dtype) for name, shape in shapes.items()}
    params |= {name: nn.linear_init(next(k), *shape, bias=False, dtype=dtype) for name, shape in compress.items()}
    if c.update_style == "res_residual":
        params |= _residual_init(next(k), c, dtype)
    return params


def _residual_init(key: Array, c: RepflowConfig, dtype: DTypeLike | None) -> dict[str, list]:
    sizes = {"n_residual": (2 + c.n_multi_edge_message, c.n_dim), "e_residual": (1 + c.update_angle, c.e_dim)}
    if c.update_angle:
        sizes["a_residual"] = (1, c.a_dim)
    return {
        name: residuals_init(k, *size, c.update_residual, c.update_residual_init, dtype)
        for k, (name, size) in zip(nn.split(key, len(sizes)), sizes.items(), strict=True)
    }


def _parallel(layer: LayerBlock, edges: Array, angles: Angles, left: int) -> tuple[Any, Any, Any]:
    """What atoms hear, and new edges and angles, from the old ones; `left` layers follow."""
    p, c = layer.params, layer.config
    around = _around(layer, edges)
    if left == 0:
        return around, None, _NONE
    terms = [edges, _self_update(layer, edges)]
    if c.update_angle:
        messages, angles = _through_angles(layer, edges, angles, updated=left > 1)
        terms.append(_to_edges(layer, messages, edges))
    return around, combine(c.update_style, p.get("e_residual"), terms), angles


def _sequential(layer: LayerBlock, edges: Array, angles: Angles, left: int) -> tuple[Any, Any, Any]:
    """Edges, angles, edges updated one after another, and what atoms hear of them."""
    first, second = layer.params["e_residual"]
    edges = edges + first * _self_update(layer, edges)
    messages, angles = _through_angles(layer, edges, angles, updated=True)
    edges = edges + second * _to_edges(layer, messages, edges)
    around = _around(layer, edges)
    return (around, edges, angles) if left else (around, None, _NONE)


def _self_update(layer: LayerBlock, edges: Array) -> Array:
    """What an edge hears of itself and its two atoms."""
    return layer.act(_on_edges(layer.weights.edge, layer.given.edge, layer.centre.edge, edges))


def _around(layer: LayerBlock, edges: Array) -> tuple[Array, Array]:
    """Symmetrised surroundings and the sum of messages along the edges (n_atoms, _)."""
    graph, given = layer.graph, layer.given
    symmetric = [
        _symmetrise(graph, features, layer.config.axis_neuron).reshape(len(edges), -1)
        for features in (edges, given.nodes)
    ]
    message = layer.act(_on_edges(layer.weights.message, given.message, layer.centre.message, edges))
    return jnp.concatenate(symmetric, axis=-1), jnp.einsum("nw,nwc->nc", graph.weight, message)


def _new_nodes(p: PyTree, c: RepflowConfig, act: Callable, nodes: Array, symmetric: Array, message: Array) -> Array:
    """N with its updates: self, symmetrised surroundings, messages along the edges."""
    terms = [
        nodes,
        act(nn.linear(p["node_self_mlp"], nodes)),
        act(nn.linear(p["node_sym_linear"], symmetric)),
        *jnp.split(message, c.n_multi_edge_message, axis=-1),
    ]
    return combine(c.update_style, p.get("n_residual"), terms)


def _symmetrise(graph: Graph, features: Array, axis_neuron: int) -> Array:
    """(1/3) Q[:, :m]ᵀ Q (n_atoms, m, n_channels), Q = (1/sqrt(ne)) Σ_j w_ij H_ij ⊗ G_ij."""
    q = jnp.einsum("nwx,nwc->nxc", graph.directions, features)
    return jnp.einsum("nxa,nxc->nac", q[..., :axis_neuron], q) / 3


def _on_edges(w: Array, given: Array, centre: Array, edges: Array) -> Array:
    """[N_i, N_j, E_ij] W + b (n_atoms, width, n_out); `given` holds the parts of N_j, `centre` those of N_i."""
    return centre[:, None] + given + nn.linear({"w": w}, edges)


def _through_angles(layer: LayerBlock, edges: Array, angles: Angles, updated: bool) -> tuple[Array, Angles]:
    """B_ij = (1/sqrt(na)) Σ_k wa_ij wa_ik act(...) (n_atoms, narrow, e_dim), and the new angles if they are `updated`.

    Of angles each linear map has a product of its own: to take columns of a common one apart costs more, in the
    gradient, than it saves.
    """
    p, c, weight = layer.params, layer.config, layer.graph.angle_weight
    *to_angles, to_edges = _angle_maps(layer, _compressed(p, c, "e", edges[:, : weight.shape[1]]))
    new = _NONE
    if updated:
        own = layer.act(to_angles[0].of(angles))
        new = Angles(combine(c.update_style, p.get("a_residual"), [angles.value(), own]), None)
    messages = layer.act(to_edges.of(new if c.sequential_update else angles))
    return jnp.einsum("njk,njkc->njc", weight[:, :, None] * weight[:, None], messages), new


def _angle_maps(layer: LayerBlock, edges: Array) -> list[AngleMap]:
    """The linear maps of a layer's angles; all that edges e' give to them is one product."""
    weights = layer.weights
    sizes = [w.shape[1] for w in weights.angle]
    shares = jnp.split(nn.linear({"w": weights.on_angles}, edges), np.cumsum(sizes * 2)[:-1], axis=-1)
    centres = layer.centre.angles[-len(sizes) :]
    return [
        AngleMap(w, j + centre[:, None], k)
        for w, j, k, centre in zip(weights.angle, shares[: len(sizes)], shares[len(sizes) :], centres, strict=True)
    ]


def _compressed(p: PyTree, c: RepflowConfig, which: Literal["n", "e"], features: Array) -> Array:
    """n' or e', what enters the angles of atoms or of edges."""
    if c.a_compress_rate == 0:
        return features
    if c.a_compress_use_split:
        from_node, from_edge = c.compressed
        return features[..., : from_node if which == "n" else from_edge]
    return nn.linear(p[f"a_compress_{which}_linear"], features)


def _to_edges(layer: LayerBlock, b: Array, edges: Array) -> Array:
    """What the angles of an edge say to it, act(B_ij W + b); an edge without angles has B = 0, or E_ij."""
    weights, act = layer.params["edge_angle_linear2"], layer.act
    width, narrow = edges.shape[1], b.shape[1]
    if layer.config.smooth_edge_update:
        messages = act(nn.linear(weights, b))
        rest = jnp.broadcast_to(act(weights["b"]), (len(b), width - narrow, b.shape[-1]))
        return jnp.concatenate([messages, rest], axis=1)
    b = jnp.where(layer.graph.has_angles[..., None], b, edges[:, :narrow])
    return act(nn.linear(weights, jnp.concatenate([b, edges[:, narrow:]], axis=1)))
