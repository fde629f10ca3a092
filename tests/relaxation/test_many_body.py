"""Relaxing with a root of a sum over neighbours: no atom and no structure without neighbours spoils a derivative."""

import ase
import jax
import jax.numpy as jnp
import numpy as np
import potentials
import pytest

from lamjax import neighbors, pytree
from lamjax.relaxation import (
    GradientFlowConfig,
    Hybrid,
    Implicit,
    RelaxConfig,
    Unrolled,
    UntilConverged,
    relax,
    relax_structures,
)
from lamjax.system import host_system, pad

GUPTA = potentials.gupta()
TRIANGLE = [(0, 0, 0), (1.5, 0, 0), (0.7, 1.3, 0.1)]
STRUCTURES = {
    "cluster": TRIANGLE,
    "lone atom beside a pair": [(0, 0, 0), (1.5, 0.1, 0), (30, 0, 0)],
    "one atom": [(0.3, 0.2, 0.1)],
    "nobody sees anybody": [(0, 0, 0), (20, 0, 0), (0, 20, 0)],
    "stands still": [(0, 0, 0), (1.2455, 0, 0)],  # almost: it stops first
}


def batch(names=tuple(STRUCTURES), empty: bool = True):
    """Structures of one to three atoms in arrays for four, and one without atoms."""
    systems = [pad(host_system(ase.Atoms(f"Cu{len(x)}", x)), 4) for x in map(STRUCTURES.get, names)]
    systems += [jax.tree.map(np.zeros_like, systems[0])] * empty
    return pytree.stack(systems), pytree.stack([neighbors.host_neighbors(s, GUPTA.shells, (4,), 1) for s in systems])


def number(relaxed):
    """Something smooth of the ends that rigid motions do not change, of all structures and windows."""

    def lengths(system):
        d = system.positions[:, 1:] - system.positions[:, :1]
        return jnp.where(system.numbers[:, 1:] > 0, jnp.sum(d * d, axis=-1), 0)

    value = jnp.sum(jnp.sin(0.7 * lengths(relaxed.system))) + jnp.sum(relaxed.energy)
    return value if relaxed.window is None else value + jnp.sum(lengths(relaxed.window))


@pytest.mark.parametrize(
    "config",
    [
        RelaxConfig(fmax=0.3, adjoint=Unrolled(6)),
        RelaxConfig(fmax=0.3, adjoint=UntilConverged(6, checkpoints=3), minimiser=GradientFlowConfig(eta=0.03)),
        RelaxConfig(fmax=1e-11, max_steps=2000, adjoint=Hybrid(6, Implicit(tol=1e-10, curvature=1e-9))),
    ],
    ids=["unrolled", "until converged, flow", "hybrid"],
)
def test_gradient_is_that_of_finite_differences(config):
    systems, lists = batch()
    params = GUPTA.init()

    def value(params):
        relaxed = relax(GUPTA, params, systems, lists, config)
        return number(relaxed), relaxed

    run = jax.jit(jax.value_and_grad(value, has_aux=True))
    (_, relaxed), gradient = run(params)
    assert relaxed.finite.all() and (relaxed.n_steps == 0).sum() >= 3 and relaxed.n_steps.max() > 2
    along = dict(zip(params, (0.3, -2.0, 1.0, 0.5, 0.2), strict=True))

    def moved(t: float) -> float:
        return float(run({k: v + t * along[k] for k, v in params.items()})[0][0])

    h = 1e-5
    numeric = (8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))) / (12 * h)
    exact = sum(float(gradient[k]) * along[k] for k in params)
    assert abs(numeric) > 0.1 and exact == pytest.approx(numeric, rel=1e-6)


def test_structures_that_do_not_count_change_no_gradient():
    """Those without a cotangent, among them one that explodes: the gradient is that of the cluster alone."""
    config = RelaxConfig(fmax=0, adjoint=Unrolled(3))
    systems, lists = batch()
    broken = systems.positions.copy()
    broken[1, :2] = np.nan
    systems = systems._replace(positions=broken)
    params = GUPTA.init()

    def value(params, systems, lists):
        return number(jax.tree.map(lambda x: x[:1], relax(GUPTA, params, systems, lists, config)))

    got = jax.jit(jax.grad(value))(params, systems, lists)
    expected = jax.jit(jax.grad(value))(params, *batch(("cluster",), empty=False))
    for name in params:
        assert got[name] == pytest.approx(float(expected[name]), rel=1e-10)


def gupta(positions: np.ndarray) -> float:
    """The energy (eV) by loops."""
    p, energy = GUPTA.init(), 0.0
    for i, x in enumerate(positions):
        repulsion = density = 0.0
        for j, y in enumerate(positions):
            r = np.linalg.norm(y - x)
            if i == j or r > 4.0:
                continue
            u = max(0.0, (r - 2.8) / 1.2)
            w = 1 - 10 * u**3 + 15 * u**4 - 6 * u**5
            repulsion += w * np.exp(-p["p"] * (r / p["r0"] - 1))
            density += (w * np.exp(-p["q"] * (r / p["r0"] - 1))) ** 2
        energy += p["a"] * repulsion - p["c"] * np.sqrt(density)
    return float(energy)


def test_a_stream_relaxes_lone_atoms_beside_others():
    systems = [host_system(ase.Atoms(f"Cu{len(x)}", x)) for x in STRUCTURES.values()]
    result = relax_structures(GUPTA, GUPTA.init(), systems, RelaxConfig(fmax=1e-4), slots=5)
    for system, relaxed in zip(systems, result, strict=True):
        assert relaxed.converged and relaxed.finite and np.isfinite(relaxed.forces).all()
        assert relaxed.energy == pytest.approx(gupta(relaxed.system.positions), abs=1e-10)
        assert relaxed.energy <= gupta(system.positions)
    assert [int(r.n_steps) for r in result[2:4]] == [0, 0] and result[0].n_steps > 3
