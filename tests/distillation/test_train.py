"""First members: what is drawn differs, what the data say does not."""

import ase.build
import chex
import jax
import numpy as np
import potentials
import pytest
import students
from ase.calculators.emt import EMT

import lamjax
from lamjax import edit
from lamjax.data import from_atoms
from lamjax.distillation import StudentConfig
from lamjax.distillation.label import labelled
from lamjax.distillation.train import Trainer, first_members, open_student, unstack


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A stored model with two heads, of which none is chosen."""
    case = students.case()
    potential, params = edit.add_head(case.potential, case.params, "other", "Default")
    path = tmp_path_factory.mktemp("base") / "base.lamjax"
    lamjax.save(path, lamjax.build(potential.config), params)
    return path


def frames():
    collected = []
    for seed in range(3):
        atoms = ase.build.bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        collected.append(from_atoms(labelled(atoms, energy=-3.0 * len(atoms), forces=atoms.get_forces())))
    return collected


def test_members_of_a_stored_model_have_heads_of_their_own(base):
    config = StudentConfig(base=str(base), head="other", precision="float64")
    potential = open_student(config)
    assert potential.config.head_names == ("other",)
    one, other = unstack(first_members(config, potential, 2, frames(), seed=0))
    stored = lamjax.load(base, "other")[1]
    for member in (one, other):
        jax.tree.map(np.testing.assert_array_equal, member.descriptor, stored.descriptor)
        copper = potentials.ELEMENTS.index("Cu")
        np.testing.assert_allclose(member.heads["other"]["statistics"]["out_bias"][copper], -3.0, rtol=1e-6)
    layers = [member.heads["other"]["layers"][0]["w"] for member in (one, other)]
    assert not np.array_equal(*layers) and not np.array_equal(layers[0], stored.heads["other"]["layers"][0]["w"])


def test_a_head_must_be_chosen(base):
    with pytest.raises(ValueError, match="choose one of Default, other"):
        open_student(StudentConfig(base=str(base)))


def test_a_table_cannot_learn(tmp_path):
    case = students.case()
    lamjax.save(tmp_path / "table.lamjax", *edit.tabulate(case.potential, case.params))
    with pytest.raises(ValueError, match="tabulated model cannot learn"):
        open_student(StudentConfig(base=str(tmp_path / "table.lamjax")))


def test_a_round_ends_with_the_running_mean(base, tmp_path):
    """After one step the mean is between the first members and those after the step."""
    ends = {}
    for decay in (None, 0.75):
        config = StudentConfig(base=str(base), head="other", steps=1, precision="float64", ema_decay=decay)
        potential = open_student(config)
        first = first_members(config, potential, 2, frames(), seed=0)
        training = Trainer(config, potential, 0).train(first, frames(), tmp_path / str(decay))
        while True:
            try:
                next(training)
            except StopIteration as end:
                ends[decay] = end.value
                break
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, first, ends[None])
    chex.assert_trees_all_close(ends[0.75], expected, rtol=1e-6)
    head = first.heads["other"]["layers"][0]["w"]
    assert not np.array_equal(ends[None].heads["other"]["layers"][0]["w"], head)


def test_a_wrong_running_mean_is_refused():
    with pytest.raises(ValueError, match="ema_decay must be below 1, got 1.0"):
        StudentConfig(base="any.lamjax", ema_decay=1.0)
