"""Single steps of the minimisers, by hand."""

import jax.numpy as jnp
import numpy as np

from lamjax.relaxation import FireConfig, minimiser


def test_after_an_uphill_step_the_learned_mixing_begins_anew():
    """Not that of the config, from which jax-md's own step was made; and the time step is halved."""
    method = minimiser(FireConfig(alpha_start=0.1, dt_start=0.1, f_dec=0.5))
    numbers = {"dt_start": jnp.asarray(0.2), "alpha_start": jnp.asarray(0.375)}
    z, force = jnp.zeros((4, 3)), jnp.ones((4, 3))
    start = method.init(numbers, z, force)
    assert start.dt == 0.2 and start.alpha == 0.375
    downhill = method.step(numbers, start, z, force)
    assert downhill.n_pos == 1 and downhill.alpha == 0.375
    used = start.set(alpha=jnp.asarray(0.05), momentum=-3 * force, n_pos=jnp.asarray(7, jnp.int32))
    uphill = method.step(numbers, used, z, force)
    assert uphill.n_pos == 0 and uphill.alpha == 0.375
    np.testing.assert_allclose(uphill.dt, 0.1)
    np.testing.assert_array_equal(uphill.momentum, 0)
