"""The distillation loss: labels as ever, Hessian-vector products against differences, gradients of all of it."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import potentials
import pytest
import structures
import students

import lamjax
from lamjax import classical, committee, data, losses, training
from lamjax.losses import DistillationLossConfig, LabelLossConfig, distillation_loss, force_change, label_loss

MORSE = classical.morse(depth=0.4, width=1.3, distance=2.5, cutoff=4.5)
LABELS = LabelLossConfig(start_pref_e=0.5, limit_pref_e=0.5, start_pref_f=2.0, limit_pref_f=2.0, limit_pref_v=0.1)


def batch():
    """Three structures of two sizes in one list of atoms."""
    frames = []
    for n, seed in ((1, 0), (2, 1), (1, 2)):
        atoms = ase.build.bulk("Cu", cubic=True) * (n, 1, 1)
        atoms.rattle(0.1, seed=seed)
        frames.append(data.from_atoms(atoms))
    packed = data.pack(frames, data.plan(frames, MORSE.shells, 1))
    return next(data.batches(packed, 4, seed=None))


@pytest.fixture(scope="module")
def probed():
    """The batch with a teacher's answers."""
    return jax.jit(losses.probe, static_argnums=0)(MORSE, MORSE.init(), batch(), jax.random.key(0))


def evaluated(config, student, probed, lr_ratio=1.0):
    """Loss and metrics, in one program."""
    return jax.jit(distillation_loss(MORSE, config))(student, probed, lr_ratio)


@pytest.mark.parametrize("case", [students.case(), potentials.cases()["morse"]], ids=["dpa1", "morse"])
def test_change_of_forces_is_that_of_differences(case, rng):
    system, lists = potentials.prepare(case.potential, structures.triclinic())
    v = np.where(system.numbers[:, None] > 0, rng.normal(size=system.positions.shape), 0)
    predict = potentials.compiled(case.potential)
    h = 2e-5
    ends = [
        predict(case.params, system._replace(positions=system.positions + s * h * v), lists).forces for s in (1, -1)
    ]
    result = jax.jit(jax.tree_util.Partial(force_change, case.potential))(case.params, system, lists, v)
    np.testing.assert_allclose(result, (ends[0] - ends[1]) / (2 * h), atol=3e-6 * np.abs(result).max())
    assert np.abs(result).max() > 1e-3


def test_a_probed_batch_holds_the_answers_of_the_teacher(probed):
    value, metrics = evaluated(DistillationLossConfig(LABELS, 1.0, 1.0), MORSE.init(), probed)
    assert float(value) < 1e-20 and float(metrics["product_sq"]) < 1e-20
    assert (
        metrics["energy_n"] == 3 and metrics["forces_n"] == metrics["product_n"] == 3 * 16
    )  # the fourth place is empty


def test_products_are_the_mean_square_over_structures(probed):
    rows, params, change = probed.batch, MORSE.init(), jax.jit(force_change, static_argnums=0)
    student = jax.tree.map(lambda x: 1.05 * x, params)
    only = DistillationLossConfig(LabelLossConfig(start_pref_e=0, limit_pref_e=0, start_pref_f=0, limit_pref_f=0), 3, 7)
    value, _ = evaluated(only, student, probed, 0.25)  # p = 7 + (3 - 7)/4
    squares = []
    for k in range(3):
        here = np.asarray((rows.system.structure[0] == k) & (rows.system.numbers[0] > 0))
        system = rows.system._replace(
            positions=rows.system.positions[0][here], numbers=rows.system.numbers[0][here],
            cell=rows.system.cell[0, k], pbc=rows.system.pbc[0, k], structure=None,
        )  # fmt: skip
        lists = lamjax.allocate(MORSE, system)
        v = probed.directions[0][here]
        d = change(MORSE, student, system, lists, v) - change(MORSE, params, system, lists, v)
        squares.append(np.mean(np.square(d)))
    np.testing.assert_allclose(value, 6 * np.mean(squares), rtol=1e-9)


def test_gradient_is_that_of_differences(probed):
    loss = distillation_loss(MORSE, DistillationLossConfig(LABELS, 0.3, 0.3))
    student = jax.tree.map(lambda x: 1.05 * x, MORSE.init())
    run = jax.jit(jax.value_and_grad(lambda p: loss(p, probed)[0]))
    _, gradient = run(student)
    for name in student:
        ends = [run({**student, name: student[name] + s * 1e-5})[0] for s in (1, -1)]
        np.testing.assert_allclose(gradient[name], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_without_products_it_is_the_label_loss(probed):
    student = jax.tree.map(lambda x: 1.05 * x, MORSE.init())
    mine = evaluated(DistillationLossConfig(LABELS), student, probed.batch)
    theirs = jax.jit(label_loss(MORSE, LABELS))(student, probed.batch)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, mine, theirs))


def test_a_structure_without_a_direction_does_not_count(probed):
    student = jax.tree.map(lambda x: 1.05 * x, MORSE.init())
    only = DistillationLossConfig(LabelLossConfig(start_pref_e=0, limit_pref_e=0, start_pref_f=0, limit_pref_f=0), 1, 1)
    values = []
    for kept in ([0], [1], [0, 1]):
        here = np.isin(probed.batch.system.structure, kept)[..., None]
        some = probed._replace(directions=probed.directions * here, products=probed.products * here)
        values.append(float(evaluated(only, student, some)[0]))
    np.testing.assert_allclose(values[2], (values[0] + values[1]) / 2, rtol=1e-9)


def test_a_committee_learns_as_its_members_do_alone(probed):
    loss = label_loss(MORSE, LABELS)
    members = [jax.tree.map(lambda x, f=f: f * x, MORSE.init()) for f in (1.05, 0.9)]

    one = training.optimizer(training.OptimizerConfig("adam", max_norm=1e-3), 1e-2)  # the norm is that of a member

    def trained(loss, params, optimizer):
        for state, _ in training.fit(loss, training.init(params, optimizer), optimizer, [probed.batch] * 3):
            last = state.params
        return last

    together = trained(losses.committee_loss(loss), committee.stack_members(members), training.per_member(one))
    for k, member in enumerate(members):
        alone = trained(loss, member, one)
        for name in alone:
            np.testing.assert_allclose(together[name][k], alone[name], rtol=1e-10)
            assert abs(alone[name] - member[name]) > 1e-3
