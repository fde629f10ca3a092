"""Tests run with float64 available; a test that takes `dtype` runs in both precisions."""

import gc
import os
from pathlib import Path

# nearly all of the time goes into compiling programs that run once: a third of it without XLA's optimisations, and
# less in one part, since the workers fill the cores: to divide a program copies it.
# `XLA_FLAGS= pytest` runs as a user's script does; so do the slow tests in .ci/run
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1",
)

import jax
import numpy as np
import pytest
import structures

from lamjax.reports.console import console

jax.config.update("jax_enable_x64", True)
if (programs := os.environ.get("JAX_COMPILATION_CACHE_DIR")) and "PYTEST_XDIST_WORKER" in os.environ:
    # one for each worker and its child processes: JAX writes without a lock, and warns where it reads half a program
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(programs, os.environ["PYTEST_XDIST_WORKER"])
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
gc.set_threshold(50_000, 20, 100)  # tracing makes objects by the million, and a look at all of them frees next to none

# what takes seconds each: `pytest -m thorough` runs them, as .ci/run does; tests/meta/thorough.py writes the list
THOROUGH = frozenset(Path(__file__).with_name("thorough.txt").read_text().split())
TIMES = os.environ.get("LAMJAX_TEST_TIMES")  # a file that gets the processor time of every test

MAPPINGS = Path("/proc/self/maps")  # of memory; on Linux
MOST_MAPPINGS = 10_000


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    for item in items:
        if item.nodeid.split("[")[0] in THOROUGH and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.thorough)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    began = sum(os.times()[:4])  # of its child processes, too
    result = yield
    if TIMES:
        with open(TIMES, "a") as file:
            file.write(f"{sum(os.times()[:4]) - began:.2f} {item.nodeid}\n")
    return result


@pytest.fixture(scope="session", autouse=True)
def wide_terminal():
    """Commands print 200 columns, here and in child processes: lines that a test reads break in no terminal.

    A test of narrow terminals sets its own COLUMNS, which the console reads anew only where no width was noted.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        patch.setattr(console, "_width", None)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Compiled programs of earlier modules are forgotten when there are many.

    A program takes about ten mappings of memory, Linux grants a process 65,530, and XLA crashes where it gets none.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


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
