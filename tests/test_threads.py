"""Threads compute with the settings of the one that began them."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest

from lamjax import threads


@pytest.mark.parametrize("x64", [True, False])
def test_settings_go_along(x64):
    def told(settings):
        with settings():
            precision, device = jax.config.jax_default_matmul_precision, jax.config.jax_default_device
            return jnp.zeros((), float).dtype, precision, device

    device = jax.devices()[0]
    with jax.enable_x64(x64), jax.default_matmul_precision("highest"), jax.default_device(device):
        settings = threads.same_settings()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(told, settings).result() == (jnp.dtype("float64" if x64 else "float32"), "highest", device)


def test_what_is_compiled_is_found_again_in_a_thread():
    traced = []
    function = jax.jit(lambda x: traced.append(0) or x + 1)
    settings = threads.same_settings()

    def call():
        with settings():
            return function(jnp.zeros(3))

    call()
    with ThreadPoolExecutor(2) as pool:
        [pool.submit(call).result() for _ in range(4)]
    assert function(jnp.zeros(3)).shape == (3,) and len(traced) == 1


def test_there_is_a_core():
    assert threads.usable_cores() >= 1
