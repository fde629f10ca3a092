"""The folder in which the examples of README and documentation run: the files that they name, and a tiny model."""

import gzip
from pathlib import Path

import ase.data
import ase.io
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import lamjax
from lamjax import checkpoints
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig

ASSETS = Path(lamjax.__file__).parent / "assets" / "demo"


@pytest.fixture(scope="session")
def tiny():
    """A model as small as can be, soon compiled, that knows 86 elements: DPA-1 without attention."""
    small = DPA1Config(rcut=4.0, rcut_smth=1.0, sel=60, neuron=(2, 4), axis_neuron=2, tebd_dim=2)
    elements = tuple(ase.data.chemical_symbols[1:87])
    config = lamjax.PotentialConfig(elements, small, (("PBE", EnergyHeadConfig(neuron=(4,))),))
    potential = lamjax.build(config)
    return potential, jax.jit(potential.init)(jax.random.key(0))


@pytest.fixture(scope="session")
def frames():
    """(the first four labelled frames, first and last step of the first two relaxations) of the demo's training set."""
    labelled, ends = [], []
    with gzip.open(ASSETS / "si_defects_train.extxyz.gz", "rt") as file:
        for atoms in ase.io.iread(file, format="extxyz"):
            labelled = [*labelled, atoms][:4]
            ends += [atoms] if atoms.info["step"] in (0, atoms.info["n_steps"] - 1) else []
            if len(ends) == 4:
                return labelled, ends


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny, frames):
    """The model as the one called `small`, and as model.dp and model.ckpt.pt; labelled frames; relaxations.

    An example that sets where compiled programs are kept does so for its own run alone.
    """
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr(checkpoints, "SHIPPED", shipped)
    for path in (shipped / "small.lamjax", tmp_path / "model.dp", tmp_path / "model.ckpt.pt"):
        lamjax.save(path, *tiny)
    labelled, ends = frames
    ase.io.write(tmp_path / "relaxations.extxyz", ends)
    ase.io.write(tmp_path / "labelled.extxyz", labelled)
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_compilation_cache_dir
    yield tmp_path
    if jax.config.jax_compilation_cache_dir != before:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
