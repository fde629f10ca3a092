"""NequIP as slow and plain as it can be, from the formulas: numpy loops, couplings by quadrature, `.nqx` by hand."""

import io
import itertools
import json
import math

import numpy as np

SILU = 0.5964586854233045


def header(**changes):
    """The first line of a tiny model."""
    return {
        "atomic_numbers": [1, 8, 29],
        "cutoff": 3.5,
        "hidden_irreps": "5x0e + 3x1o + 2x2e",
        "lmax": 3,
        "n_layers": 3,
        "radial_basis_size": 4,
        "radial_mlp_size": 6,
        "radial_mlp_layers": 2,
        "radial_polynomial_p": 6.0,
        "avg_n_neighbors": 11.3,
        "scale": 0.73,
        "shift": 0.21,
        "index_weights": False,
        "layer_norm": True,
        "learning_rate": 0.01,
    } | changes


def multiplicities(head):
    return [int(part.split("x")[0]) for part in head["hidden_irreps"].split("+")]


def paths(n_in, lmax, n_out):
    return [
        (a, b, c)
        for c in range(n_out)
        for a in range(n_in)
        for b in range(lmax + 1)
        if abs(a - b) <= c <= a + b and (a + b + c) % 2 == 0
    ]


def shapes(head):
    """The shapes of all arrays, layer by layer, as the file has them."""
    channels, n = multiplicities(head), len(head["atomic_numbers"])
    widths, inputs, found = [head["radial_mlp_size"]] * head["radial_mlp_layers"], [n], [(n,)]
    for layer in range(head["n_layers"]):
        last = layer == head["n_layers"] - 1
        outputs = channels[:1] if last else channels
        raw = [outputs[0] + sum(outputs[1:]), *outputs[1:]]
        coupled = paths(len(inputs), head["lmax"], len(outputs))
        radial = [head["radial_basis_size"], *widths, sum(inputs[a] for a, _, _ in coupled)]
        found += list(itertools.pairwise(radial))
        found += [(m, m) for m in inputs]
        found += [(sum(inputs[a] for a, _, to in coupled if to == c), raw[c]) for c in range(len(outputs))]
        found += [(m, raw[c]) for c, m in enumerate(inputs) if c < len(outputs)]
        found += [(m,) for m in raw]
        inputs = outputs
    return [*found, (channels[0], 1)]


def arrays(head, seed=0):
    """Random weights in float32."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype("<f4") for shape in shapes(head)]


def file(head, weights) -> bytes:
    out = io.BytesIO()
    out.write((json.dumps(head) + "\n").encode())
    for array in weights:
        np.save(out, array)
    out.write(b"\n")
    return out.getvalue()


def harmonics(l, u):  # noqa: E741
    """Real spherical harmonics with y as polar axis, |Y|² = 2l+1."""
    x, y, z = u
    r15, r42, r70 = np.sqrt([15, 42, 70])
    return {
        0: [1.0],
        1: np.sqrt(3) * np.array([x, y, z]),
        2: [r15 * x * z, r15 * x * y, np.sqrt(5) / 2 * (3 * y * y - 1), r15 * y * z, r15 / 2 * (z * z - x * x)],
        3: [
            r70 / 4 * x * (3 * z * z - x * x),
            np.sqrt(105) * x * y * z,
            r42 / 4 * x * (5 * y * y - 1),
            np.sqrt(7) / 2 * y * (5 * y * y - 3),
            r42 / 4 * z * (5 * y * y - 1),
            np.sqrt(105) / 2 * y * (z * z - x * x),
            r70 / 4 * z * (z * z - 3 * x * x),
        ],
    }[l]


def gaunt(a, b, c):
    """The integral of three harmonics over the sphere, scaled to the norm sqrt(2c+1)."""
    cosines, weights = np.polynomial.legendre.leggauss(12)
    total = np.zeros((2 * a + 1, 2 * b + 1, 2 * c + 1))
    for t, w in zip(cosines, weights, strict=True):
        s = math.sqrt(1 - t * t)
        for phi in 2 * np.pi * np.arange(24) / 24:
            u = (s * math.sin(phi), t, s * math.cos(phi))
            total += w / 48 * np.einsum("i,j,k->ijk", *(np.asarray(harmonics(l, u)) for l in (a, b, c)))  # noqa: E741
    return math.sqrt(2 * c + 1) * total / np.linalg.norm(total)


def silu(x):
    return x / (1 + np.exp(-x))


def edges(positions, cell, pbc, cutoff):
    """(i, j, r_ij) of all pairs, by brute force over images."""
    reach = [3 if axis else 0 for axis in pbc]
    pairs = []
    for shift in itertools.product(*(range(-n, n + 1) for n in reach)):
        for i, j in itertools.product(range(len(positions)), repeat=2):
            d = positions[j] + np.asarray(shift) @ cell - positions[i]
            if (i != j or any(shift)) and np.linalg.norm(d) < cutoff:
                pairs.append((i, j, d))
    return pairs


def atomic_energies(head, weights, numbers, positions, cell, pbc):
    """e_i (eV)."""
    given, rc, p = iter([np.asarray(w, float) for w in weights]), head["cutoff"], head["radial_polynomial_p"]
    channels, species = multiplicities(head), [head["atomic_numbers"].index(z) for z in numbers]
    constants, n = next(given), len(numbers)
    pairs, inputs = edges(positions, cell, pbc, rc), [len(head["atomic_numbers"])]
    h = [np.eye(inputs[0])[species][:, :, None]]  # (atom, channel, m)
    for layer in range(head["n_layers"]):
        outputs = channels[:1] if layer == head["n_layers"] - 1 else channels
        gates, coupled = sum(outputs[1:]), paths(len(inputs), head["lmax"], len(outputs))
        radial = [next(given) for _ in range(head["radial_mlp_layers"] + 1)]
        first = [next(given) for _ in inputs]
        second = [next(given) for _ in outputs]
        skip = [next(given) for c in range(min(len(inputs), len(outputs)))]
        gamma = [next(given) for _ in outputs]
        m = [np.einsum("num,uw->nwm", x, w) / math.sqrt(len(w)) for x, w in zip(h, first, strict=True)]
        total = [np.zeros((n, len(second[c]), 2 * c + 1)) for c in range(len(outputs))]
        for i, j, d in pairs:
            r = np.linalg.norm(d)
            t = r / rc
            f = 1 - (p + 1) * (p + 2) / 2 * t**p + p * (p + 2) * t ** (p + 1) - p * (p + 1) / 2 * t ** (p + 2)
            x = 2 / rc * np.sin(np.arange(1, head["radial_basis_size"] + 1) * np.pi * t) / r * f
            for w in radial[:-1]:
                x = silu(x @ w)
            x, column, row = x @ radial[-1], 0, [0] * len(outputs)
            for a, b, c in coupled:
                coupling = np.einsum("ijk,j->ik", gaunt_table(a, b, c), harmonics(b, d / r))
                message = x[column : column + inputs[a], None] * (m[a][j] @ coupling)
                total[c][i, row[c] : row[c] + inputs[a]] += message
                column, row[c] = column + inputs[a], row[c] + inputs[a]
        z = [
            np.einsum("num,uw->nwm", x / math.sqrt(head["avg_n_neighbors"]), w) / math.sqrt(len(w))
            for x, w in zip(total, second, strict=True)
        ]
        for c, w in enumerate(skip):
            z[c] = z[c] + np.einsum("num,uw->nwm", h[c], w) / math.sqrt(len(w))
        q = sum(np.sum(x**2, axis=(1, 2)) / (2 * c + 1) ** 2 for c, x in enumerate(z)) / len(z)
        z = [g[:, None] * x / np.sqrt(q + 1e-12)[:, None, None] for g, x in zip(gamma, z, strict=True)]
        gate, start = silu(z[0][:, outputs[0] :]) / SILU, 0
        h = [silu(z[0][:, : outputs[0]]) / SILU]
        for c in range(1, len(outputs)):
            h.append(gate[:, start : start + outputs[c]] * z[c])
            start += outputs[c]
        assert start == gates
        inputs = outputs
    readout = next(given)
    energies = head["scale"] * (h[0][:, :, 0] @ readout)[:, 0] / math.sqrt(len(readout))
    return energies + head["shift"] + constants[species]


_TABLES: dict = {}


def gaunt_table(a, b, c):
    if (a, b, c) not in _TABLES:
        _TABLES[a, b, c] = gaunt(a, b, c)
    return _TABLES[a, b, c]
