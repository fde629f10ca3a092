"""The linear solve of the implicit adjoint, against a dense Hessian."""

import ase
import bound_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import neighbors, pytree
from lamjax.relaxation import Hybrid, Implicit, RelaxConfig, implicit, surface
from lamjax.system import host_system


def test_the_solution_holds_no_translation_and_no_rotation():
    """For a right side that pushes and turns the whole molecule: that part of it has no answer."""
    potential = models.morse()
    params = models.params_of(potential)
    place = 2.5 * np.array([(0, 0, 0), (1, 0, 0), (0.5, 0.75**0.5, 0)]) + (3, -2, 1)  # its minimum
    system = host_system(ase.Atoms("Cu3", place))
    lists = neighbors.host_neighbors(system, potential.shells, (4,), 1)
    systems, lists = pytree.stack([system]), pytree.stack([lists])
    there = surface.over(potential, systems, None, None)
    z = there.start()
    inside = jnp.asarray(place - place.mean(axis=0))  # all bonds longer
    rigid = 5.0 + jnp.cross(jnp.array([0.1, -0.3, 0.7]), inside)

    def solved(atoms):
        rhs = jnp.zeros_like(z).at[0, :-3].set(atoms)
        rule = Implicit(tol=1e-10)
        return implicit.solve(implicit.hessian(there, params, z, lists), rhs, rule)

    x, report = jax.jit(solved)(inside + rigid)
    expected, _ = jax.jit(solved)(inside)
    assert not report.negative[0] and report.iterations[0] > 0 and report.residual[0] < 1e-9
    scale = np.abs(expected).max()
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-8 * scale)
    assert np.abs(np.asarray(x)[0, :-3].sum(axis=0)).max() < 1e-8 * scale
    energy = lambda y: potential.energy(params, system._replace(positions=y), pytree.take(lists, 0))  # noqa: E731
    hessian = np.asarray(jax.jit(jax.hessian(energy))(jnp.asarray(place))).reshape(9, 9)
    np.testing.assert_allclose(hessian @ np.asarray(x)[0, :-3].ravel(), inside.ravel(), rtol=0, atol=1e-6)


def test_what_has_no_answer_spoils_no_other():
    """Against the pseudo-inverse: a right side along null vectors of the matrix too; and one of negative curvature."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    spectra = np.stack([np.linspace(0.5, 30, 9), np.r_[0, 0, 0, np.linspace(0.5, 30, 6)], np.r_[-2.0, np.ones(8)]])
    matrices = (basis * spectra[:, None]) @ basis.T
    b = basis @ np.r_[np.full(3, 3.0), rng.normal(size=6)]
    rhs = jnp.asarray(np.tile(b, (3, 1)).reshape(3, 3, 3))

    def apply(v):
        return jnp.einsum("bij,bj->bi", matrices, v.reshape(3, 9)).reshape(v.shape)

    rule = Implicit(tol=1e-10, curvature=1e-9)
    x, report = jax.jit(lambda rhs: implicit.conjugate_residuals(apply, rhs, rule))(rhs)
    assert report.negative.tolist() == [False, True, True]
    for k in range(2):
        np.testing.assert_allclose(x[k].ravel(), np.linalg.pinv(matrices[k], rcond=1e-9) @ b, rtol=0, atol=1e-7)
    assert report.residual[1] == pytest.approx(np.linalg.norm(basis[:, :3].T @ b) / np.linalg.norm(b), rel=1e-9)
    assert np.isfinite(x).all() and report.residual[0] < 1e-10


@pytest.mark.parametrize("adjoint", [Implicit(), Hybrid(window=2)])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_second_derivatives_of_a_minimum_are_refused(adjoint, wrap):
    """Forward over reverse would go through, with a number that is not that of finite differences."""
    potential = models.morse()
    params = models.params_of(potential)
    system = lamjax.from_ase(ase.Atoms("Cu3", 2.5 * np.array([(0, 0, 0), (1, 0, 0), (0.5, 0.75**0.5, 0)])))
    lists, config = lamjax.allocate(potential, system), RelaxConfig(max_steps=5, adjoint=adjoint)
    energy = wrap(lambda q: lamjax.relax(potential, q, system, lists, config).energy)
    jax.eval_shape(jax.grad(energy), params)
    for twice in (jax.hessian, lambda f: jax.jacfwd(jax.grad(f))):
        with pytest.raises(TypeError, match="first derivatives of a minimum alone.*finite differences"):
            jax.eval_shape(twice(energy), params)
