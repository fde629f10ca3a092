"""Statistics of the data equal DeePMD-kit's numbers."""

import json
from dataclasses import replace

import ase.data
import jax
import jax.numpy as jnp
import label_frames as make
import numpy as np
import pytest
from ase.neighborlist import neighbor_list

from lamjax import data, to_ase
from lamjax.data.statistics import compositions
from lamjax.descriptors import DPA2Config, RepformerConfig, RepinitConfig, ThreeBodyConfig
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig, build
from lamjax.system import Labels, System

BLOCKS = {"repinit": "repinit", "three_body": "repinit_three_body", "repformer": "repformers"}


def potential_of(name: str, davg_zero: bool = False):
    """The potential of a stored config; only cutoffs and sel matter for the statistics."""
    model = json.loads((make.FIXTURES / f"stat_{name}_config.json").read_text())["model"]
    a, b = model["descriptor"]["repinit"], model["descriptor"]["repformer"]
    return build(
        PotentialConfig(
            tuple(model["type_map"]),
            DPA2Config(
                repinit=RepinitConfig(
                    rcut=a["rcut"],
                    rcut_smth=a["rcut_smth"],
                    nsel=a["nsel"],
                    neuron=(4, 8),
                    axis_neuron=4,
                    set_davg_zero=davg_zero,
                ),
                three_body=ThreeBodyConfig(
                    rcut=a["three_body_rcut"], rcut_smth=a["three_body_rcut_smth"], sel=a["three_body_sel"]
                ),
                repformer=RepformerConfig(
                    rcut=b["rcut"], rcut_smth=b["rcut_smth"], nsel=b["nsel"], nlayers=1, set_davg_zero=davg_zero
                ),
            ),
            (("Default", EnergyHeadConfig(neuron=(4, 4))),),
        )
    )


def start(potential):
    """Parameters that are all zero: statistics do not depend on them."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(potential.init, jax.random.key(0)))


def frames_of(name: str):
    return [f for folder in sorted((make.FIXTURES / "data" / name).iterdir()) for f in make.deepmd_frames(folder)]


@pytest.mark.parametrize("name", ["water", "oxide"])
def test_environment_statistics_equal_deepmd(name):
    reference = dict(np.load(make.FIXTURES / f"stat_{name}.npz"))
    fitted = data.environment_statistics(potential_of(name), frames_of(name))
    for block, stored in BLOCKS.items():
        np.testing.assert_allclose(fitted[block]["mean"], reference[f"{stored}__davg"][:, 0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(fitted[block]["stddev"], reference[f"{stored}__dstd"][:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["water", "oxide"])
def test_energy_bias_equals_deepmd_for_absent_elements_too(name):
    reference = dict(np.load(make.FIXTURES / f"stat_{name}.npz"))
    bias = data.energy_bias(potential_of(name), frames_of(name))
    np.testing.assert_allclose(bias.energies, reference["out_bias"].ravel(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.full(7, bias.residual), reference["out_std"].ravel(), rtol=1e-9)


@pytest.mark.parametrize("davg_zero", [True, False])
def test_set_statistics_puts_them_into_the_parameters(davg_zero):
    potential, frames = potential_of("oxide", davg_zero), frames_of("oxide")
    reference = dict(np.load(make.FIXTURES / "stat_oxide.npz"))
    params = start(potential)
    changed = data.set_statistics(potential, params, frames)
    assert jax.tree.structure(changed) == jax.tree.structure(params)
    for block, stored in BLOCKS.items():
        statistics = changed.descriptor[block]["statistics"]
        mean = 0 if davg_zero else reference[f"{stored}__davg"][:, 0]
        np.testing.assert_allclose(statistics["mean"] - mean, 0, atol=1e-12)
        np.testing.assert_allclose(statistics["stddev"], reference[f"{stored}__dstd"][:, 0], rtol=0, atol=1e-12)
    bias = changed.heads["Default"]["statistics"]["out_bias"]
    np.testing.assert_allclose(bias, reference["out_bias"].ravel(), rtol=1e-12, atol=1e-12)


def test_bias_change_adds_the_fit_of_label_minus_prediction():
    potential, frames = potential_of("oxide"), frames_of("oxide")
    params = data.set_bias(potential, start(potential), frames)
    old = params.heads["Default"]["statistics"]["out_bias"]
    counts = compositions(potential, frames)
    shift = np.array([0.3, -0.2, 0.0, 0.1, 0.5, -0.4, 0.2])
    labels = np.array([f.labels.energy for f in frames])
    changed = data.set_bias(potential, params, frames, predicted=labels - counts @ shift)
    result = changed.heads["Default"]["statistics"]["out_bias"] - old
    np.testing.assert_allclose(counts @ result, counts @ shift, atol=1e-9)  # compositions are collinear: one of many
    np.testing.assert_allclose(result, np.linalg.pinv(counts) @ counts @ shift, atol=1e-9)


def test_excluded_pairs_count_as_empty_slots():
    potential = potential_of("oxide")
    config = potential.config
    without = build(replace(config, pair_exclude_types=tuple((a, b) for a in range(7) for b in range(a, 7))))
    fitted = data.environment_statistics(without, frames_of("oxide")[:3])
    np.testing.assert_array_equal(fitted["repinit"]["mean"], 0)
    present = np.unique(np.concatenate([f.system.numbers for f in frames_of("oxide")[:3]]))
    assert np.sum(fitted["repinit"]["stddev"][:, 0] == 0.01) == len(present)  # the floor; 0.1 for absent elements


def environment_by_hand(frames, elements, rcut, rcut_smth, sel, excluded) -> dict[str, np.ndarray]:
    """Mean and deviation of s(r)/r and of s(r)/r x/r from ASE's pairs; slots that are empty or excluded are zero."""
    table = {ase.data.atomic_numbers[name]: k for k, name in enumerate(elements)}
    slots, radial, angular = np.zeros(len(elements)), [[] for _ in elements], [[] for _ in elements]
    for frame in frames:
        atoms = to_ase(frame.system)
        types = np.array([table[z] for z in atoms.numbers])
        i, j, r, d = neighbor_list("ijdD", atoms, rcut)
        u = np.clip((r - rcut_smth) / (rcut - rcut_smth), 0, 1)
        s = (1 - 10 * u**3 + 15 * u**4 - 6 * u**5) / r
        slots += sel * np.bincount(types, minlength=len(elements))
        for atom in range(len(atoms)):
            nearest = np.flatnonzero(i == atom)[np.argsort(r[i == atom], kind="stable")][:sel]
            for k in nearest:
                if not {(types[atom], types[j[k]]), (types[j[k]], types[atom])} & excluded:
                    radial[types[atom]].append(s[k])
                    angular[types[atom]] += list(s[k] * d[k] / r[k])
    n = np.maximum(slots, 1)
    mean = np.array([sum(x) for x in radial]) / n
    std = np.sqrt(np.array([np.sum(np.square(x)) for x in radial]) / n - mean**2)
    turned = np.array([np.sum(np.square(x)) / m - (np.sum(x) / m) ** 2 for x, m in zip(angular, 3 * n, strict=True)])
    return {
        "mean": mean,
        "radial": np.where(slots > 0, np.maximum(std, 0.01), 0.1),
        "angular": np.where(slots > 0, np.maximum(np.sqrt(turned), 0.01), 0.1),
    }


@pytest.mark.parametrize("turned", [False, True])
def test_an_excluded_pair_is_an_empty_slot_at_both_ends_and_nowhere_else(turned):
    potential, frames = potential_of("oxide"), frames_of("oxide")[:2]
    elements = potential.config.elements
    present = [k for k, e in enumerate(elements) if any(ase.data.atomic_numbers[e] in f.system.numbers for f in frames)]
    a, b = present[0], present[-1]
    assert a != b  # pairs of equal elements stay
    pair = (b, a) if turned else (a, b)
    fitted = data.environment_statistics(build(replace(potential.config, pair_exclude_types=(pair,))), frames)
    for name, block in (
        ("repinit", potential.config.descriptor.repinit),
        ("repformer", potential.config.descriptor.repformer),
    ):
        expected = environment_by_hand(frames, elements, block.rcut, block.rcut_smth, block.nsel, {pair})
        np.testing.assert_allclose(fitted[name]["mean"][:, 0], expected["mean"], atol=1e-10)
        np.testing.assert_allclose(fitted[name]["stddev"][:, 0], expected["radial"], atol=1e-10)
        np.testing.assert_allclose(fitted[name]["stddev"][:, 1], expected["angular"], atol=1e-10)
        np.testing.assert_array_equal(fitted[name]["stddev"][:, 2:], fitted[name]["stddev"][:, 1:2] * np.ones(2))


def test_frames_without_energy_cannot_give_a_bias():
    frames = [f._replace(labels=f.labels._replace(weights=np.zeros(3))) for f in frames_of("oxide")[:2]]
    with pytest.raises(ValueError, match="No frame carries an energy"):
        data.energy_bias(potential_of("oxide"), frames)


@pytest.mark.parametrize("predicted", [False, True])
@pytest.mark.parametrize("block", [None, 3])
def test_frames_without_energy_do_not_enter_the_fit(monkeypatch, predicted, block):
    """The energies of a set are those of its labelled part, whatever lies between; 0 eV would be far off."""
    if block is not None:
        monkeypatch.setattr("lamjax.data.statistics.EQUATIONS", block)
    potential, frames = potential_of("oxide"), frames_of("oxide")
    missing = [f._replace(labels=Labels(np.zeros(()), *f.labels[1:3], np.array([0.0, 1, 1]))) for f in frames]
    mixed = [frame for k in range(len(frames)) for frame in ((missing[k], frames[k]) if k % 2 else (frames[k],))]
    known = np.array([frame.labels.weights[0] > 0 for frame in mixed])
    assert 2 < np.sum(~known) < np.sum(known)
    guess = np.linspace(-3, 5, len(mixed)) if predicted else None
    fitted = data.energy_bias(potential, mixed, guess)
    expected = data.energy_bias(potential, frames, None if guess is None else guess[known])
    np.testing.assert_allclose(fitted.energies, expected.energies, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(fitted.residual, expected.residual, rtol=1e-9, atol=1e-9)
    counts = compositions(potential, frames)
    target = np.array([f.labels.energy for f in frames]) - (0 if guess is None else guess[known])
    np.testing.assert_allclose(counts @ fitted.energies, counts @ np.linalg.pinv(counts) @ target, atol=1e-6)


def test_parameters_are_scaled_as_in_deepmd():
    """The numbers are those of DeePMD-kit 3.2.0 (EnergyFittingNet.compute_input_stats) for the atoms that are real."""
    frames = data.read(make.FIXTURES.parent / "deepmd_data" / "padded")
    for frame in frames:
        frame.system.fparam[1] = 0.3
    head = EnergyHeadConfig(neuron=(4,), numb_fparam=2, numb_aparam=1)
    potential = build(replace(potential_of("oxide").config, heads=(("Default", head),)))
    statistics = data.set_parameters(potential, start(potential), frames).heads["Default"]["statistics"]
    np.testing.assert_allclose(statistics["fparam_avg"], [0.9028818464397226, 0.3], rtol=1e-12)
    np.testing.assert_allclose(statistics["fparam_inv_std"], [1.0941522652683355, 100.0], rtol=1e-12)
    np.testing.assert_allclose(statistics["aparam_avg"], [0.05812503342513384], rtol=1e-12)
    np.testing.assert_allclose(statistics["aparam_inv_std"], [1.9261476185248438], rtol=1e-12)
    bare = frames[1]._replace(system=frames[1].system._replace(fparam=None))
    with pytest.raises(ValueError, match="padded/set.000 frame 1: the head takes 2 numbers fparam, the frame has none"):
        data.set_parameters(potential, start(potential), [frames[0], bare])
    long = frames[1]._replace(system=frames[1].system._replace(fparam=np.ones(3)))
    with pytest.raises(ValueError, match="the head takes 2 numbers fparam, the frame has 3"):
        data.set_parameters(potential, start(potential), [frames[0], long])
    default = replace(head, default_fparam=(0.1, 0.2))
    other = build(replace(potential.config, heads=(("Default", default),)))
    result = data.set_parameters(other, start(other), [bare]).heads["Default"]["statistics"]["fparam_avg"]
    np.testing.assert_allclose(result, [0.1, 0.2])


def test_least_squares_of_many_frames_in_blocks(monkeypatch):
    potential = potential_of("oxide")
    rng = np.random.default_rng(2)
    many = []
    for k in range(60):
        numbers = rng.choice([ase.data.atomic_numbers[e] for e in potential.config.elements[:3]], 4)
        system = System(np.zeros((4, 3)), numbers.astype(np.int32), np.eye(3), np.ones(3, bool))
        labels = Labels(
            np.asarray(rng.normal()), np.zeros((4, 3)), np.zeros((3, 3)), np.array([k % 7 > 0, 0, 0], float)
        )
        many.append(data.Frame(system, labels, f"frame {k}", ("energy", "", ""), {}))
    whole = data.energy_bias(potential, many)
    monkeypatch.setattr("lamjax.data.statistics.EQUATIONS", 5)
    monkeypatch.setattr("lamjax.data.columns._BLOCK", 300)
    blocks = data.energy_bias(potential, data.Joined([many[:31], many[31:]]))
    np.testing.assert_allclose(blocks.energies, whole.energies, atol=1e-12)
    np.testing.assert_allclose(blocks.residual, whole.residual, rtol=1e-12)


def test_a_sample_is_spread_evenly_and_misses_no_element():
    frames = make.copper_frames(50)
    rare = frames[13].system.numbers.copy()
    rare[1] = 92
    frames[13] = frames[13]._replace(system=frames[13].system._replace(numbers=rare))
    assert data.sample(frames, 50) is frames
    chosen = data.sample(frames, 5)
    assert chosen.rows.tolist() == [0, 12, 13, 24, 37, 49]
    np.testing.assert_array_equal(data.sample(frames[14:], 3).rows, [0, 18, 35])


def test_an_element_adds_one_frame_to_a_sample_however_many_hold_it(monkeypatch):
    frames = make.copper_frames(50)
    for k, z in ((13, 92), (31, 92), (33, 17), (34, 92)):
        numbers = frames[k].system.numbers.copy()
        numbers[1] = z
        frames[k] = frames[k]._replace(system=frames[k].system._replace(numbers=numbers))
    for block in (1, 400, 1 << 20):  # numbers that are looked at together: one frame, a few, all
        monkeypatch.setattr("lamjax.data.columns._BLOCK", block)
        chosen = data.sample(data.Joined([frames[:20], frames[20:]]), 5)
        assert chosen.rows.tolist() == [0, 12, 13, 24, 33, 37, 49]
