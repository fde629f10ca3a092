"""DeePMD-kit's files in and out: the same model from every form, trees equal to DeePMD-kit's own, faults named."""

import json
import shutil
import zipfile
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

import lamjax
from lamjax.interop.deepmd import checkpoint, state_dict, torch_file, tree, write
from lamjax.potential import CheckpointError, cast_params

FIXTURES = Path(__file__).parents[1] / "fixtures"
MATRIX = FIXTURES / "option_matrix"
TREES = [
    *(MATRIX / name / "model.dp" for name in ("m01_defaults", "m02_preset_like", "m03_everything_on")),
    *(MATRIX / name / "model.dp" for name in ("m11_exclude_protect", "m17_fparam_aparam", "m20_conv_only")),
    FIXTURES / "student/s01_strip/model.dp",
    FIXTURES / "multitask/single_water.dp",
    FIXTURES / "multitask/mt_separate_fitting_alloy.dp",
]


def same(a, b) -> bool:
    """Equal configs and bit-equal parameters."""
    (config, params), (other, others) = a, b
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True)
    return config == other and all(np.array_equal(x, y) for x, y in leaves)


def differences(theirs, ours, path="") -> list[str]:
    """Every place where two trees differ: keys, values, shapes and types of arrays."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        one_sided = [f"{path}/{key}" for key in theirs.keys() ^ ours.keys()]
        common = theirs.keys() & ours.keys()
        return one_sided + [d for key in common for d in differences(theirs[key], ours[key], f"{path}/{key}")]
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return [d for k, (x, y) in enumerate(zip(theirs, ours, strict=True)) for d in differences(x, y, f"{path}[{k}]")]
    if isinstance(theirs, np.ndarray) and isinstance(ours, np.ndarray):
        return [] if theirs.dtype == ours.dtype and np.array_equal(theirs, ours) else [path]
    return [] if type(theirs) is type(ours) and theirs == ours else [path]


@pytest.mark.parametrize("folder", ["m03_everything_on", "m17_fparam_aparam"])
def test_torch_checkpoint_is_the_native_file(folder):
    assert same(checkpoint.load(MATRIX / folder / "model.pt"), checkpoint.load(MATRIX / folder / "model.dp"))


def test_student_checkpoint_is_the_native_file():
    folder = FIXTURES / "student/s01_strip"
    assert same(checkpoint.load(folder / "model.pt"), checkpoint.load(folder / "model.dp"))


def test_yaml_is_the_native_file():
    folder = MATRIX / "m20_conv_only"
    assert same(checkpoint.load(folder / "model.yaml"), checkpoint.load(folder / "model.dp"))


def test_all_heads_are_kept_and_each_is_that_of_its_native_file():
    config, params = checkpoint.load(FIXTURES / "multitask/mt_separate_fitting.pt")
    assert config.head_names == ("water", "oxide", "alloy")
    alone, alone_params = checkpoint.load(FIXTURES / "multitask/mt_separate_fitting_alloy.dp")
    assert alone.descriptor == config.descriptor and alone.heads[0][1] == dict(config.heads)["alloy"]
    mine = (params.descriptor, params.heads["alloy"])
    assert all(
        map(np.array_equal, jax.tree.leaves(mine), jax.tree.leaves((*alone_params[:1], alone_params.heads["Default"])))
    )


def test_load_takes_a_head_and_lists_them():
    path = FIXTURES / "multitask/mt_shared_fitting_case.pt"
    potential, params = lamjax.load(path, head="oxide")
    assert potential.head == "oxide" and set(params.heads) == {"water", "oxide", "alloy"}
    assert [int(np.argmax(params.heads[h]["statistics"]["case_embd"])) for h in sorted(params.heads)] == [0, 1, 2]
    assert lamjax.load(path)[0].head is None
    with pytest.raises(ValueError, match="'steel' is unknown; available: water, oxide, alloy"):
        lamjax.load(path, head="steel")


@pytest.mark.parametrize("path", TREES, ids=lambda p: p.parent.name if p.stem == "model" else p.stem)
def test_written_tree_is_deepmds_own(path):
    """What lamjax writes is, key by key and number by number, what DeePMD-kit wrote, but for what says nothing."""
    theirs = checkpoint.read_dp(path)["model"]
    ours = write.to_tree(*tree.from_tree({"model": theirs}), "Default")["model"]
    silent = ("/atom_ener", "/protection")  # [] or None; DeePMD-kit's own copy leaves env_protection out and ignores it
    assert [d for d in differences(theirs, ours) if not d.endswith(silent)] == []


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_written_file_is_read_back(tmp_path, dtype):
    config, params = checkpoint.load(FIXTURES / "multitask/mt_shared_fitting_case.pt")
    params = cast_params(params, np.dtype(dtype))
    path = tmp_path / "oxide.dp"
    path.write_bytes(write.dp_bytes(config, params, "oxide"))
    again, restored = checkpoint.load(path)
    assert again.heads[0][1] == dict(config.heads)["oxide"]
    wanted = lamjax.Params(params.descriptor, {"Default": params.heads["oxide"]})
    assert same((again, wanted), (again, restored))


def test_what_deepmd_cannot_read_is_not_written():
    config, params = checkpoint.load(MATRIX / "m25_order3b/model.pt")
    with pytest.raises(CheckpointError, match="cannot read it"):
        write.to_tree(config, params, "Default")
    with pytest.raises(CheckpointError, match="no head 'x'; available: Default"):
        write.to_tree(config, params, "x")


# --- faults ---------------------------------------------------------------------------------------------------------


def content(name: str = "option_matrix/m03_everything_on/model.pt") -> dict:
    """A checkpoint's content that may be changed."""
    read = torch_file.read(FIXTURES / name)
    return {"model": dict(read["model"], _extra_state=json.loads(json.dumps(read["model"]["_extra_state"])))}


A = "model.Default.atomic_model."


def test_missing_unused_and_misshapen_tensors_are_listed():
    c = content()
    lost = f"{A}descriptor.repformers.layers.1.linear1.bias"
    del c["model"][lost]
    c["model"][f"{A}descriptor.extra.matrix"] = np.ones((2, 3))
    c["model"][f"{A}fitting_net.filter_layers.networks.0.layers.3.matrix"] = np.ones((5, 1))
    with pytest.raises(CheckpointError) as error:
        state_dict.from_checkpoint(c)
    text = str(error.value)
    assert "missing: descriptor.repformers.layers.1.linear1.bias (12,)" in text
    assert "unused: descriptor.extra.matrix (2, 3)" in text
    assert "misshapen: fitting_net.filter_layers.networks.0.layers.3.matrix has (5, 1), expected (24, 1)" in text


def test_tensors_of_no_branch_are_an_error():
    c = content()
    c["model"]["model.Other.atomic_model.out_bias"] = np.ones((1, 7, 1))
    with pytest.raises(CheckpointError, match=r"belong to no branch of Default: model\.Other"):
        state_dict.from_checkpoint(c)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["descriptor"].update(type="se_e2_a"), "'se_e2_a'; supported"),
        (lambda m: m["descriptor"].update(type="dpa4"), "'dpa4'; supported"),
        (lambda m: m["descriptor"].update(type="dpa3"), "has no options `repflow`|repinit = "),
        (lambda m: m["descriptor"].update(type="dpa1", attn_layer=2), "attn_layer 2"),
        (lambda m: m["fitting_net"].update(type="dipole"), "'dipole'"),
        (lambda m: m["fitting_net"].update(use_aparam_as_mask=True), "use_aparam_as_mask = True"),
        (lambda m: m["fitting_net"].update(atom_ener=[None, -1.0]), "atom_ener"),
        (lambda m: m["descriptor"]["repformer"].update(novelty=3), "novelty = 3"),
        (lambda m: m.update(type="linear_ener"), "'linear_ener'"),
        (lambda m: m.update(use_srtab="zbl.txt"), "use_srtab"),
        (lambda m: m.update(spin={"use_spin": [True]}), "spin"),
    ],
)
def test_options_that_are_not_supported_are_refused_by_name(change, message):
    c = content()
    change(c["model"]["_extra_state"]["model_params"])
    with pytest.raises(CheckpointError, match=message):
        state_dict.from_checkpoint(c)


def test_checkpoint_of_something_else():
    with pytest.raises(CheckpointError, match=r"without DeePMD-kit's model options \(it holds \['weights'\]\)"):
        state_dict.from_checkpoint({"weights": np.ones(3)})


def test_heads_that_do_not_share_a_descriptor_are_loaded_one_by_one():
    c = content("multitask/mt_separate_fitting.pt")
    name = "model.oxide.atomic_model.descriptor.repinit.stddev"
    c["model"][name] = 2 * c["model"][name]
    with pytest.raises(CheckpointError, match="descriptors of the heads oxide differ from that of water"):
        state_dict.from_checkpoint(c)
    config, params = state_dict.from_checkpoint(c, head="oxide")
    assert config.head_names == ("oxide",)
    np.testing.assert_allclose(params.descriptor["repinit"]["statistics"]["stddev"], c["model"][name][:, 0])


def test_older_checkpoints_without_the_new_switches():
    """Before version 3 there were no `use_sqrt_nnei`, `g1_out_conv`, `g1_out_mlp`: what is not said was off."""
    path = MATRIX / "m07_nosqrt_noout/model.pt"
    read = torch_file.read(path)
    c = {"model": dict(read["model"], _extra_state=json.loads(json.dumps(read["model"]["_extra_state"])))}
    repformer = c["model"]["_extra_state"]["model_params"]["descriptor"]["repformer"]
    assert [repformer.pop(name) for name in ("use_sqrt_nnei", "g1_out_conv", "g1_out_mlp")] == [False] * 3
    assert same(state_dict.from_checkpoint(c), checkpoint.load(path))


def test_older_native_files(tmp_path):
    """`@version` 2 of the descriptor: the switches are off whatever the defaults are now."""
    source = MATRIX / "m03_everything_on/model.dp"
    old = tmp_path / "old.dp"
    shutil.copy(source, old)
    with h5py.File(old, "a") as file:
        content = json.loads(file.attrs["json"])
        content["model"]["descriptor"]["@version"] = 2
        file.attrs["json"] = json.dumps(content)
    with pytest.raises(CheckpointError, match="g1_self_mlp"):  # this model has what a version-2 model cannot have
        checkpoint.load(old)


def changed(source: Path, target: Path, change) -> Path:
    """A `.dp` whose tree went through `change`; its arrays stay."""
    shutil.copy(source, target)
    with h5py.File(target, "a") as file:
        content = json.loads(file.attrs["json"])
        change(content)
        file.attrs["json"] = json.dumps(content)
    return target


def entry(tree, path: str):
    for key in path.split("."):
        tree = tree[int(key) if key.isdigit() else key]
    return tree


DPA2, DPA1 = MATRIX / "m03_everything_on/model.dp", FIXTURES / "student/s01_strip/model.dp"
LAYER = "model.descriptor.repformers_variable.repformer_layers.0"
EVERY_KIND = [
    *((DPA2, path) for path in ("model", "model.descriptor", "model.fitting", "model.descriptor.type_embedding")),
    *((DPA2, f"model.descriptor.{path}") for path in ("type_embedding.embedding.layers.0", "g1_shape_tranform")),
    *((DPA2, f"model.descriptor.repinit_variable.embeddings{path}") for path in ("", ".networks.0")),
    *((DPA2, f"{LAYER}{path}") for path in ("", ".linear1", ".attn2g_map", ".attn2_mh_apply", ".attn2_lm")),
    *((DPA2, path) for path in (f"{LAYER}.loc_attn", "model.fitting.nets", "model.fitting.nets.networks.0.layers.1")),
    *((DPA1, f"model.descriptor{path}") for path in ("", ".attention_layers", ".embeddings_strip.networks.0.layers.0")),
]


@pytest.mark.parametrize(("source", "path"), EVERY_KIND, ids=[f"{s.parent.name}:{path}" for s, path in EVERY_KIND])
def test_newer_formats_are_refused_wherever_they_stand(tmp_path, source, path):
    def newer(tree):
        entry(tree, path)["@version"] += 1

    with pytest.raises(CheckpointError, match=f"{path} has @version [2345]; known: 1 to [1234]"):
        checkpoint.load(changed(source, tmp_path / "new.dp", newer))


@pytest.mark.parametrize("version", [0, 99, "2", None, True, float("nan")])
def test_versions_that_are_none(tmp_path, version):
    with pytest.raises(CheckpointError, match=r"model\.fitting has @version"):
        checkpoint.load(
            changed(DPA1, tmp_path / "x.dp", lambda tree: tree["model"]["fitting"].update({"@version": version}))
        )


CONTRADICTIONS = [
    (DPA2, f"{LAYER}.linear1", "activation_function", "relu"),
    (DPA2, f"{LAYER}.linear1", "resnet", True),
    (DPA2, LAYER, "attn2_has_gate", None),
    (DPA2, f"{LAYER}.attn2g_map", "attnw_shift", 10.0),
    (DPA2, f"{LAYER}.attn2_lm", "eps", 1e-3),
    (DPA2, "model.descriptor.repinit_variable.env_mat", "rcut", 4.5),
    (DPA2, "model.descriptor.repinit_variable.env_mat", "use_exp_switch", True),
    (DPA2, "model.descriptor.repinit_variable.embeddings", "ndim", 1),
    (DPA2, "model.descriptor.repinit_variable.embeddings.networks.0", "activation_function", "gelu"),
    (DPA2, "model.fitting.nets.networks.0", "out_dim", 2),
    (DPA2, "model.fitting", "ntypes", 3),
    (DPA2, "model.fitting", "tot_ener_zero", True),
    (DPA2, "model.descriptor", "type_map", ["H", "O"]),
    (DPA2, "model.descriptor.type_embedding", "padding", False),
    (DPA1, "model.descriptor.attention_layers", "layer_num", 2),
    (DPA1, "model.descriptor", "lmax", 2),
    (DPA1, "model.descriptor", "spin", {"use_spin": [True]}),
]


@pytest.mark.parametrize(
    ("source", "path", "key", "value"), CONTRADICTIONS, ids=[f"{c[1]}.{c[2]}" for c in CONTRADICTIONS]
)
def test_entries_that_lamjax_would_not_follow_are_refused(tmp_path, source, path, key, value):
    with pytest.raises(CheckpointError, match=key):
        checkpoint.load(changed(source, tmp_path / "x.dp", lambda tree: entry(tree, path).update({key: value})))


@pytest.mark.parametrize("path", ["", "model", "model.descriptor", "model.fitting", f"{LAYER}", f"{LAYER}.linear1"])
def test_keys_that_are_not_known_are_refused(tmp_path, path):
    def add(tree):
        (entry(tree, path) if path else tree)["novelty"] = list(range(1000))

    with pytest.raises(CheckpointError, match="novelty") as error:
        checkpoint.load(changed(DPA2, tmp_path / "x.dp", add))
    assert len(str(error.value)) < 500  # the value is shortened


def test_variables_that_are_not_known_are_refused(tmp_path):
    """`degree_gain_raw` weighs the degrees of a DPA-1 with `lmax`."""

    def add(tree):
        tree["model"]["descriptor"]["@variables"]["degree_gain_raw"] = tree["model"]["descriptor"]["@variables"]["davg"]

    with pytest.raises(CheckpointError, match="degree_gain_raw = an array of shape"):
        checkpoint.load(changed(DPA1, tmp_path / "x.dp", add))


@pytest.mark.parametrize(("source", "path"), [(DPA1, "model.descriptor"), (DPA2, "model.descriptor.repinit_variable")])
def test_compressed_native_files_are_named_in_a_line(tmp_path, source, path):
    tables = {"@variables": {"compress_data": [[0.0] * 1000] * 9}, "geo_compress": True}
    with pytest.raises(CheckpointError, match="the model is compressed.*Use the model that it was") as error:
        checkpoint.load(changed(source, tmp_path / "x.dp", lambda tree: entry(tree, path).update(compress=tables)))
    assert len(str(error.value)) < 400


def test_what_has_no_effect_is_read(tmp_path):
    def change(tree):
        tree["jax_version"] = "0.10"
        tree["model"]["descriptor"].update(trainable=False, attn=64, attn_dotr=False, temperature=1.0)
        tree["model"]["fitting"].update(trainable=[False] * 4, atom_ener=[None] * 7)

    assert same(checkpoint.load(changed(DPA1, tmp_path / "x.dp", change)), checkpoint.load(DPA1))


def test_flat_options_of_the_first_alpha_are_named():
    c = content()
    descriptor = c["model"]["_extra_state"]["model_params"]["descriptor"]
    for block in ("repinit", "repformer"):
        descriptor |= {f"{block}_{key}": value for key, value in descriptor.pop(block).items()}
    with pytest.raises(CheckpointError, match=r"options are flat \(repformer_attn1_hidden, .*3\.0\.0a0"):
        state_dict.from_checkpoint(c)


def test_hessian_mode_is_of_no_effect():
    c = content()
    c["model"]["_extra_state"]["model_params"]["hessian_mode"] = True
    assert same(state_dict.from_checkpoint(c), checkpoint.load(MATRIX / "m03_everything_on/model.pt"))


def test_second_names_of_nets_must_agree():
    c = content()
    key = next(key for key in c["model"] if "._networks." in key)
    c["model"][key] = c["model"][key] + 1
    with pytest.raises(CheckpointError, match="is a second name of .* but they differ"):
        state_dict.from_checkpoint(c)


@pytest.mark.parametrize("where", ["model", "model._extra_state", "model._extra_state.model_params"])
def test_entries_of_a_checkpoint_that_are_not_known(where):
    c = content()
    entry(c, where)["novelty"] = 3
    with pytest.raises(CheckpointError, match="novelty = 3"):
        state_dict.from_checkpoint(c)


def test_sel_given_as_auto_is_read_off_the_statistics():
    c = content()
    descriptor = c["model"]["_extra_state"]["model_params"]["descriptor"]
    descriptor["repinit"]["nsel"] = descriptor["repinit"]["three_body_sel"] = "auto:1.1"
    descriptor["repformer"]["nsel"] = "auto"
    assert same(state_dict.from_checkpoint(c), checkpoint.load(MATRIX / "m03_everything_on/model.pt"))


@pytest.mark.parametrize(
    "name",
    [
        "option_matrix/m20_conv_only/model.dp",
        "option_matrix/m20_conv_only/model.pt",
        "option_matrix/m20_conv_only/model.yaml",
    ],
)
@pytest.mark.parametrize("fraction", [0.2, 0.9, 0.999])
def test_truncated_files(tmp_path, name, fraction):
    whole = (FIXTURES / name).read_bytes()
    path = tmp_path / Path(name).name
    path.write_bytes(whole[: int(fraction * len(whole))])
    with pytest.raises(CheckpointError, match="truncated|not a complete"):
        lamjax.load(path)


def _elsewhere(file, name):
    with h5py.File(Path(file.filename).with_name("other.h5"), "w") as other:
        other["x"] = file[name][()]
    del file[name]
    file[name] = h5py.ExternalLink("other.h5", "x")


def _raw(file, name):
    del file[name]
    file.create_dataset(name, (4,), np.float64, external=[(Path(file.filename).with_name("raw.bin"), 0, 32)])


def _huge(file, name):
    del file[name]
    file.create_dataset(name, (10**6, 10**6), np.float64, chunks=(64, 64))


def _text(file, name):
    del file[name]
    file[name] = "text"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_elsewhere, "in another file"),
        (_raw, "in another file"),
        (_huge, "announces 8,000,000,000,000"),
        (_text, "is no array"),
    ],
    ids=["linked", "external", "huge", "text"],
)
def test_arrays_that_are_not_in_the_file(tmp_path, change, message):
    path = shutil.copy(DPA1, tmp_path / "x.dp")
    with h5py.File(path, "a") as file:
        change(file, "variable_0003")
    with pytest.raises(CheckpointError, match=message):
        lamjax.load(path)


@pytest.mark.parametrize("last", ["*a29", "&a30 [*a30]"], ids=["many", "cyclic"])
def test_text_whose_references_unfold_without_end(tmp_path, last):
    """Thirty lines, each a list of two of the line before: 2^30 values."""
    lines = ["a0: &a0 [1, 1]", *(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, 30))]
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(["backend: x", *lines, f"model: {last}", "version: 1"]))
    with pytest.raises(CheckpointError, match="references make it larger|recursion"):
        lamjax.load(path)


def test_kinds_are_told_by_content(tmp_path):
    for name in ("model.dp", "model.pt", "model.yaml"):
        path = tmp_path / f"{name}.anything"
        shutil.copy(MATRIX / "m20_conv_only" / name, path)
        assert lamjax.load(path)[0].elements[0] == "O"


def test_other_files_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with h5py.File(tmp_path / "some.h5", "w") as file:
        file["x"] = [1]
    (tmp_path / "some.yaml").write_text("a: 1\n")
    (tmp_path / "script.zip").write_bytes(b"")
    for name, message in (
        ("some.zip", "zip archive"),
        ("some.h5", "HDF5"),
        ("some.yaml", "unknown kind"),
        ("script.zip", "empty"),
    ):
        with pytest.raises(CheckpointError, match=message):
            lamjax.load(tmp_path / name)
