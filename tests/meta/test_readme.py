"""The examples of the README run as they stand, one after the other, in a folder with the files that they name."""

import gzip
import re
from pathlib import Path

import ase.io
import jax
import numpy as np
import pytest

import lamjax
from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig
from lamjax.heads import EnergyHeadConfig

ROOT = Path(__file__).parents[2]
ASSETS = Path(lamjax.__file__).parent / "assets" / "demo"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """model.dp (a bundle: files are told apart by content), as small as can be, and relaxations.extxyz."""
    described = lamjax.load(ASSETS / "base.lamjax")[0].config
    small = DPA2Config(
        repinit=RepinitConfig(rcut=5.0, nsel=100, neuron=(4, 8), axis_neuron=2),
        repformer=RepformerConfig(rcut=4.0, nsel=60, nlayers=1, g1_dim=8, g2_dim=4, update_g1_has_attn=False),
    )
    config = lamjax.PotentialConfig(
        described.elements, small, ((described.head_names[0], EnergyHeadConfig(neuron=(8,))),)
    )
    potential = lamjax.build(config)
    lamjax.save(tmp_path / "model.dp", potential, jax.jit(potential.init)(jax.random.key(0)))
    with gzip.open(ASSETS / "si_defects_train.extxyz.gz", "rt") as file:
        frames = ase.io.read(file, ":", format="extxyz")
    ends = [a for a in frames if a.info["step"] in (0, a.info["n_steps"] - 1)]
    ase.io.write(tmp_path / "relaxations.extxyz", ends[:4])
    monkeypatch.chdir(tmp_path)
    return tmp_path


# the files and models of the examples are small: what does not converge is named
@pytest.mark.filterwarnings("ignore:Left out|.*not relaxed|.*did not converge")
def test_examples_of_the_readme_run(folder):
    assert len(BLOCKS) >= 5
    names: dict = {}
    for block in BLOCKS:
        exec(block.replace("Unrolled(60)", "Unrolled(2)"), names)  # the same program, sooner
    assert np.isfinite(float(names["prediction"].energy))
    assert len(names["many"]) == 8
    assert names["metrics"]["dq_mean"] > 0
    lamjax.load(folder / "tuned.lamjax")


def test_every_command_of_the_readme_exists():
    from_readme = set(re.findall(r"^\| `lamjax (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    source = (ROOT / "lamjax" / "cli" / "__init__.py").read_text()
    assert from_readme and all(re.search(rf"\b{name}\b", source) for name in from_readme)


def test_files_that_the_readme_links_to_are_there():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())
    assert links and [link for link in links if not (ROOT / link).exists()] == []
