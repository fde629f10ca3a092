"""Tests run with float64 available; a test that takes `dtype` runs in both precisions."""

import os

# nearly all of the time goes into compiling programs that run once: a third of it without XLA's optimisations.
# `XLA_FLAGS= pytest` runs as a user's script does; so do the slow tests in .ci/run
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true",
)

import jax
import numpy as np
import pytest
import structures

jax.config.update("jax_enable_x64", True)


@pytest.fixture(params=["float32", "float64"])
def dtype(request) -> np.dtype:
    """The test runs once in single and once in double precision."""
    return np.dtype(request.param)


@pytest.fixture(params=list(structures.ALL))
def atoms(request):
    """The test runs for every structure of `structures.ALL`."""
    return structures.ALL[request.param]()


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20240607)
