"""NequIP: equivariant messages along edges, of natural parity, as in the public weights of Nequix.

Batzner et al., Nat. Commun. 13, 2453 (2022); Koker et al., arXiv 2508.16067 (sizes, layer norm, gates). Features of an
atom are arrays (2l+1, channels) for l = 0, 1, 2, ..., components in e3nn's order, with its "component" normalisation.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree
from pydantic import Field

from lamjax import imports, nn, numerics
from lamjax.config import configuration
from lamjax.descriptors.base import Descriptor, DescriptorInput, allowed_pairs, mask_excluded
from lamjax.descriptors.environment import Block
from lamjax.factories import factory
from lamjax.neighbors import Neighbors, Shell

SILU = 0.5964586854233045  # sqrt(E[silu(x)²]), x ~ N(0, 1), as a mean over 1,000,001 quantiles (e3nn-jax's constant)
EPS = 1e-12  # of the layer norm

BLOCK = {"cpu": 256}  # edges whose messages are in memory together: few enough for the cache of a core
OTHERWISE = 1 << 14

Features = tuple[Float[Array, "n_atoms _ _"], ...]  # for each l: (n_atoms, 2l+1, channels)


@configuration
class NequIPConfig:
    """Sizes are those of the NequIP model of Nequix; the number of neighbours is not limited."""

    type: Literal["nequip"] = "nequip"
    rcut: Annotated[float, Field(description="Å")] = 6.0
    channels: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...], Field(description="of l = 0, 1, 2, ... between the layers")
    ] = (128, 64, 32, 32)
    lmax: Annotated[int, Field(ge=0, description="of the spherical harmonics of an edge")] = 3
    nlayers: Annotated[int, Field(ge=1)] = 4
    embed_dim: Annotated[int, Field(ge=1, description="numbers that the first layer knows of an element")] = 64
    radial_basis: Annotated[int, Field(ge=1)] = 8
    radial_neuron: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    polynomial_p: Annotated[float, Field(description="of the cutoff function")] = 6.0
    avg_n_neighbors: Annotated[float, Field(description="sums over neighbours are divided by its root")] = 50.0
    scale: Annotated[float, Field(description="of the last layer's scalars over the root of their number")] = 1.0
    layer_norm: bool = True
    exclude_types: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.channels:
            raise ValueError("channels is empty: give the number of features of l = 0, 1, ..., for example [64, 32].")
        if self.lmax < len(self.channels) - 1:
            raise ValueError(
                f"channels go up to l = {len(self.channels) - 1}, lmax is {self.lmax}: edges cannot make these. "
                "Raise lmax, or leave out the last of channels."
            )
        for name in ("rcut", "polynomial_p", "avg_n_neighbors"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")

    @property
    def shells(self) -> tuple[Shell, ...]:
        """One cutoff, all neighbours within it."""
        return (Shell(self.rcut, None),)

    @property
    def receptive_field(self) -> float:
        """Distance (Å) within which other atoms affect the features of an atom: a cutoff for each layer."""
        return self.nlayers * self.rcut

    @property
    def width(self) -> int:
        """Features per atom: the scalars."""
        return self.channels[0]

    @property
    def element_rows(self) -> str:
        """The parameters with a row for each element."""
        return "species"

    @property
    def table(self) -> None:
        """There is no table for the radial nets."""
        return None

    @property
    def use_econf_tebd(self) -> bool:
        """False: elements are embedded by number, not by electronic configuration."""
        return False

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Nothing is normalised by what the data say."""
        return ()


class CouplingPath(NamedTuple):
    """A coupling of a sender's l = a with an edge's l = b to l = c, channel by channel."""

    a: int
    b: int
    c: int


class Layer(NamedTuple):
    """Sizes of one layer."""

    inputs: tuple[int, ...]  # channels of l = 0, 1, ...
    outputs: tuple[int, ...]  # without the gates
    paths: tuple[CouplingPath, ...]

    @property
    def gates(self) -> int:
        """Scalars that multiply the features of l > 0."""
        return sum(self.outputs[1:])

    @property
    def raw(self) -> tuple[int, ...]:
        """Channels before the gates are used up."""
        return (self.outputs[0] + self.gates, *self.outputs[1:])

    @property
    def gathered(self) -> tuple[int, ...]:
        """Channels that the sum over neighbours has for each l of the output."""
        return tuple(sum(self.inputs[p.a] for p in self.paths if p.c == c) for c in range(len(self.outputs)))

    @property
    def n_radial(self) -> int:
        """Radial weights of an edge."""
        return sum(self.inputs[p.a] for p in self.paths)


class Edges(NamedTuple):
    """The edges of the graph: neighbours with radial and angular functions of their vectors."""

    indices: Int[Array, "n_atoms capacity"]
    basis: Float[Array, "n_atoms capacity n_basis"]  # times the cutoff function; 0 for empty slots
    harmonics: Float[Array, "n_atoms capacity (lmax+1)²"]


@factory
def nequip(config: NequIPConfig, elements: tuple[str, ...]) -> Descriptor:
    """The descriptor of a config for these elements: the last layer's scalars, scaled."""

    def init(key: Array, dtype: DTypeLike | None = None) -> dict[str, Any]:
        return _init(key, config, len(elements), dtype)

    def apply(params: PyTree, atom_inputs: DescriptorInput) -> Array:
        return _apply(params, config, len(elements), *atom_inputs[:3])

    return Descriptor(config, config.shells, config.width, config.receptive_field, init, apply)


@functools.cache
def layers(config: NequIPConfig) -> tuple[Layer, ...]:
    """The sizes of all layers: scalars alone enter the first, and leave the last."""
    sizes, inputs = [], (config.embed_dim,)
    for k in range(config.nlayers):
        outputs = config.channels if k < config.nlayers - 1 else config.channels[:1]
        sizes.append(Layer(inputs, outputs, _paths(inputs, config.lmax, len(outputs))))
        inputs = outputs
    return tuple(sizes)


def _paths(inputs: tuple[int, ...], lmax: int, n_outputs: int) -> tuple[CouplingPath, ...]:
    """All couplings of natural parity, ordered by c, then a, then b."""
    every = itertools.product(range(n_outputs), range(len(inputs)), range(lmax + 1))
    return tuple(CouplingPath(a, b, c) for c, a, b in every if abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0)


@functools.cache
def coupling(a: int, b: int, c: int) -> np.ndarray:
    """(2a+1, 2b+1, 2c+1), Frobenius norm sqrt(2c+1), of the sign of the integral of three spherical harmonics."""
    coefficients = np.asarray(imports.e3nn().clebsch_gordan(a, b, c), np.float64) * math.sqrt(2 * c + 1)
    return np.where(np.abs(coefficients) < 1e-12, 0, coefficients)


def spherical_harmonics(lmax: int, u: Float[Array, "*batch 3"]) -> Float[Array, "*batch n"]:
    """Y_0, ..., Y_lmax of unit vectors behind one another; |Y_l|² = 2l+1."""
    e3nn = imports.e3nn()
    irreps = e3nn.Irreps.spherical_harmonics(lmax)
    return e3nn.spherical_harmonics(irreps, u, normalize=False, normalization="component").array


def _init(key: Array, config: NequIPConfig, n_types: int, dtype: DTypeLike | None) -> dict[str, Any]:
    """Weights of variance 1 where sums are divided by the root of their number, 4/n in the radial nets."""
    keys = nn.split(key, config.nlayers + 2)
    sizes = layers(config)
    return {
        "species": {
            "w": nn.normal(keys[0], (n_types, config.embed_dim), dtype),
            "skip": nn.normal(keys[1], (n_types, sizes[0].raw[0]), dtype),
        },
        "layers": [
            _layer_init(k, config, layer, number == 0, dtype)
            for number, (k, layer) in enumerate(zip(keys[2:], sizes, strict=True))
        ],
    }


def _layer_init(
    key: Array, config: NequIPConfig, layer: Layer, is_first: bool, dtype: DTypeLike | None
) -> dict[str, Any]:
    keys = iter(nn.split(key, 3 * 8 + len(config.radial_neuron) + 1))
    widths = (config.radial_basis, *config.radial_neuron, layer.n_radial)
    params = {
        "radial": [
            nn.normal(next(keys), (n, m), dtype) * np.asarray(2 / n**0.5, dtype)
            for n, m in zip(widths[:-1], widths[1:], strict=True)
        ],
        "gather": [nn.normal(next(keys), (n, m), dtype) for n, m in zip(layer.gathered, layer.raw, strict=True)],
    }
    if not is_first:
        params["send"] = [nn.normal(next(keys), (n, n), dtype) for n in layer.inputs]
        params["skip"] = [nn.normal(next(keys), (n, m), dtype) for n, m in zip(layer.inputs, layer.raw, strict=False)]
    if config.layer_norm:
        params["norm"] = [jnp.ones(n, dtype) for n in layer.raw]
    return params


def _apply(
    params: PyTree, config: NequIPConfig, n_types: int, types: Array, neighbors: Neighbors, displacements: Array
) -> Array:
    allowed = allowed_pairs(config.exclude_types, n_types)
    edges = _edges(config, neighbors, mask_excluded(neighbors.mask, types, neighbors.indices, allowed), displacements)
    kind = jnp.minimum(types, n_types - 1)  # padding is taken for some element; no atom has it as a neighbour
    root = math.sqrt(config.embed_dim)
    sent = (params["species"]["w"][kind][:, None] / root,)
    kept = (params["species"]["skip"][kind][:, None] / root,)
    h: Features = ()
    for number, (layer, p) in enumerate(zip(layers(config), params["layers"], strict=True)):
        if number:
            sent, kept = _linear(p["send"], h), _linear(p["skip"], h)
        h = _layer(config, layer, p, edges, sent, kept)
    return config.scale / math.sqrt(config.width) * h[0][:, 0]


def _edges(config: NequIPConfig, neighbors: Neighbors, mask: Bool[Array, "n_atoms capacity"], d: Array) -> Edges:
    """Radial basis b_n(d) f(d), b_n = (2/rc) sin(n pi d/rc)/d, and the spherical harmonics of the directions."""
    r = numerics.safe_norm(d, keepdims=True)
    r = jnp.where(r > 0, r, 1)
    n = jnp.arange(1, config.radial_basis + 1, dtype=d.dtype)
    waves = 2 / config.rcut * jnp.sin(n * (math.pi / config.rcut) * r) / r
    basis = waves * _cutoff(config, r) * mask[..., None]
    return Edges(neighbors.indices, basis, spherical_harmonics(config.lmax, d / r))


def _cutoff(config: NequIPConfig, r: Array) -> Array:
    """1 - (p+1)(p+2)/2 t^p + p(p+2) t^(p+1) - p(p+1)/2 t^(p+2), t = r/rc; 0 beyond."""
    p, t = config.polynomial_p, jnp.minimum(r / config.rcut, 1)
    inside = 1 - (p + 1) * (p + 2) / 2 * t**p + p * (p + 2) * t ** (p + 1) - p * (p + 1) / 2 * t ** (p + 2)
    return jnp.where(r < config.rcut, inside, 0)


def _layer(
    config: NequIPConfig, layer: Layer, params: PyTree, edges: Edges, sent: Features, kept: Features
) -> Features:
    """Messages summed over the neighbours, mixed, added to what is kept, normalised and gated."""
    total = _gathered(config, layer, params["radial"], edges, sent)
    z = list(_linear(params["gather"], total))
    for k, x in enumerate(kept):
        z[k] = z[k] + x if k < len(z) else z[k]
    if config.layer_norm:
        z = _layer_norm(params["norm"], z)
    scalars, gates = _silu(z[0][..., : layer.outputs[0]]), _silu(z[0][..., layer.outputs[0] :])
    ends = np.cumsum(layer.outputs[1:])
    parts = jnp.split(gates, ends[:-1], axis=-1) if len(ends) else []
    return (scalars, *(gate * x for gate, x in zip(parts, z[1:], strict=True)))


def _gathered(config: NequIPConfig, layer: Layer, radial: Any, edges: Edges, sent: Features) -> Features:
    """Σ_j R(r_ij) C m_j Y(r_ij) over the neighbours by path, the paths to one l behind one another.

    Some atoms at a time, whose messages stay in the processor's cache; all features of a sender are gathered at once,
    since the derivative of every gather is a loop over edges.
    """
    rows = jnp.concatenate([x.reshape(len(x), -1) for x in sent], axis=-1)

    def total(edges: Edges) -> Features:
        senders = [
            part.reshape(*edges.indices.shape, *x.shape[1:])
            for part, x in zip(_split(rows[edges.indices], [x[0].size for x in sent]), sent, strict=True)
        ]
        return _messages(layer, radial, edges, senders)

    block = BLOCK.get(jax.default_backend(), OTHERWISE)
    root = math.sqrt(config.avg_n_neighbors)
    return tuple(x / root for x in numerics.in_blocks(total, max(1, block // edges.indices.shape[1]), edges))


def _messages(layer: Layer, radial: Any, edges: Edges, senders: Sequence[Array]) -> Features:
    """The sums over the neighbours; senders (n_atoms, capacity, 2a+1, channels)."""
    weights = edges.basis
    for w in radial[:-1]:
        weights = jax.nn.silu(nn.linear({"w": w}, weights))
    weights = _split(nn.linear({"w": radial[-1]}, weights), [senders[path.a].shape[-1] for path in layer.paths])
    harmonics = _split(edges.harmonics, [2 * b + 1 for b in range(math.isqrt(edges.harmonics.shape[-1]))])
    sums: list[list] = [[] for _ in layer.outputs]
    for weight, path in zip(weights, layer.paths, strict=True):
        y = harmonics[path.b]
        turned = jnp.einsum("nej,ijk->nkei", y, jnp.asarray(coupling(path.a, path.b, path.c), y.dtype))
        message = weight[..., None, :] * senders[path.a]  # (n_atoms, capacity, 2a+1, channels)
        sums[path.c].append(_flat(turned, 2) @ _flat(message, 1))
    return tuple(jnp.concatenate(parts, axis=-1) for parts in sums)


def _flat(x: Array, axis: int) -> Array:
    """With two axes, neighbours and components, in one."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _split(x: Array, sizes: Sequence[int]) -> list[Array]:
    """Parts along the last axis, whose derivative is one concatenation; that of slices is a sum of padded arrays."""
    return jnp.split(x, list(itertools.accumulate(sizes))[:-1], axis=-1)


def _linear(weights: Array, features: Features) -> Features:
    """x W / sqrt(channels) for each l."""
    return tuple(nn.linear({"w": w}, x) / math.sqrt(len(w)) for w, x in zip(weights, features, strict=False))


def _layer_norm(gamma: Array, z: list) -> list:
    """z_l gamma_l / sqrt(q), q the mean over l of Σ z_l² / (2l+1)²: summed over channels, as weights are trained."""
    q = sum(jnp.sum(x * x, axis=(1, 2)) / x.shape[1] ** 2 for x in z) / len(z)
    inverse = jax.lax.rsqrt(q + EPS)[:, None, None]
    return [g * x * inverse for g, x in zip(gamma, z, strict=True)]


def _silu(x: Array) -> Array:
    return jax.nn.silu(x) / SILU
