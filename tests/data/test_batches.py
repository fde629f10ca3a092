"""Plans and batches: every frame fits, every epoch shows each frame once, no shape outside the plan."""

import jax
import label_frames as make
import numpy as np
import pytest
from ase.data import chemical_symbols

from lamjax import PotentialConfig, allocate, build, data, neighbors, predict, pytree
from lamjax.descriptors import DPA1Config
from lamjax.evaluation.errors import predictions
from lamjax.heads import EnergyHeadConfig
from lamjax.neighbors import Shell

SHELLS = (Shell(4.0), Shell(3.0, 8))


@pytest.fixture(scope="module")
def frames():
    return make.copper_frames(11)


def test_a_plan_holds_every_frame_and_says_its_waste(frames):
    for limit in (1, 2, 6):
        plan = data.plan(frames, SHELLS, limit)
        assert plan.n_programs <= limit and sum(plan.n_frames) == len(frames) and 0 <= plan.waste < 1
        packed = data.pack(frames, plan)
        assert sum(len(b.frame) for b in packed.buckets) == len(frames)
        assert not any(b.neighbors.overflow.any() for b in data.batches(packed, epochs=1))
    for size in (1, "auto"):
        wastes = [data.plan(frames, SHELLS, limit, batch_size=size).waste for limit in (1, 6)]
        assert wastes[0] > wastes[1] if size == 1 else wastes[0] >= wastes[1]


def test_a_frame_outside_the_plan_is_named(frames):
    plan = data.plan([f for f in frames if f.system.n_atoms == 4], SHELLS, 2)
    with pytest.raises(ValueError, match="copper frame 1: .* fits none of the planned shapes.*validation included"):
        data.pack(frames, plan)


@pytest.mark.parametrize("size", [3, "auto:16"])
def test_rows_hold_each_structure_with_its_own_neighbors_and_labels(frames, size):
    """Every distance of a row is one of the structure's own, found apart by brute force."""
    seen = []
    for batch in data.batches(data.pack(frames, data.plan(frames, SHELLS, 1), np.float64), size, epochs=1):
        system, result = pytree.take((batch.system, batch.neighbors), 0)
        d = np.asarray(neighbors.displacements(system, result))
        assert (system.structure[1:] >= system.structure[:-1]).all()
        for slot, k in enumerate(batch.frame[0]):
            mine = np.flatnonzero((system.structure == slot) & (system.numbers > 0))
            if k < 0:
                assert len(mine) == 0 and not batch.labels.weights[0, slot].any() and not system.cell[slot].any()
                continue
            seen.append(int(k))
            frame = frames[k]
            np.testing.assert_array_equal(system.positions[mine], frame.system.positions)
            np.testing.assert_array_equal(system.cell[slot], frame.system.cell)
            np.testing.assert_array_equal(batch.labels.forces[0, mine], frame.labels.forces)
            assert batch.labels.energy[0, slot] == frame.labels.energy
            assert np.isin(result.indices[mine], mine).all()
            alone = neighbors.allocate(frame.system, SHELLS[:1])
            expected = np.sort(np.linalg.norm(neighbors.displacements(frame.system, alone), axis=-1)[alone.mask])
            inside = np.linalg.norm(d[mine], axis=-1)[result.mask[mine]]
            np.testing.assert_allclose(np.sort(inside), expected, rtol=1e-12)
        empty = np.flatnonzero(system.numbers == 0)
        assert not result.mask[empty].any() and (result.indices[empty] == empty[:, None]).all()
        assert not batch.labels.forces[0, empty].any()
    assert sorted(seen) == list(range(len(frames)))


@pytest.mark.parametrize("mode", ["concat", "strip"])
def test_rows_of_several_structures_have_the_predictions_of_each(mode):
    """One structure at a time beside rows: first atoms of other elements (they fill empty slots), fparam, aparam."""
    rng, frames = np.random.default_rng(0), make.reference_frames()
    for k, frame in enumerate(frames):
        parameters = {"fparam": np.array([0.3 * k]), "aparam": rng.normal(size=(frame.system.n_atoms, 1))}
        frames[k] = frame._replace(system=frame.system._replace(**parameters))
    elements = tuple(sorted({chemical_symbols[z] for frame in frames for z in frame.system.numbers}))
    assert len({frame.system.numbers[0] for frame in frames}) > 1
    descriptor = DPA1Config(rcut=4.0, sel=60, neuron=(2, 4), axis_neuron=2, tebd_input_mode=mode, set_davg_zero=False)
    head = EnergyHeadConfig(neuron=(4,), numb_fparam=1, numb_aparam=1)
    potential = build(PotentialConfig(elements, descriptor, (("Default", head),)))
    params = data.set_environment(potential, potential.init(jax.random.key(0)), frames)
    packed = data.pack(frames, data.plan(frames, potential.shells, 2), np.float64)
    for size in (1, 3, "auto:40"):
        predicted = predictions(potential, params, packed, size)
        for frame, one in zip(frames, predicted, strict=True):
            alone = predict(potential, params, frame.system, allocate(potential, frame.system))
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), one, alone)


def test_every_epoch_shows_every_frame_once(frames):
    packed = data.pack(frames, data.plan(frames, SHELLS, 2))
    for size in (1, 3, "auto:12"):
        n = data.n_batches(packed, size)
        seen = list(data.batches(packed, size, seed=5, epochs=2))
        assert len(seen) == 2 * n
        for epoch in (seen[:n], seen[n:]):
            shown = np.concatenate([b.frame.ravel() for b in epoch])
            assert sorted(shown[shown >= 0]) == list(range(len(frames)))
    for size in (3, "auto:12"):
        orders = [[order(b) for b in data.batches(packed, size, seed=s, epochs=1)] for s in (1, 1, 2)]
        assert orders[0] == orders[1] != orders[2]


def test_any_point_of_the_order_can_be_resumed(frames):
    packed = data.pack(frames, data.plan(frames, SHELLS, 2))
    for size in (3, "auto:8"):
        whole = [order(b) for b in data.batches(packed, size, seed=7, epochs=3)]
        for start in (1, 4, 5, 9):
            assert [order(b) for b in data.batches(packed, size, seed=7, epochs=3, start=start)] == whole[start:]


def order(batch) -> tuple:
    return tuple(batch.frame.ravel().tolist())


@pytest.mark.parametrize("size", [4, "auto:12"])
def test_no_batch_has_a_shape_of_its_own(frames, size):
    packed = data.pack(frames, data.plan(frames, SHELLS, 2, batch_size=size))
    seen = list(data.batches(packed, size, seed=0, epochs=2))
    assert len({tuple(x.shape for x in jax.tree.leaves(b)) for b in seen}) == len(packed.buckets)
    assert len({jax.tree.structure(b) for b in seen}) == 1
    assert any((b.frame < 0).any() for b in seen)  # short ones are filled up


@pytest.mark.parametrize("size", [5, "auto:24"])
@pytest.mark.parametrize("multiple", [2, 4])
def test_rows_for_devices_hold_the_frames_of_one_row(frames, size, multiple):
    packed = data.pack(frames, data.plan(frames, SHELLS, 1))
    whole = list(data.batches(packed, size, seed=3, epochs=2))
    spread = list(data.batches(packed, size, seed=3, epochs=2, multiple=multiple))
    shares = [data.batches(packed, size, seed=3, epochs=2, multiple=multiple, part=(k, 2)) for k in range(2)]
    for one, many, *halves in zip(whole, spread, *shares, strict=True):
        assert sorted(k for k in order(one) if k >= 0) == sorted(k for k in order(many) if k >= 0)
        assert many.frame.shape[0] == multiple and many.system.n_atoms < one.system.n_atoms
        assert np.concatenate([half.frame for half in halves]).tolist() == many.frame.tolist()
    assert len({b.system.numbers.shape for b in spread}) == 1


def test_precision_of_a_batch(frames):
    batch = next(data.batches(data.pack(frames, data.plan(frames, SHELLS), np.float32), 2))
    assert batch.system.positions.dtype == batch.labels.forces.dtype == np.float32
    assert batch.labels.energy.dtype == np.float64


def test_batch_sizes_by_atoms_and_wrong_ones(frames):
    for sizes, n_atoms, most in (((4,), 32, 8), ((8,), 32, 4), ((4, 8), 35, 8)):  # ceil(32 / n_atoms) of one size
        some = [f for f in frames if f.system.n_atoms in sizes]
        batch = next(data.batches(data.pack(some, data.plan(some, SHELLS, 1)), "auto"))
        assert batch.system.n_atoms == n_atoms and batch.frame.shape == (1, most)
    packed = data.pack(frames, data.plan(frames, SHELLS, 2))
    for wrong in ("many", "auto:0", 0):
        with pytest.raises(ValueError, match="batch_size must be"):
            next(data.batches(packed, wrong))
