"""Heads and elements of a model change; what the model says of the rest does not."""

import functools
from dataclasses import replace
from pathlib import Path

import ase
import ase.data
import chex
import jax
import jax.numpy as jnp
import numpy as np
import potentials
import pytest
import structures

import lamjax
from lamjax import classical, edit, neighbors
from lamjax import potential as models
from lamjax.descriptors import DPA1Config, RepformerConfig, RepinitConfig
from lamjax.interop.deepmd import checkpoint
from lamjax.potential import CheckpointError
from lamjax.system import host_system, pad

FIXTURES = Path(__file__).parent / "fixtures" / "option_matrix"
FOUR = ("O", "H", "Cu", "Si")
KEY = jax.random.key(3)


def tiny(elements=FOUR, tebd_dim: int = 3, bias: bool = True, exclude: bool = False, case: int = 0):
    """A model of one small layer with two heads, no parameter of which is zero; statistics with a mean."""
    base = potentials.default_config()
    repinit = RepinitConfig(
        rcut=4.0, rcut_smth=1.0, nsel=48, neuron=(2, 4), axis_neuron=2, tebd_dim=tebd_dim, set_davg_zero=False
    )
    repformer = RepformerConfig(
        rcut=3.4, rcut_smth=1.5, nsel=32, nlayers=1, g1_dim=6, g2_dim=4, axis_neuron=2, attn1_hidden=3, attn1_nhead=2,
        update_g2_has_attn=False,
    )  # fmt: skip
    descriptor = replace(base.descriptor, repinit=repinit, repformer=repformer, use_tebd_bias=bias)
    head = replace(base.heads[0][1], dim_case_embd=case)
    config = replace(base, elements=tuple(elements), descriptor=descriptor, heads=(("A", head), ("B", head)))
    if exclude:
        config = replace(
            config,
            descriptor=replace(descriptor, exclude_types=((2, 0), (1, 1))),
            heads=(("A", replace(head, exclude_types=(1,))), ("B", replace(head, exclude_types=(0, 2)))),
            pair_exclude_types=((0, 1), (3, 2)),
        )
    return lamjax.build(config, "A"), random_params(config)


def random_params(config, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lamjax.build(config).init, jax.random.key(0))

    def leaf(path, x):
        values = rng.normal(size=x.shape) / max(x.shape[:-1], default=4) ** 0.5
        name = getattr(path[-1], "key", None)
        if name == "stddev":
            values = 0.3 + abs(values)
        return jnp.asarray(values * [1, 0, 0, 0] if name == "mean" else values, x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def compiled(potential):
    return jax.jit(potential.atomic_energies)


def energies(potential, params, atoms):
    """Atomic energies in the one shape that all these tests share."""
    system = pad(host_system(atoms), structures.N_ATOMS)
    lists = neighbors.host_neighbors(system, potential.shells, (48, 32)[: len(potential.shells)])
    assert not lists.overflow and not lists.truncated
    return compiled(potential)(params, system, lists._replace(offsets=np.zeros((0, 3), np.int32)))[: len(atoms)]


def assert_same(one, other, tolerance: float = 1e-13):
    assert np.all(np.isfinite(one)) and np.any(one)
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(1.0, np.abs(other).max()))


def assert_whole(potential, params, like=None):
    """The parameters fit the config, in the precision that they had."""
    models.check_structure(potential.config, params)
    if like is not None:
        assert {x.dtype for x in jax.tree.leaves(params)} == {x.dtype for x in jax.tree.leaves(like)}


# Elements ------------------------------------------------------------------------------------------------------------


def fixture_prediction(potential, params, stored, frame):
    numbers = np.array([ase.data.atomic_numbers[str(s)] for s in stored[f"{frame}__species"]], np.int32)
    pbc = np.full(3, bool(np.all(stored[f"{frame}__pbc"])))
    cell = stored[f"{frame}__cell"] if pbc.all() else np.zeros((3, 3))
    system = lamjax.System(stored[f"{frame}__positions"], numbers, cell, pbc)
    return jax.jit(functools.partial(lamjax.predict, potential))(params, system, lamjax.allocate(potential, system))


@pytest.mark.parametrize(
    ("name", "frame", "elements"),
    [
        ("m01_defaults", "molecule", ("H", "La", "C", "Sb", "O")),  # tebd_dim is 5: the residual appears
        ("m03_everything_on", "water", ("H", "O")),
        ("m11_exclude_protect", "triclinic", ("Sb", "O", "La", "Cr")),  # O-Cr does not see itself
    ],
)
def test_restricted_models_give_the_numbers_of_deepmd(name, frame, elements):
    config, params = checkpoint.load(FIXTURES / name / "model.dp")
    potential, small = edit.restrict_elements(lamjax.build(config), params, elements)
    assert potential.elements == elements
    assert_whole(potential, small, like=params)
    assert small.heads["Default"]["statistics"]["out_bias"].shape == (len(elements),)
    assert small.descriptor["repinit"]["statistics"]["mean"].shape == (len(elements), 4)
    with np.load(FIXTURES / name / "reference.npz") as stored:
        result = fixture_prediction(potential, small, stored, frame)
        for part, key in (("energy", "energy"), ("forces", "forces"), ("virial", "virial")):
            assert_same(getattr(result, part), stored[f"{frame}__{key}"], 1e-12)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("n_before", "tebd_dim", "after"),
    [
        (4, 4, ("Cu", "O", "H")),  # I goes
        (4, 4, ("Cu", "O", "H", "Si")),  # I moves with the elements
        (3, 6, ("Cu", "O", "H")),  # [I, I] moves
        (4, 6, ("H", "Cu", "O")),  # [I, I] comes
        (3, 4, ("O", "H", "Cu", "Si")),  # I comes with the fourth
        (4, 4, ("O", "H", "Cu", "Si", "Ge")),  # I goes with the fifth
        (3, 3, ("O", "H", "Cu", "Si", "Ge", "Au")),  # from I to nothing
        (2, 4, ("O", "H", "Cu", "Si")),  # from [I, I] to I
    ],
)
def test_the_residual_of_the_type_embedding_is_made_up_for(n_before, tebd_dim, after, bias):
    """T = X W (+ b), plus I or [I, I] where its width is the number of types or twice that."""
    potential, params = tiny(FOUR[:n_before], tebd_dim, bias)
    if len(after) > n_before:
        changed, new = edit.extend_elements(potential, params, after[n_before:], key=KEY)
    else:
        changed, new = edit.restrict_elements(potential, params, after)
    assert changed.elements == after and changed.head == "A"
    assert_whole(changed, new)
    before = table(params)
    for row, element in zip(table(new), after, strict=True):
        if element in potential.elements:
            np.testing.assert_allclose(row, before[potential.elements.index(element)], rtol=0, atol=4e-16)
        else:
            assert np.all((row > -1e-15) & (row < 1))


def table(params):
    w, b = params.descriptor["type_embedding"]["w"], params.descriptor["type_embedding"].get("b", 0)
    n, dim = w.shape
    residual = {n: np.eye(n), 2 * n: np.hstack([np.eye(n), np.eye(n)])}
    return np.asarray(w + b + residual.get(dim, 0))


def test_energies_survive_a_residual_that_comes_and_goes():
    atoms = structures.triclinic()
    potential, params = tiny(FOUR, 4)
    expected = energies(potential, params, atoms)
    fewer = edit.restrict_elements(potential, params, ["Cu", "O", "H"])
    assert_same(energies(*fewer, atoms), expected)
    more = edit.extend_elements(*fewer, ["Ge", "Au"], key=KEY)
    assert_same(energies(*more, atoms), expected)


def dpa1(base):
    return DPA1Config(
        rcut=4.0, rcut_smth=1.0, sel=48, neuron=(2, 4), axis_neuron=2, tebd_dim=4, set_davg_zero=False,
        exclude_types=base.exclude_types,
    )  # fmt: skip


@pytest.mark.parametrize("electronic", [False, True])
@pytest.mark.parametrize("descriptor", [dpa1, lambda base: base], ids=["dpa1", "dpa2"])
def test_every_descriptor_and_embedding_of_elements(descriptor, electronic):
    """With electronic configurations the rows of the embedding belong to orbitals: they stay as they are."""
    config = tiny(exclude=True)[0].config
    config = replace(config, descriptor=replace(descriptor(config.descriptor), use_econf_tebd=electronic))
    potential, params = lamjax.build(config, "A"), random_params(config)
    expected = energies(potential, params, structures.triclinic())
    fewer = edit.restrict_elements(potential, params, ["Cu", "O", "H"])
    assert_same(energies(*fewer, structures.triclinic()), expected)
    more = edit.extend_elements(*fewer, ["Ge"], key=None if electronic else KEY)
    assert_same(energies(*more, structures.triclinic()), expected)
    assert_whole(*edit.add_head(*more, "C", key=KEY))
    if electronic:
        before, after = (p.descriptor["type_embedding"]["w"] for p in (params, more[1]))
        assert before.shape[0] == 118 and np.array_equal(before, after)


def test_exclusions_move_with_their_elements():
    potential, params = tiny(exclude=True)
    small, numbers = edit.restrict_elements(potential, params, ["Cu", "O", "H"])
    assert small.config.pair_exclude_types == ((1, 2),)  # O-H; Si-Cu has gone
    assert small.config.descriptor.exclude_types == ((0, 1), (2, 2))  # Cu-O, H-H
    assert [c.exclude_types for _, c in small.config.heads] == [(2,), (0, 1)]
    for head in "AB":
        atoms = structures.triclinic()
        expected = energies(lamjax.potential.select(potential, head), params, atoms)
        assert_same(energies(lamjax.potential.select(small, head), numbers, atoms), expected)


def test_an_element_like_another_behaves_as_that_one():
    potential, params = tiny(exclude=True)
    more, numbers = edit.extend_elements(potential, params, ["Au", "Ni"], like={"Au": "Cu", "Ni": "O"})
    assert_whole(more, numbers)
    atoms = structures.triclinic()  # Cu Cu O H O
    other = atoms.copy()
    other.symbols[[1, 4]] = ["Au", "Ni"]
    assert_same(energies(more, numbers, other), energies(potential, params, atoms))


def test_an_unseen_element_begins_as_in_deepmd():
    potential, params = tiny()
    more, numbers = edit.extend_elements(potential, params, ["Ge", "Au"], like={"Au": "Cu"}, key=KEY)
    for name, head in numbers.heads.items():
        assert head["statistics"]["out_bias"][4] == 0 and head["statistics"]["bias_atom_e"][4] == 0, name
        assert head["statistics"]["out_std"][4] == 1
        assert head["statistics"]["out_bias"][5] == params.heads[name]["statistics"]["out_bias"][2] != 0
    for block in ("repinit", "repformer"):
        statistics = numbers.descriptor[block]["statistics"]
        assert np.all(statistics["mean"][4] == 0) and np.all(statistics["stddev"][4] == 0.1)
        assert np.all(statistics["stddev"][5] == params.descriptor[block]["statistics"]["stddev"][2])
    again = edit.restrict_elements(more, numbers, FOUR)
    assert again[0] is potential
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), again[1], params))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda *m: edit.restrict_elements(*m, ["O", "Au"]), r"Au is not in the model's type map \[O, H, Cu, Si\]"),
        (lambda *m: edit.restrict_elements(*m, []), "needs an element"),
        (lambda *m: edit.restrict_elements(*m, ["O", "O"]), "distinct chemical symbols"),
        (lambda *m: edit.restrict_elements(*m, "Cu"), r"write \['Cu'\]"),
        (lambda *m: edit.extend_elements(*m, ["H"], key=KEY), "H is already in the type map"),
        (lambda *m: edit.extend_elements(*m, ["Quartz"], key=KEY), "distinct chemical symbols"),
        (lambda *m: edit.extend_elements(*m, ["Ge"]), "give a key, or like"),
        (lambda *m: edit.extend_elements(*m, ["Ge"], like={"Ge": "C"}), "No element C to copy"),
        (lambda *m: edit.extend_elements(*m, ["Ge"], like={"Sn": "Si"}), r"like names Sn.*\[Ge\]"),
    ],
)
def test_wrong_elements_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        change(*tiny())


# Heads ---------------------------------------------------------------------------------------------------------------


def test_a_copied_head_says_the_same_and_the_chosen_one_stays():
    potential, params = tiny()
    more, numbers = edit.add_head(potential, params, "C", "B")
    assert more.config.head_names == ("A", "B", "C") and more.head == "A" and sorted(params.heads) == ["A", "B"]
    assert_whole(more, numbers)
    atoms = structures.water_box()
    of = {h: energies(models.select(more, h), numbers, atoms) for h in "ABC"}
    assert np.all(of["B"] == of["C"]) and np.any(of["A"] != of["B"])


def test_the_mean_of_heads_is_the_mean_of_every_leaf():
    potential, params = tiny(case=2)
    _, numbers = edit.add_head(potential, params, "mean", ["A", "B"])
    a, b, mean = (numbers.heads[name] for name in ("A", "B", "mean"))
    jax.tree.map(lambda x, y, z: np.testing.assert_allclose(z, (x + y) / 2, rtol=1e-15), a, b, mean)
    assert np.any(mean["statistics"]["case_embd"] != 0)


def test_a_random_head_has_no_bias_and_a_config_of_its_own():
    potential, params = tiny(case=2)
    more, numbers = edit.add_head(potential, params, "C", key=KEY)
    assert more.config.heads[2][1] == potential.config.heads[0][1]
    assert_whole(more, numbers)
    statistics = numbers.heads["C"]["statistics"]
    assert not np.any(statistics["out_bias"]) and not np.any(statistics["case_embd"])
    assert np.any(numbers.heads["C"]["layers"][0]["w"] != params.heads["A"]["layers"][0]["w"])
    wide = replace(potential.config.heads[0][1], neuron=(5, 10))
    more, numbers = edit.add_head(more, numbers, "D", key=KEY, config=wide)
    assert_whole(more, numbers)
    with pytest.raises(ValueError, match=r"'A' and 'D' have no mean.*neuron: \(6, 6\) and \(5, 10\)"):
        edit.add_head(more, numbers, "E", ["A", "D"])


def test_heads_are_removed_selected_and_renamed():
    potential, params = tiny()
    three = edit.add_head(potential, params, "C", "A")
    kept, numbers = edit.select_heads(*three, ["C", "A"])
    assert kept.config.head_names == ("C", "A") and kept.head == "A" and sorted(numbers.heads) == ["A", "C"]
    assert edit.remove_heads(*three, "A")[0].head is None  # the chosen one has gone, two are left
    last, numbers = edit.remove_heads(*three, ["A", "C"])
    assert last.head == "B" and last.config.head_names == ("B",)
    assert_whole(last, numbers)
    renamed, numbers = edit.rename_head(*three, "A", "Z")
    assert renamed.config.head_names == ("Z", "B", "C") and renamed.head == "Z"
    assert numbers.heads["Z"] is params.heads["A"] and "A" not in numbers.heads
    assert edit.rename_head(*three, "B", "Z")[0].head == "A"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda *m: edit.add_head(*m, "A", "B"), "'A' exists already; the model has: A, B"),
        (lambda *m: edit.add_head(*m, "", "B"), "needs a name"),
        (lambda *m: edit.add_head(*m, "C", "X"), "'X' is unknown; available: A, B"),
        (lambda *m: edit.add_head(*m, "C", ["A", "X"]), "'X' is unknown; available: A, B"),
        (lambda *m: edit.add_head(*m, "C", []), "No head was named; available: A, B"),
        (lambda *m: edit.add_head(*m, "C"), "needs a key.*copy one of: A, B"),
        (lambda *m: edit.add_head(*m, "C", "A", config=m[0].config.heads[0][1]), "leave out config, or source"),
        (lambda *m: edit.select_heads(*m, []), "No head was named"),
        (lambda *m: edit.select_heads(*m, "X"), "'X' is unknown; available: A, B"),
        (lambda *m: edit.remove_heads(*m, ["B", "A"]), "needs a head: B, A are all"),
        (lambda *m: edit.remove_heads(*m, ["X"]), "'X' is unknown; available: A, B"),
        (lambda *m: edit.rename_head(*m, "X", "Y"), "'X' is unknown; available: A, B"),
        (lambda *m: edit.rename_head(*m, "A", "B"), "'B' exists already"),
    ],
)
def test_wrong_heads_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        change(*tiny())


def test_only_built_models_are_edited():
    lj = classical.lennard_jones()
    with pytest.raises(ValueError, match="PairConfig has no heads and elements"):
        edit.add_head(lj, lj.init(), "A")


def test_between_two_models_lies_a_line():
    """Both ends are the models themselves, and half of a quarter is an eighth."""
    potential, params = tiny()
    other = random_params(potential.config, seed=1)
    ends = [edit.interpolate(potential, params, other, share) for share in (0.0, 1.0)]
    assert all(end[0] is potential for end in ends)
    chex.assert_trees_all_equal(ends[0][1], params)
    chex.assert_trees_all_close(ends[1][1], other, rtol=1e-14, atol=1e-15)
    quarter = edit.interpolate(potential, params, other, 0.25)[1]
    eighth = edit.interpolate(potential, params, other, 0.125)[1]
    chex.assert_trees_all_close(edit.interpolate(potential, params, quarter, 0.5)[1], eighth, rtol=1e-12)
    assert_whole(potential, eighth)
    single = jax.tree.map(lambda x: np.asarray(x, np.float32), params)
    between = edit.interpolate(potential, single, jax.tree.map(np.asarray, other), 0.125)[1]
    assert all(isinstance(x, np.ndarray) and x.dtype == np.float32 for x in jax.tree.leaves(between))
    with pytest.raises(CheckpointError, match="missing heads/B/"):
        edit.interpolate(potential, params, edit.remove_heads(potential, params, "B")[1], 0.5)


# Both ----------------------------------------------------------------------------------------------------------------


def every_change(potential, params):
    potential, params = edit.add_head(potential, params, "C", ["A", "B"])
    potential, params = edit.add_head(potential, params, "D", key=KEY)
    potential, params = edit.rename_head(*edit.remove_heads(potential, params, "B"), "D", "E")
    potential, params = edit.extend_elements(potential, params, ["Ge", "Au"], like={"Au": "Cu"}, key=KEY)
    return edit.restrict_elements(potential, params, ["H", "Au", "Ge", "O"])


@pytest.mark.parametrize("as_array", [jnp.asarray, np.asarray])
def test_precision_and_kind_of_arrays_stay(as_array):
    potential, params = tiny(tebd_dim=4)
    params = jax.tree.map(as_array, models.cast_params(params, np.float32))
    changed, numbers = every_change(potential, params)
    assert_whole(changed, numbers, like=params)
    assert numbers.heads["C"]["statistics"]["out_bias"].dtype == np.float64
    kinds = {type(x) for x in jax.tree.leaves((numbers.descriptor, numbers.heads["C"]))}
    assert kinds == {type(x) for x in jax.tree.leaves(params)}


def test_changes_work_inside_jit():
    potential, params = tiny(tebd_dim=4)
    inside = jax.jit(lambda p: every_change(potential, p)[1])(params)
    chex.assert_trees_all_close(inside, every_change(potential, params)[1], rtol=1e-12)


def test_a_changed_model_survives_a_bundle(tmp_path):
    changed, numbers = every_change(*tiny(exclude=False))
    lamjax.save(tmp_path / "changed.lamjax", changed, numbers)
    loaded, same = lamjax.load(tmp_path / "changed.lamjax", head="C")
    assert loaded is models.select(changed, "C")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), same, numbers))
    gold = ase.Atoms("AuGeHO", positions=np.diag([0.0, 2.0, 2.2, 2.4])[:, 1:])
    assert np.all(np.isfinite(energies(loaded, same, gold)))
