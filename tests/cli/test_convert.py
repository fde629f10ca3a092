"""`lamjax convert` and `lamjax show` on models: formats, heads, elements, precision."""

from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from typer.testing import CliRunner

import lamjax
from lamjax import checkpoints, edit
from lamjax.cli import app
from lamjax.interop.deepmd import checkpoint
from lamjax.potential import build

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHARED = FIXTURES / "multitask/mt_shared_fitting_case.pt"


def run(*arguments) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def stored(path):
    read = checkpoints.read(path)
    return read.config, jax.tree.leaves(read.params)


def test_a_checkpoint_becomes_a_bundle_with_all_heads_bit_for_bit(tmp_path):
    output = run("convert", SHARED, tmp_path / "all.lamjax")
    assert "water, oxide, alloy" in output
    (config, leaves), (other, others) = stored(SHARED), stored(tmp_path / "all.lamjax")
    assert config == other
    assert all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))


def test_there_and_back_through_deepmds_format(tmp_path):
    run("convert", SHARED, tmp_path / "oxide.dp", "--heads", "oxide")
    run("convert", tmp_path / "oxide.dp", tmp_path / "oxide.lamjax")
    run("convert", tmp_path / "oxide.lamjax", tmp_path / "again.dp")
    assert checkpoint.kind(tmp_path / "again.dp") == "dp"
    (config, leaves), (other, others) = stored(tmp_path / "oxide.dp"), stored(tmp_path / "again.dp")
    assert config == other and all(map(np.array_equal, leaves, others))
    whole = checkpoints.read(SHARED).params
    wanted = jax.tree.leaves((whole.descriptor, whole.heads["oxide"]))
    assert all(map(np.array_equal, wanted, leaves))


def test_fewer_elements_are_smaller_and_give_the_same_energy(tmp_path):
    run("convert", SHARED, tmp_path / "water.dp", "--heads", "water", "--elements", "O,H")
    small, params = lamjax.load(tmp_path / "water.dp")
    whole, all_params = lamjax.load(SHARED, head="water")
    assert small.elements == ("O", "H")
    assert sum(map(np.size, jax.tree.leaves(params))) < sum(map(np.size, jax.tree.leaves(all_params)))
    system = lamjax.System(
        np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]),
        np.array([8, 1, 1]),
        np.zeros((3, 3)),
        np.zeros(3, bool),
    )
    energies = [p.energy(q, system, lamjax.allocate(p, system)) for p, q in ((small, params), (whole, all_params))]
    np.testing.assert_allclose(*energies, rtol=1e-13)


def test_a_model_between_two(tmp_path):
    """Of two heads of one checkpoint, as models of their own: every number lies between those of the two."""
    for head in ("water", "oxide"):
        potential, params = lamjax.load(SHARED, head)
        model = edit.rename_head(*edit.select_heads(potential, params, head), head, "one")
        lamjax.save(tmp_path / f"{head}.lamjax", *model)
    ends = tmp_path / "water.lamjax", tmp_path / "oxide.lamjax"
    run("convert", ends[0], tmp_path / "between.lamjax", "--toward", ends[1], "--share", 0.25)
    a, b, between = (checkpoints.read(path) for path in (*ends, tmp_path / "between.lamjax"))
    expected = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, a.params, b.params)
    chex.assert_trees_all_close(between.params, expected, rtol=1e-12, atol=1e-14)
    assert between.card["mixed"] == "0.75 of water.lamjax, 0.25 of oxide.lamjax"
    with pytest.raises(ValueError, match="know other elements"):
        lamjax.save(tmp_path / "few.lamjax", *edit.restrict_elements(*lamjax.load(ends[0]), ["O", "H"]))
        run("convert", ends[1], tmp_path / "no.lamjax", "--toward", tmp_path / "few.lamjax")
    run("convert", ends[1], tmp_path / "small.lamjax", "--toward", tmp_path / "few.lamjax", "--elements", "O,H")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([SHARED, "x.dp"], "holds one head. Choose it with --heads, one of water, oxide, alloy"),
        ([SHARED, "x.pb"], "must end in .lamjax"),
        ([SHARED, "x.dp", "--heads", "steel"], "steel.*water, oxide, alloy"),
        ([SHARED, "x.lamjax", "--elements", "H,Xe"], "Xe is not in the model's type map"),
        ([FIXTURES / "README.md", "x.lamjax"], "unknown kind of file"),
        (["nothing.pt", "x.lamjax"], "no such model file"),
    ],
)
def test_faults(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError), match=message):
        run("convert", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_show_says_what_a_checkpoint_holds():
    output = run("show", SHARED)
    for part in ("DeePMD-kit .pt", "water, oxide, alloy", "27,391", "float64", "case 3", "repformer.attn2_has_gate"):
        assert part in output
    alloy = next(line for line in output.splitlines() if "alloy" in line and "24-24-24" in line)
    assert alloy.split("│")[5].split() == ["Nb", "Mo", "Ta", "W"]


def test_a_card_is_shown_fact_by_fact(tmp_path):
    """Parts of a card were printed as Python writes them, with all numbers of 89 elements."""
    model = checkpoints.read(FIXTURES / "student/s01_strip/model.pt")
    errors = {"bulk": {"energy (meV/atom)": 75.6, "forces (meV/Å)": 265.0}}
    card = {"errors": errors, "energies": {str(z): -z / 3 for z in range(1, 90)}, "data": ["a", "b"]}
    lamjax.save(tmp_path / "m.lamjax", build(model.config), model.params, card)
    said = " ".join(run("show", tmp_path / "m.lamjax").split())
    for line in ("errors │ │", "bulk │ energy (meV/atom) 75.6, forces (meV/Å) 265 │", "data │ a, b │", "... (89) │"):
        assert line in said, said
    assert "{" not in said and "-10 " not in said


def test_show_of_a_student():
    output = run("show", FIXTURES / "student/s01_strip/model.pt")
    assert "dpa1" in output and "tebd_input_mode" in output and "5 (sel 76)" in output
