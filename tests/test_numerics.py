"""Values and derivatives at the places where the plain functions have none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lamjax import numerics


def test_safe_sqrt_and_norm_are_the_plain_ones_elsewhere(rng):
    x = rng.normal(size=(5, 3))
    np.testing.assert_allclose(numerics.safe_norm(jnp.asarray(x)), np.linalg.norm(x, axis=1), rtol=1e-15)
    np.testing.assert_allclose(numerics.safe_norm(jnp.asarray(x), axis=0), np.linalg.norm(x, axis=0), rtol=1e-15)
    assert numerics.safe_norm(jnp.asarray(x), keepdims=True).shape == (5, 1)
    np.testing.assert_allclose(
        jax.jacobian(numerics.safe_norm)(jnp.asarray(x[0])), x[0] / np.linalg.norm(x[0]), rtol=1e-14
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_of_the_norm_are_finite_at_zero(order):
    f = numerics.safe_norm
    for _ in range(order):
        f = jax.jacfwd(jax.checkpoint(f)) if order % 2 else jax.jacrev(f)
    assert not np.any(f(jnp.zeros(3)))


def test_safe_sqrt_of_what_is_not_positive(dtype):
    x = jnp.array([-1.0, 0.0, 4.0], dtype)
    value, slope = jax.jvp(numerics.safe_sqrt, (x,), (jnp.ones_like(x),))
    np.testing.assert_array_equal(value, [0, 0, 2])
    np.testing.assert_array_equal(slope, [0, 0, 0.25])
    assert value.dtype == dtype


def test_the_switch_goes_from_one_to_zero():
    r = jnp.array([0.0, 2.0, 3.0, 4.0, 7.0])
    np.testing.assert_allclose(numerics.switch(r, 2.0, 4.0), [1, 1, 0.5, 0, 0], atol=1e-15)


def test_the_switch_is_twice_differentiable():
    """First and second derivative vanish at both ends, from both sides, and are right between."""
    first = jax.grad(numerics.switch)
    second = jax.grad(first)
    for end in (2.0, 4.0):
        for shift in (-1e-7, 0.0, 1e-7):
            assert abs(first(end + shift, 2.0, 4.0)) < 1e-12
            assert abs(second(end + shift, 2.0, 4.0)) < 1e-5
    h = 1e-5
    expected = (numerics.switch(2.7 + h, 2.0, 4.0) - numerics.switch(2.7 - h, 2.0, 4.0)) / (2 * h)
    np.testing.assert_allclose(first(2.7, 2.0, 4.0), expected, rtol=1e-9)


def test_the_switch_never_rises(rng):
    r = np.sort(rng.uniform(0, 6, 500))
    assert np.all(np.diff(numerics.switch(jnp.asarray(r), 2.0, 4.0)) <= 1e-15)


def test_the_widest_float_follows_jax():
    assert numerics.widest_float() == np.float64
    with jax.enable_x64(False):
        assert numerics.widest_float() == np.float32


def test_blocks_of_rows_are_the_whole_in_less_memory(rng):
    """Values, gradients by rows and by what all rows share; the last block is not full."""
    x, y, shared = rng.normal(size=(23, 3)), {"y": rng.normal(size=(23, 5))}, rng.normal(size=(3, 5))

    def whole(shared, x, y):
        return jnp.tanh(x @ shared) * y["y"]

    def value(size, *given):
        shared, *rows = given
        result = numerics.in_blocks(lambda *block: whole(shared, *block), size, *rows)
        return jnp.sum(jnp.sin(result)), result

    expected, others = (
        jax.jit(jax.value_and_grad(lambda *given, size=size: value(size, *given), argnums=(0, 1, 2), has_aux=True))(
            shared, x, y
        )
        for size in (100, 4)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), others, expected)
    np.testing.assert_allclose(expected[0][1], np.tanh(x @ shared) * y["y"], rtol=1e-12)

    def memory(size):
        wide = lambda block, w: jnp.sum(jnp.tanh(block @ w), axis=1)  # noqa: E731
        loss = lambda w, x: jnp.sum(numerics.in_blocks(lambda b: wide(b, w), size, x) ** 2)  # noqa: E731
        run = jax.jit(jax.grad(loss)).lower(jnp.ones((4, 256)), jnp.ones((4096, 4))).compile()
        return run.memory_analysis().temp_size_in_bytes

    assert memory(64) < memory(4096) / 10
