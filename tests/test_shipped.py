"""Models that come with the package: opened by name, in Python and by every command."""

import jax
import numpy as np
import pytest
from ase.build import bulk
from typer.testing import CliRunner

import lamjax
from lamjax import Calculator, checkpoints
from lamjax.cli import app


@pytest.fixture(scope="module")
def small():
    return lamjax.load("small")


def test_a_name_opens_the_file_of_the_package(small):
    potential, params = lamjax.load(checkpoints.SHIPPED / "small.lamjax")
    assert potential == small[0]
    jax.tree.map(np.testing.assert_array_equal, params, small[1])


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    other, params = small[0], jax.tree.map(lambda x: x + 1, small[1])
    lamjax.save("small", other, params)
    assert checkpoints.locate("small") == checkpoints.Path("small")
    for ours, theirs in zip(jax.tree.leaves(lamjax.load("small")[1]), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_of_that_name_does_not_hide_it(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small").mkdir()
    assert lamjax.load("small")[0] == small[0]


@pytest.mark.parametrize(("name", "hint"), [("smal", "Did you mean small?"), ("x.lamjax", "come with lamjax: small")])
def test_an_unknown_name_tells_the_known_ones(name, hint):
    with pytest.raises(FileNotFoundError, match=hint.replace("?", r"\?")):
        lamjax.load(name)


def test_it_knows_the_elements_and_its_card_says_what_it_is(small):
    stored = checkpoints.read("small")
    assert len(small[0].elements) == 89 and {"H", "O", "Fe", "Pu"} <= set(small[0].elements)
    assert small[0].head == stored.default_head == stored.card[checkpoints.CARD_HEAD]
    assert set(stored.card["heads"]) == set(stored.config.head_names)
    assert stored.card["licence"] and stored.card["data licences"] and stored.card["not good for"]
    assert (checkpoints.SHIPPED / "small.lamjax").stat().st_size < 8e6


def test_another_head_is_chosen_by_name():
    assert lamjax.load("small", "pbe")[0].head == "pbe"
    with pytest.raises(ValueError, match="chgnet"):
        lamjax.load("small", "nothing")


def test_crystals_it_must_know_have_their_minimum_near_the_true_volume():
    """Signs and units end to end: too small a cell is under pressure, too large a one under tension."""
    for atoms in (bulk("MgO", "rocksalt", a=4.25), bulk("Cu"), bulk("Si")):
        traces = []
        for scale in (0.94, 1.06):
            strained = atoms.copy()
            strained.set_cell(scale * atoms.cell, scale_atoms=True)
            strained.calc = Calculator("small")
            traces.append(strained.get_stress(voigt=False).trace())
        assert traces[0] < 0 < traces[1], atoms.symbols


def test_the_chosen_head_of_several_is_the_default_of_its_file(tmp_path, small):
    potential, params = small
    for head, expected in (("pbe", "pbe"), (None, None)):
        lamjax.save(tmp_path / "m.lamjax", lamjax.build(potential.config, head), params)
        assert lamjax.load(tmp_path / "m.lamjax")[0].head == expected
    lamjax.save(tmp_path / "m.lamjax", potential, params, {checkpoints.CARD_HEAD: "gfn2xtb"})
    assert lamjax.load(tmp_path / "m.lamjax")[0].head == "gfn2xtb"
    assert lamjax.load(tmp_path / "m.lamjax", "pbe")[0].head == "pbe"


@pytest.mark.parametrize(
    "words",
    [
        ("show", "small"),
        ("relax", "small", "si.extxyz", "--max-steps", "2"),
        ("eval", "small", "si.extxyz", "--output", "said.npz"),
        ("label", "si.extxyz", "--labeller", "small", "--out", "labelled.h5"),
        ("convert", "small", "si.dp", "--heads", "chgnet", "--elements", "Si"),
    ],
)
def test_commands_take_the_name(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    atoms = bulk("Si")
    atoms.rattle(0.05, seed=1)
    atoms.write("si.extxyz")
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
