"""DPA-3: blocks of atoms, second derivatives, charge and spin, statistics, edits, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
import potentials
import pytest
import structures
from invoke import invoke

import lamjax
from lamjax import data, edit, nn, numerics, pytree
from lamjax.descriptors import DPA3Config, RepflowConfig
from lamjax.descriptors.dpa3 import repflow
from lamjax.frames import Frame
from lamjax.interop.deepmd import checkpoint, state_dict, torch_file, tree, write
from lamjax.interop.deepmd.inputs import convert
from lamjax.potential import CheckpointError, PotentialConfig
from lamjax.system import Labels, host_system
from lamjax.training.config import validate

FIXTURES = Path(__file__).parents[1] / "fixtures" / "dpa3"


def stored(name: str):
    return checkpoint.load(next((FIXTURES / name).glob("model.*")))


def with_repflow(case: potentials.Case, **changes):
    """The case's model with other options of the layers."""
    config = case.potential.config
    descriptor = replace(config.descriptor, repflow=replace(config.descriptor.repflow, **changes))
    return lamjax.build(replace(config, descriptor=descriptor))


def test_atoms_in_blocks_give_the_same_numbers(monkeypatch):
    """Eight atoms in blocks of three."""
    case = potentials.cases()["dpa3"]
    system, lists = potentials.prepare(case.potential, structures.triclinic())
    whole = potentials.compiled(case.potential)(case.params, system, lists)
    monkeypatch.setitem(repflow.BLOCK, "cpu", 3 * 24 * 24 * 4)
    blocks = jax.jit(lambda *given: lamjax.predict(case.potential, *given))(case.params, system, lists)
    for a, b in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * max(1, np.abs(a).max()))


def test_second_derivatives_are_those_of_finite_differences(rng):
    """The product of the Hessian with a vector against differences of forces, with every kind of term smooth."""
    case = potentials.cases()["dpa3"]
    system, lists = potentials.prepare(case.potential, structures.triclinic())
    forces = jax.jit(
        lambda x: jax.grad(lambda x: -case.potential.energy(case.params, system._replace(positions=x), lists))(x)
    )
    direction = np.where(system.numbers[:, None] > 0, rng.normal(size=system.positions.shape), 0)
    _, product = jax.jit(lambda x: jax.jvp(forces, (x,), (direction,)))(jnp.asarray(system.positions))
    h, weights = 1e-3, {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
    expected = sum(w * forces(system.positions + k * h * direction) for k, w in weights.items()) / h
    assert np.abs(product - expected).max() < 1e-8 * np.abs(expected).max()


def test_more_neighbours_than_memory_holds_are_told_before_they_are_computed(monkeypatch):
    """The number is below what XLA counts for the program, by less than a factor of four."""
    potential = with_repflow(potentials.cases()["dpa3"], nlayers=5, n_dim=8, e_dim=8, a_dim=8)
    params = potential.init(jax.random.key(0), np.float32)
    atoms = structures.triclinic()
    system = host_system(atoms * (4, 4, 4), np.float32)
    lists = lamjax.allocate(potential, system)
    monkeypatch.setitem(repflow.BLOCK, "cpu", 1 << 12)
    run = jax.jit(lambda *given: lamjax.predict(potential, *given)).lower(params, system, lists)
    used = run.compile().memory_analysis().temp_size_in_bytes
    n, (width, narrow) = system.n_atoms, lists.capacities
    least = n * repflow.numbers_kept(potential.config.descriptor.repflow, width, narrow) * 4
    assert least < used < 4 * least
    monkeypatch.setattr(numerics, "memory", lambda: least - 1)
    said = rf"forces of {n} atoms with up to {width} within 4 Å and {narrow} within 2.8 Å.*more than .* GB.*fewer atoms"
    with pytest.raises(ValueError, match=said):
        lamjax.predict(potential, params, system, lists)
    monkeypatch.setattr(numerics, "memory", lambda: least)
    jax.eval_shape(lambda: lamjax.predict(potential, params, system, lists))


def test_kinks_of_activations_are_named():
    assert nn.kinks("silu") is None and nn.kinks("tanh") is None
    assert nn.kinks("relu6") == "the first derivative jumps at 0 and 6"
    assert nn.kinks("silut:10.0") == nn.kinks("custom_silu:10") == "the second derivative jumps at 10"
    for name, at in (("silut:3", 3.0), ("custom_silu:2", 2.0)):
        act = nn.activation(name)
        slope, curvature = jax.grad(act), jax.grad(jax.grad(act))
        assert abs(act(at - 1e-9) - act(at + 1e-9)) < 1e-8 and abs(slope(at - 1e-9) - slope(at + 1e-9)) < 1e-8
        assert abs(curvature(at - 1e-9) - curvature(at + 1e-9)) > 1e-2


# --- charge and spin ----------------------------------------------------------------------------------------------


def charged() -> tuple:
    config, params = stored("r11_chgspin")
    descriptor = replace(config.descriptor, default_chg_spin=None)
    return lamjax.build(replace(config, descriptor=descriptor)), params


def test_charge_and_spin_are_read_from_ase_and_go_back():
    atoms = ase.Atoms("OH", positions=[(0, 0, 0), (0, 0, 1)])
    atoms.info["charge_spin"] = [-1, 1]
    system = lamjax.from_ase(atoms)
    assert system.charge_spin.tolist() == [-1, 1]
    assert lamjax.to_ase(system).info["charge_spin"].tolist() == [-1, 1]
    for wrong in ([0.5, 1], [1], [100, 1], [0, -1]):
        atoms.info["charge_spin"] = wrong
        with pytest.raises(ValueError, match=r"charge_spin is .*two whole numbers.*\(-100 to 99 e\).*\(0 to 99\)"):
            lamjax.from_ase(atoms)


def test_a_structure_without_charge_and_spin_is_named():
    potential, params = charged()
    system = lamjax.from_ase(ase.Atoms("OH", positions=[(0, 0, 0), (0, 0, 1)]))
    with pytest.raises(ValueError, match=r'has none.*atoms.info\["charge_spin"\].*default_chg_spin'):
        potential.energy(params, system, lamjax.allocate(potential, system))


def test_each_structure_of_a_packed_list_has_its_own_charge():
    """Two water molecules of different charge behind one another: the energies of each alone."""
    potential, params = charged()
    energies, frames = [], []
    for charge in (0, 2):
        atoms = ase.Atoms("OHH", positions=[(0, 0, 0), (0.76, 0.59, 0), (-0.76, 0.59, 0)])
        atoms.info["charge_spin"] = [charge, 1]
        system = host_system(atoms)
        energies.append(float(jax.jit(potential.energy)(params, system, lamjax.allocate(potential, system))))
        labels = Labels(np.zeros(()), np.zeros((3, 3)), np.zeros((3, 3)), np.ones(3))
        frames.append(Frame(system, labels, f"water.xyz frame {charge}", (), {}))
    packed = data.pack(frames, data.plan(frames, potential.shells, 1), np.float64)
    batch = next(iter(data.batches(packed, 2, epochs=1)))
    row = pytree.take(batch, 0) if batch.system.numbers.ndim == 2 else batch
    assert row.system.structure is not None and row.system.charge_spin[:2].tolist() == [[0, 1], [2, 1]]
    found = jax.jit(potential.energy)(params, row.system, row.neighbors)
    assert abs(energies[0] - energies[1]) > 1e-3
    np.testing.assert_allclose(found[:2], energies, rtol=1e-12)


# --- statistics, edits, training inputs ---------------------------------------------------------------------------


def test_statistics_are_deepmds_or_the_constant():
    """r14 took its deviations from its own frames; with fix_stat_std no frame is looked at."""
    config, params = stored("r14_stat_davg")
    potential = lamjax.build(config)
    with np.load(FIXTURES / "r14_stat_davg/reference.npz") as file:
        frames = []
        for name in map(str, file["frames"]):
            pbc = bool(np.all(file[f"{name}__pbc"]))
            cell = file[f"{name}__cell"] if pbc else None
            atoms = ase.Atoms(list(file[f"{name}__species"]), file[f"{name}__positions"], cell=cell, pbc=pbc)
            n = len(atoms)
            labels = Labels(np.zeros(()), np.zeros((n, 3)), np.zeros((3, 3)), np.zeros(3))
            frames.append(Frame(host_system(atoms), labels, name, (), {}))
    found = data.environment_statistics(potential, frames)["repflow"]["stddev"]
    np.testing.assert_allclose(found, params.descriptor["repflow"]["statistics"]["stddev"], rtol=1e-10)
    constant = with_repflow(potentials.cases()["dpa3"], fix_stat_std=0.7)
    fresh = constant.init(jax.random.key(0))
    after = data.set_environment(constant, fresh, ["not looked at"])
    assert np.all(after.descriptor["repflow"]["statistics"]["stddev"] == 0.7)


def test_elements_are_taken_away_and_added():
    case = potentials.cases()["dpa3"]
    atoms = ase.Atoms("OHH", positions=[(0, 0, 0), (0.76, 0.59, 0), (-0.76, 0.59, 0)])
    expected = potentials.evaluate(case, atoms).energy
    small, params = edit.restrict_elements(case.potential, case.params, ["H", "O"])
    large, more = edit.extend_elements(small, params, ["Cl", "Si"], like={"Cl": "O"}, key=jax.random.key(0))
    for potential, numbers in ((small, params), (large, more)):
        got = potentials.evaluate(potentials.Case(potential, numbers), atoms).energy
        np.testing.assert_allclose(got, expected, rtol=1e-12)
    atoms.symbols[0] = "Cl"
    np.testing.assert_allclose(potentials.evaluate(potentials.Case(large, more), atoms).energy, expected, rtol=1e-12)
    assert np.all(more.descriptor["repflow"]["statistics"]["stddev"][3] == 0.3)  # the constant of the config
    with pytest.raises(ValueError, match="dpa3 model has no radial net"):
        edit.tabulate(case.potential, case.params)


def test_a_training_input_becomes_a_config_of_the_same_model():
    expected, _ = checkpoint.load(FIXTURES / "multitask/mt_shared_fitting.pt")
    found = validate(convert(json.loads((FIXTURES / "multitask/mt_shared_fitting_input.json").read_text())).config)
    assert (found.model.elements, found.model.descriptor) == (expected.elements, expected.descriptor)
    assert dict(found.model.heads) == dict(expected.heads) and found.share_layers == "all"
    for name in ("r02_published_like", "r15_skipstat_tebd_square", "r11_chgspin"):
        model = json.loads((FIXTURES / name / "config.json").read_text())["model"]
        section = json.loads((FIXTURES / "multitask/mt_shared_fitting_input.json").read_text())
        single = {"training_data": {"systems": ["water"]}, "numb_steps": 2}
        whole = {"model": model, "learning_rate": section["learning_rate"], "training": single}
        assert validate(convert(whole).config).model == stored(name)[0]


# --- files --------------------------------------------------------------------------------------------------------

WRITTEN = ("r03_compress_linear_heads", "r05_noangle_incr", "r06_sequential_static", "r11_chgspin")


def same(a, b) -> bool:
    leaves = zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True)
    return a[0] == b[0] and all(np.array_equal(x, y) for x, y in leaves)


@pytest.mark.parametrize("name", WRITTEN)
def test_every_form_is_the_same_model(name, tmp_path):
    """The torch checkpoint is the native file, and what lamjax writes of it, as `.dp` and as `.yaml`, too."""
    config, params = checkpoint.load(FIXTURES / name / "model.pt")
    assert same((config, params), checkpoint.load(FIXTURES / name / "model.dp"))
    (tmp_path / "model.dp").write_bytes(write.dp_bytes(config, params, "Default"))
    (tmp_path / "model.yaml").write_bytes(write.yaml_bytes(config, params, "Default"))
    for path in tmp_path.iterdir():
        assert same((config, params), checkpoint.load(path))


def test_layers_of_the_first_version_have_their_vectors_among_the_options():
    whole = checkpoint.read_dp(FIXTURES / "r06_sequential_static/model.dp")
    expected = tree.from_tree(whole)
    for layer in whole["model"]["descriptor"]["repflow_variable"]["repflow_layers"]:
        layer |= {"@version": 1, **layer.pop("@variables")}
    del whole["model"]["descriptor"]["repflow_args"]["use_exp_switch"]  # added later: the class's default
    assert same(expected, tree.from_tree(whole))


def test_a_checkpoint_without_the_angle_block_is_named():
    read = torch_file.read(FIXTURES / "r06_sequential_static/model.pt")
    lost = [key for key in read["model"] if ".edge_angle_linear1." in key or ".angle_self_linear." in key]
    content = {"model": {key: value for key, value in read["model"].items() if key not in lost}}
    with pytest.raises(CheckpointError, match=r"missing: descriptor\.repflows\.layers\.0\.angle_self_linear"):
        state_dict.from_checkpoint(content)
    whole = checkpoint.read_dp(FIXTURES / "r06_sequential_static/model.dp")
    del whole["model"]["descriptor"]["repflow_variable"]["repflow_layers"][0]["angle_self_linear"]
    with pytest.raises(CheckpointError, match="missing descriptor/repflow/layers/0/angle_self_linear"):
        tree.from_tree(whole)


def test_show_names_what_counts():
    code, output, _ = invoke("show", FIXTURES / "r15_skipstat_tebd_square/model.pt", COLUMNS="200")
    said = " ".join(output.split())
    assert code == 0
    assert "dpa3" in said and "the standard deviation is 0.3" in said and "jumps at 0 and 6" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"a_rcut": 7.0}, "a_rcut is 7, e_rcut 6.*Raise e_rcut"),
        ({"a_sel": 200}, "a_sel is 200, e_sel 120"),
        ({"use_dynamic_sel": True}, "needs smooth_edge_update"),
        ({"use_dynamic_sel": True, "smooth_edge_update": True, "sel_reduce_factor": 0.0}, "sel_reduce_factor is 0"),
        ({"sequential_update": True, "update_angle": False}, "sequential_update needs update_angle"),
        ({"sequential_update": True, "update_style": "res_avg"}, "needs update_style: res_residual, got res_avg"),
        ({"a_compress_rate": 3}, "a_dim is 64: with a_compress_rate 3 it must be a multiple of 6"),
        ({"e_rcut_smth": 6.0}, "e_rcut_smth is 6: it must be at least 0 and below e_rcut 6"),
        ({"a_rcut_smth": 0.0, "use_exp_switch": True}, "a_rcut_smth is 0: it must be above 0"),
        ({"update_style": "res_max"}, "update_style: 'res_max' is not supported; supported: res_avg, res_incr"),
        ({"update_residual_init": "uniform"}, "update_residual_init: 'uniform' is not supported; supported: norm"),
        ({"a_sel": "auto:1.1"}, "a_sel 'auto:1.1': give the number"),
        ({"novelty": 1}, "novelty = 1"),
    ],
)
def test_options_that_are_wrong_or_not_known_are_refused_by_name(change, said):
    read = torch_file.read(FIXTURES / "r01_defaults/model.pt")
    extra = json.loads(json.dumps(read["model"]["_extra_state"]))
    repflow_options = extra["model_params"]["descriptor"]["repflow"]
    full = {"e_rcut": 6.0, "e_sel": 120, "e_rcut_smth": 5.0, "a_rcut": 4.0, "a_sel": 20, "a_rcut_smth": 3.5}
    repflow_options |= {**full, "a_dim": 64, **change}
    with pytest.raises(CheckpointError, match=said):
        state_dict.from_checkpoint({"model": dict(read["model"], _extra_state=extra)})


def test_a_config_of_plain_data_is_a_dpa3():
    """As a file of `lamjax train` has it."""
    text = '{"elements": ["O", "H"], "descriptor": {"type": "dpa3", "repflow": {"nlayers": 2, "n_dim": 8}}}'
    config = lamjax.potential.from_json(text)
    assert config == PotentialConfig(("O", "H"), DPA3Config(repflow=RepflowConfig(nlayers=2, n_dim=8)))
    with pytest.raises(ValueError, match="repflow.novelty"):
        lamjax.potential.from_json(text.replace('"nlayers"', '"novelty"'))
