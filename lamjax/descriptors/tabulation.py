"""The radial net of a trained model as a table: for fast evaluation, not for training.

For every pair of types the net is a function of one number, x = w(r)/(r + p). All of these functions lie, to nine
digits, in a space of some twenty functions U_k(x), found by singular value decomposition and stored as cubic splines:
G_ij = U(x_ij) C[t_i, t_j]. The neighbours are summed before C is applied, so that no edge ever carries G's full width.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree
from pydantic import Field

from lamjax import numerics
from lamjax.config import configuration
from lamjax.descriptors.environment import Empty, Environment, padding_rows, per_atom

BLOCK = {"cpu": 256}  # atoms whose neighbours are in memory together; as many as a processor's caches hold
OTHERWISE = 16_384
FEW_TYPES = 4  # elements; for so many, products for all of them are cheaper than picking each atom's
SAMPLE = 64  # pairs of types whose functions are looked at first, and that join them
ATTEMPTS = 6
NODES = 2049  # places in x where the functions of the sample are looked at
CHECKED = 64  # where those of all pairs are, beside places that the functions of the sample choose
EDGES, PAIRS = 1 << 14, 128  # values of the net, and pairs of types, that are in memory together


@configuration
class TableConfig:
    """Size and range of a table."""

    rank: Annotated[int, Field(description="functions U_k")]
    intervals: Annotated[int, Field(description="of the splines, equal in x")]
    x_max: Annotated[
        float, Field(description="1/Å, end of the table; beyond it (atoms closer than `closest`) the result is NaN")
    ]
    closest: Annotated[float, Field(description="Å")]
    parts: Annotated[int, Field(description="2 where the part of the types is multiplied by the switch")] = 1


def init(table: TableConfig, n_types: int, width: int, dtype: DTypeLike | None = None) -> dict[str, Array]:
    """Parameters of the right shapes, all zero: a table is made from a trained net by `edit.tabulate`."""
    return {
        "spline": jnp.zeros((table.intervals, 4, table.rank), dtype),
        "coefficients": jnp.zeros((table.parts, n_types, n_types, table.rank, width), dtype),
    }


def contract(
    params: PyTree, table: TableConfig, empty: Empty | None, types: Array, neighbor_types: Array, env: Environment
) -> Array:
    """Σ_j R_ij ⊗ G_ij (n_atoms, 4, width), `empty` slots included."""
    statistics, coefficients = params["statistics"], params["coefficients"]
    parts, n_types = coefficients.shape[:2]
    width = coefficients.shape[-1]
    centre = jnp.minimum(types, n_types - 1)
    by_centre = coefficients.swapaxes(0, 1).reshape(n_types, -1, width)  # part, type of the neighbour and k as one

    def neighbours(types: Array, centre: Array, neighbor_types: Array, env: Environment) -> Array:
        mean, stddev = per_atom(statistics, types)
        basis = _evaluate(params["spline"], table, env.matrix[..., 0] * stddev[:, :1] + mean[:, :1])
        weights = jnp.stack([jnp.ones_like(env.switch), env.switch], axis=-1)[..., :parts]
        of_type = jax.nn.one_hot(neighbor_types, n_types, dtype=basis.dtype)
        rows = env.matrix[..., None, None] * weights[:, :, None, :, None] * of_type[:, :, None, None, :]
        sums = jnp.einsum("nwp,nwu->npu", rows.reshape(*rows.shape[:2], -1), basis).reshape(len(types), 4, -1)
        if n_types > FEW_TYPES:
            return jnp.einsum("nku,nug->nkg", sums, by_centre[centre])
        # one large product for all types of centres is faster than a small one for each atom
        of_all = jnp.einsum("nku,tug->nktg", sums, by_centre)
        return jnp.einsum("nktg,nt->nkg", of_all, jax.nn.one_hot(centre, n_types, dtype=basis.dtype))

    size = BLOCK.get(jax.default_backend(), OTHERWISE)
    total = numerics.in_blocks(neighbours, size, types, centre, neighbor_types, env)
    if empty is not None:
        row = padding_rows(statistics, types)
        g_empty = params["spline"][0, 0] @ coefficients[0][centre, jnp.minimum(empty.type, n_types - 1)]
        total = total + empty.number[:, None, None] * row[:, :, None] * g_empty[:, None, :]
    return total


def _evaluate(spline: Array, table: TableConfig, x: Array) -> Array:
    """U(x) (..., rank); NaN beyond the end of the table."""
    t = x * (table.intervals / table.x_max)
    interval = jnp.clip(jnp.floor(t), 0, table.intervals - 1).astype(jnp.int32)
    f = (t - interval)[..., None]
    c = spline[interval]
    value = c[..., 0, :] + f * (c[..., 1, :] + f * (c[..., 2, :] + f * c[..., 3, :]))
    return jnp.where((t <= table.intervals)[..., None], value, jnp.nan)


def tabulate(radial: Any, n_types: int, x_max: float, closest: float, tolerance: float) -> tuple[TableConfig, dict]:
    """Config and parameters (numpy float64) for `radial`: x, centre, neighbour (n,) -> (n, parts, width), jittable.

    The functions U_k are those of a sample of the pairs of types; the coefficients of every pair follow by least
    squares, and pairs that are not reproduced join the sample. So memory and time hold a few functions of all pairs,
    not thousands. `tolerance` is the error of G and, ten times it, of dG/dx, relative to their largest values; needs
    x64. Raises ValueError if it cannot be reached.
    """
    net, pairs = _net(radial), np.indices((n_types, n_types)).reshape(2, -1).T
    sample = np.unique(np.linspace(0, len(pairs) - 1, SAMPLE).round().astype(int))
    for attempt in range(ATTEMPTS):
        basis = _basis(net, pairs[sample], x_max, tolerance, 0.03 * tolerance / 3**attempt)
        coefficients, errors = _coefficients(net, pairs, basis, x_max)
        far = errors > (tolerance, 10 * tolerance)
        if not far.any():
            _, parts, rank, width = coefficients.shape
            by_pair = coefficients.swapaxes(0, 1).reshape(parts, n_types, n_types, rank, width)
            table = TableConfig(rank, len(basis.spline), x_max, closest, parts)
            return table, {"spline": basis.spline, "coefficients": by_pair}
        wrong = np.flatnonzero(far.any(axis=1))
        sample = np.union1d(sample, wrong[np.argsort(-errors[wrong].max(axis=1))[:SAMPLE]])
    raise ValueError(_off(len(basis.spline), basis.spline.shape[2], errors.max(axis=0), tolerance))


class _Basis(NamedTuple):
    """Functions that span those of a sample of pairs."""

    spline: np.ndarray  # (intervals, 4, rank)
    largest: tuple[float, float]  # |G| and |dG/dx| of the sample, to which errors are relative


def _off(intervals: int, rank: int, errors: Any, tolerance: float) -> str:
    return (
        f"With {intervals} intervals and {rank} functions the table is off by {errors[0]:.1e} (slope "
        f"{errors[1]:.1e}), more than {tolerance:.1e}. Give a larger tolerance or a larger closest distance."
    )


class _Net(NamedTuple):
    """G of pairs (n_pairs, 2) of types at x (n,); slopes take four times as long as values."""

    values: Callable  # (x, pairs) -> (n, n_pairs, parts, width)
    values_and_slopes: Callable  # (x, pairs) -> (2, n, n_pairs, parts, width)


def _net(radial: Any) -> _Net:
    def both(x: Array, centre: Array, neighbor: Any) -> Array:
        return jnp.stack(jax.jvp(lambda x: radial(x, centre, neighbor), (x,), (jnp.ones_like(x),)), axis=1)

    slopes_last = _evaluator(both)
    return _Net(_evaluator(radial), lambda x, pairs: np.moveaxis(slopes_last(x, pairs), 2, 0))


def _evaluator(function: Callable) -> Callable:
    """`function` of edges (n,) for all x (n,) and pairs (n_pairs, 2) of types: one program for all sizes."""
    block = jax.jit(function)

    def evaluate(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        edges = np.repeat(x, len(pairs)), np.tile(pairs[:, 0], len(x)), np.tile(pairs[:, 1], len(x))
        n = len(edges[0])
        results: Any = None
        for start in range(0, n, EDGES):
            part = [np.resize(column[start : start + EDGES], EDGES) for column in edges]
            values = np.asarray(block(*part))[: n - start]
            if results is None:
                results = np.empty((n, *values.shape[1:]))
            results[start : start + EDGES] = values
        return results.reshape(len(x), len(pairs), *results.shape[1:])

    return evaluate


def _basis(net: _Net, pairs: np.ndarray, x_max: float, tolerance: float, cut: float) -> _Basis:
    """Splines of the functions whose singular values are above `cut`; ValueError if 32,768 intervals do not suffice."""

    def both(x: Array) -> Array:
        return net.values_and_slopes(x, pairs).reshape(2, len(x), -1)

    rows = both(np.linspace(0, x_max, NODES))
    largest = tuple(max(rows[k].max(), -rows[k].min()) for k in range(2))
    rows /= np.array(largest)[:, None, None]
    directions = _directions(rows.reshape(2 * NODES, -1), cut)  # orthonormal, so U = G Cᵀ
    intervals, size = 512, 1 + EDGES // len(pairs)
    while intervals <= 32768:
        h = x_max / intervals
        nodes = np.linspace(0, x_max, intervals + 1)
        u = np.concatenate([both(x) @ directions.T for x in _cut(nodes, size)], axis=1)
        spline, errors = _hermite(u[0], u[1] * h), np.zeros(2)
        for k in _cut(np.arange(intervals), size):  # a quarter into every interval neither error of a cubic vanishes
            off = _evaluate_at(spline, x_max, nodes[k] + h / 4) @ directions - both(nodes[k] + h / 4)
            errors = np.maximum(errors, abs(off).max(axis=(1, 2)) / largest)
        if errors[0] < tolerance and errors[1] < 10 * tolerance:
            return _Basis(spline, largest)
        intervals *= 2
    raise ValueError(_off(intervals // 2, len(directions), errors, tolerance))


def _cut(x: np.ndarray, size: int) -> list[np.ndarray]:
    return [x[k : k + size] for k in range(0, len(x), size)]


def _coefficients(net: _Net, pairs: np.ndarray, basis: _Basis, x_max: float) -> tuple[np.ndarray, np.ndarray]:
    """C (n_pairs, parts, rank, width) of all pairs by least squares, and errors (n_pairs, 2) at other places."""
    nodes = _places(basis.spline, x_max)
    steps = np.linspace(0, 1, CHECKED + 1)[:-1]
    others = np.concatenate([x_max * (steps + 0.618 * steps % (1 / CHECKED)), nodes[:-1] + 0.4 * np.diff(nodes)])
    fit = np.linalg.pinv(_evaluate_at(basis.spline, x_max, nodes)[0])
    u = _evaluate_at(basis.spline, x_max, others)
    coefficients, errors = [], []
    for some in _cut(pairs, PAIRS):
        c = np.tensordot(fit, net.values(nodes, some), axes=1)  # rank, pairs, parts, width
        off = np.tensordot(u, c, axes=1) - net.values_and_slopes(others, some)
        errors.append(abs(off).max(axis=(1, 3, 4)).T / basis.largest)
        coefficients.append(c.transpose(1, 2, 0, 3))
    return np.concatenate(coefficients), np.concatenate(errors)


def _places(spline: np.ndarray, x_max: float) -> np.ndarray:
    """Places in x, three times as many as functions, that tell these apart: the pivots of QR decompositions."""
    import scipy.linalg

    left = np.linspace(0, x_max, NODES)
    places = []
    for _ in range(3):
        pivots = scipy.linalg.qr(_evaluate_at(spline, x_max, left)[0].T, mode="r", pivoting=True)[1][: spline.shape[2]]
        places.append(left[pivots])
        left = np.delete(left, pivots)
    return np.sort(np.concatenate(places))


def _directions(rows: np.ndarray, cut: float) -> np.ndarray:
    """Right singular vectors (rank, n) whose singular values are above `cut` times the largest.

    Of a random sample of the range, which is doubled until it holds them all (Halko et al., SIAM Rev. 53, 217): of
    thousands of columns some twenty count.
    """
    rng, n = np.random.default_rng(0), 64
    while True:
        n = min(n, *rows.shape)
        basis = np.linalg.qr(rows @ rng.normal(size=(rows.shape[1], n)))[0]
        basis = np.linalg.qr(rows @ (rows.T @ basis))[0]  # once more, for small singular values
        _, s, v = np.linalg.svd(basis.T @ rows, full_matrices=False)
        rank = max(1, int(np.sum(s > cut * s[0])))
        if rank < n // 2 or n == min(rows.shape):
            return v[:rank]
        n *= 2


def _hermite(values: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Cubic coefficients (intervals, 4, rank) from values and slopes (per interval) at the nodes."""
    a, b, da, db = values[:-1], values[1:], slopes[:-1], slopes[1:]
    return np.stack([a, da, 3 * (b - a) - 2 * da - db, 2 * (a - b) + da + db], axis=1)


def _evaluate_at(spline: np.ndarray, x_max: float, x: np.ndarray) -> np.ndarray:
    """Value and slope (2, n, rank) at x (n,) within the table, on the host."""
    t = x * (len(spline) / x_max)
    interval = np.minimum(t.astype(int), len(spline) - 1)
    f = (t - interval)[:, None]
    a, b, c, d = spline[interval].transpose(1, 0, 2)
    return np.stack([a + f * (b + f * (c + f * d)), (b + f * (2 * c + 3 * f * d)) * (len(spline) / x_max)])
