"""The radial net of a trained model as a table: for fast evaluation, not for training.

For every pair of types the net is a function of one number, x = w(r)/(r + p). All of these functions lie, to nine
digits, in a space of some twenty functions U_k(x), found by singular value decomposition and stored as cubic splines:
G_ij = U(x_ij) C[t_i, t_j]. The neighbours are summed before C is applied, so that no edge ever carries G's full width.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lamjax import numerics
from lamjax.descriptors.environment import Empty, Environment, padding_rows, per_atom

BLOCK = {"cpu": 256}  # atoms whose neighbours are in memory together; as many as a processor's caches hold
OTHERWISE = 16_384
FEW_TYPES = 4  # elements; for so many, products for all of them are cheaper than picking each atom's


@dataclass(frozen=True)
class TableConfig:
    """Size and range of a table."""

    rank: int  # functions U_k
    intervals: int  # of the splines, equal in x
    x_max: float  # 1/Å, end of the table; beyond it (atoms closer than `closest`) the result is NaN
    closest: float  # Å
    parts: int = 1  # 2 where the part of the types is multiplied by the switch
    __pydantic_config__: ClassVar = {"extra": "forbid"}


def init(table: TableConfig, n_types: int, width: int, dtype=None):
    """Parameters of the right shapes, all zero: a table is made from a trained net by `edit.tabulate`."""
    return {
        "spline": jnp.zeros((table.intervals, 4, table.rank), dtype),
        "coefficients": jnp.zeros((table.parts, n_types, n_types, table.rank, width), dtype),
    }


def contract(params, table: TableConfig, empty: Empty | None, types, neighbor_types, env: Environment):
    """Σ_j R_ij ⊗ G_ij (n_atoms, 4, width), `empty` slots included."""
    statistics, coefficients = params["statistics"], params["coefficients"]
    parts, n_types = coefficients.shape[:2]
    width = coefficients.shape[-1]
    centre = jnp.minimum(types, n_types - 1)
    by_centre = coefficients.swapaxes(0, 1).reshape(n_types, -1, width)  # part, type of the neighbour and k as one

    def neighbours(types, centre, neighbor_types, env: Environment):
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


def _evaluate(spline, table: TableConfig, x):
    """U(x) (..., rank); NaN beyond the end of the table."""
    t = x * (table.intervals / table.x_max)
    interval = jnp.clip(jnp.floor(t), 0, table.intervals - 1).astype(jnp.int32)
    f = (t - interval)[..., None]
    c = spline[interval]
    value = c[..., 0, :] + f * (c[..., 1, :] + f * (c[..., 2, :] + f * c[..., 3, :]))
    return jnp.where((t <= table.intervals)[..., None], value, jnp.nan)


def tabulate(radial, x_max: float, closest: float, tolerance: float) -> tuple[TableConfig, dict]:
    """Config and parameters (numpy float64) for `radial`: x (n,) -> (n, parts, n_types, n_types, width), jittable.

    `tolerance` is the error of G and, ten times it, of dG/dx, relative to their largest values; needs x64.
    Raises ValueError if 32,768 intervals do not suffice.
    """

    @jax.jit
    def value_and_slope(x):
        return jax.jvp(radial, (x,), (jnp.ones_like(x),))

    x = np.linspace(0, x_max, 2049)
    g, slope = (np.asarray(v) for v in value_and_slope(x))
    shape = g.shape[1:]
    largest = abs(g).max(), abs(slope).max()
    stacked = np.concatenate([f.reshape(len(x), -1) / size for f, size in zip((g, slope), largest, strict=True)])
    coefficients = _directions(stacked, 0.1 * tolerance)  # orthonormal, so U = G Cᵀ
    rank = len(coefficients)
    intervals = 512
    while intervals <= 32768:
        nodes = np.linspace(0, x_max, intervals + 1)
        between = nodes[:-1] + 0.25 * x_max / intervals
        values, slopes = (np.asarray(f).reshape(intervals + 1, -1) @ coefficients.T for f in value_and_slope(nodes))
        spline = _hermite(values, slopes * x_max / intervals)
        got = [p @ coefficients for p in _quarter(spline, x_max / intervals)]
        wanted = [np.asarray(f).reshape(intervals, -1) for f in value_and_slope(between)]
        errors = [abs(a - b).max() / size for a, b, size in zip(got, wanted, largest, strict=True)]
        if errors[0] < tolerance and errors[1] < 10 * tolerance:
            table = TableConfig(rank, intervals, x_max, closest, shape[0])
            by_pair = coefficients.reshape(rank, *shape).transpose(1, 2, 3, 0, 4)
            return table, {"spline": spline, "coefficients": by_pair}
        intervals *= 2
    raise ValueError(
        f"With {intervals // 2} intervals and {rank} functions the table is off by {errors[0]:.1e} (slope "
        f"{errors[1]:.1e}), more than {tolerance:.1e}. Give a larger tolerance or a larger closest distance."
    )


def _directions(rows: np.ndarray, tolerance: float) -> np.ndarray:
    """Right singular vectors (rank, n) whose singular values are above `tolerance` times the largest.

    Of a random sample of the range, which is doubled until it holds them all (Halko et al., SIAM Rev. 53, 217): of
    thousands of columns some twenty count.
    """
    rng, n = np.random.default_rng(0), 64
    while True:
        n = min(n, *rows.shape)
        basis = np.linalg.qr(rows @ rng.normal(size=(rows.shape[1], n)))[0]
        basis = np.linalg.qr(rows @ (rows.T @ basis))[0]  # once more, for what is small
        _, s, v = np.linalg.svd(basis.T @ rows, full_matrices=False)
        rank = max(1, int(np.sum(s > tolerance * s[0])))
        if rank < n // 2 or n == min(rows.shape):
            return v[:rank]
        n *= 2


def _hermite(values: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Cubic coefficients (intervals, 4, rank) from values and slopes (per interval) at the nodes."""
    a, b, da, db = values[:-1], values[1:], slopes[:-1], slopes[1:]
    return np.stack([a, da, 3 * (b - a) - 2 * da - db, 2 * (a - b) + da + db], axis=1)


def _quarter(spline: np.ndarray, h: float) -> tuple[np.ndarray, np.ndarray]:
    """Value and slope a quarter into every interval, where neither error of a cubic vanishes."""
    a, b, c, d = spline.transpose(1, 0, 2)
    return a + b / 4 + c / 16 + d / 64, (b + c / 2 + 3 * d / 16) / h
