"""Frozen, exported and `pt_expt` files of DeePMD-kit: its own numbers from each, and nothing run."""

import functools
import json
import shutil
import zipfile
from pathlib import Path

import ase
import jax
import numpy as np
import pytest

import lamjax
from lamjax import checkpoints
from lamjax.interop.deepmd import checkpoint, torch_file, write
from lamjax.potential import CheckpointError

FILES = Path(__file__).parents[1] / "fixtures/torch_files"
DOUBLE = ("l0.pth", "dpa2.pth", "alloy.pth", "l0_expt.pte", "concat_expt.pt2", "dpa2_expt.pt")


@functools.cache
def reference():
    return dict(np.load(FILES / "reference.npz"))


def frame(name: str) -> ase.Atoms:
    r = reference()
    cell = r.get(f"{name}__cell")
    return ase.Atoms(r[f"{name}__species"], r[f"{name}__positions"], cell=cell, pbc=cell is not None)


def errors(file: str, name: str, head: str | None = None) -> list[float]:
    """Largest differences to DeePMD-kit of energy, forces and, in a cell, virial."""
    atoms = frame(name)
    system = lamjax.from_ase(atoms)
    potential, params = lamjax.load(FILES / file, head)
    got = jax.jit(functools.partial(lamjax.predict, potential))(params, system, lamjax.allocate(potential, system))
    parts = ("energy", "forces", "virial") if atoms.pbc.all() else ("energy", "forces")
    wanted = {part: reference()[f"{file.split('.')[0]}__{name}__{part}"] for part in parts}
    return [float(np.max(np.abs(getattr(got, part) - wanted[part]))) for part in parts]


@pytest.mark.parametrize("file", DOUBLE)
def test_numbers_are_deepmds(file):
    assert max(errors(file, "skew")) < 1e-9


def test_numbers_of_a_molecule_a_head_and_a_single_precision_model():
    assert max(errors("mean_expt.pt", "dimer")) < 1e-9
    assert max(errors("multi_expt.pt", "skew", "alloy")) < 1e-9
    assert max(errors("single.pth", "skew")) < 2e-6  # the reference is computed in float32


@pytest.mark.parametrize("other", ["l0.dp", "l0.pt"])
def test_forms_of_one_model_without_attention(other):
    """`se_atten_v2` with `attn_layer` 0, as the published DPA1-L0 models: checkpoint, frozen and native file."""
    (config, params), (same_config, same_params) = (checkpoint.load(FILES / name) for name in ("l0.pth", other))
    assert config == same_config and config.descriptor.tebd_input_mode == "strip"
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(same_params)))


def test_kinds_are_told_by_content(tmp_path):
    kinds = {name: checkpoints.read(FILES / name).kind for name in ("l0.pth", "l0_expt.pte", "mean_expt.pt", "l0.dp")}
    assert list(kinds.values()) == [f"DeePMD-kit .{kind}" for kind in ("pth", "pt2", "pt", "dp")]
    shutil.copy(FILES / "l0.pth", tmp_path / "model.pt")
    assert checkpoints.read(tmp_path / "model.pt").kind == "DeePMD-kit .pth"


def test_sums_of_pt_expt_run_over_all_neighbours_and_no_empty_slots():
    """DeePMD-kit's backends differ: `sel` 14 drops none of 16 neighbours, and no .dp can say what this model is."""
    config, params = checkpoint.load(FILES / "mean_expt.pt")
    assert config.descriptor.sel == 14 and np.any(params.descriptor["repinit"]["statistics"]["mean"])
    assert max(errors("mean_expt.pt", "skew")) < 1e-9
    system = lamjax.from_ase(frame("skew"))
    assert np.max(np.sum(lamjax.allocate(lamjax.build(config), system).mask, axis=1)) > 14
    with pytest.raises(CheckpointError, match="empty neighbour slots"):
        write.to_tree(config, params, "Default")
    assert lamjax.build(checkpoint.load(FILES / "l0.pth")[0]).shells[0].sel == 60  # the backend pt drops neighbours


def test_higher_degrees_are_refused():
    with pytest.raises(CheckpointError, match=r"lmax = 3, which is not supported \(supported: 1\)"):
        lamjax.load(FILES / "lmax.dp")


# --- frozen files with faults ----------------------------------------------------------------------------------------


def rewritten(tmp_path, source: str, change=None, extra=(), compression=zipfile.ZIP_STORED) -> Path:
    """A copy whose parts went through `change` (name, bytes) -> bytes or None, with more parts behind."""
    path = tmp_path / source
    with zipfile.ZipFile(FILES / source) as old, zipfile.ZipFile(path, "w", compression) as new:
        for name in old.namelist():
            data = change(name, old.read(name)) if change else old.read(name)
            if data is not None:
                new.writestr(name, data)
        for name, data in extra:
            new.writestr(f"{old.namelist()[0].split('/')[0]}/{name}", data)
    return path


def test_program_text_is_never_looked_at(tmp_path):
    """The code may be anything, even missing: the tensors and options are data."""
    path = rewritten(tmp_path, "l0.pth", extra=[("code/__torch__/evil.py", b"import os; os.abort()")])
    assert lamjax.load(path)[0].elements == ("O", "H")


def test_frozen_model_with_a_data_modifier_is_refused(tmp_path):
    """DeePMD-kit writes an empty one where there is none."""
    path = rewritten(tmp_path, "l0.pth", lambda name, data: b"PK" if name.endswith("data_modifier.pth") else data)
    with pytest.raises(CheckpointError, match="data modifier"):
        lamjax.load(path)


def test_frozen_file_of_something_else(tmp_path):
    def change(name, data):
        return data.replace(b"model_def_script", b"model_xxx_script") if name.endswith("data.pkl") else data

    with pytest.raises(CheckpointError, match="without DeePMD-kit's `model_def_script`"):
        lamjax.load(rewritten(tmp_path, "l0.pth", change))


def test_frozen_file_that_asks_for_a_function(tmp_path):
    def change(name, data):
        old = b"torch.jit._pickle\nrestore_type_tag\n"
        return data.replace(old, b"os\nsystem\n") if name.endswith("data.pkl") else data

    with pytest.raises(CheckpointError, match=r"l0\.pth: the file asks for 'os\.system'.*nothing was run"):
        lamjax.load(rewritten(tmp_path, "l0.pth", change))


def test_missing_storage(tmp_path):
    path = rewritten(tmp_path, "l0.pth", lambda name, data: None if name.endswith("/data/7") else data)
    with pytest.raises(CheckpointError, match="not a complete torch file"):
        lamjax.load(path)


def test_archive_that_unpacks_to_much_more_than_it_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "LARGEST", 2**22)
    zeros = [(f"data/{100 + k}", bytes(2**20)) for k in range(5)]
    path = rewritten(tmp_path, "l0.pth", extra=zeros, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"parts announce 5,\d+,\d+ bytes.*Nothing was read"):
        lamjax.load(path)


@pytest.mark.parametrize("file", ["l0.pth", "l0_expt.pte", "mean_expt.pt"])
def test_truncated_archives(tmp_path, file):
    whole = (FILES / file).read_bytes()
    path = tmp_path / file
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        lamjax.load(path)


def test_exported_file_with_a_key_that_is_not_known(tmp_path):
    def change(name, data):
        if not name.endswith("extra/model.json"):
            return data
        content = json.loads(data)
        content["model"]["descriptor"]["novelty"] = 1
        return json.dumps(content).encode()

    with pytest.raises(CheckpointError, match="novelty = 1"):
        lamjax.load(rewritten(tmp_path, "l0_expt.pte", change))


def test_compressed_frozen_model(tmp_path):
    read = torch_file.read_script(FILES / "l0.pth")
    key = "model.Default.atomic_model.descriptor.se_atten.compress_data.0"
    read["model"][key] = np.ones((4, 4))
    with pytest.raises(CheckpointError, match="compressed .*Use the model that it was compressed from"):
        checkpoint.state_dict.from_checkpoint(read)
