"""A packed set on disk holds the very numbers of the files, is whole or not there, and never comes into memory."""

import json
import multiprocessing
import operator
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ase
import ase.io
import h5py
import jax
import label_frames as make
import numpy as np
import pytest

from lamjax import data
from lamjax.cli.data_convert import convert
from lamjax.data.counting import SIDECAR
from lamjax.neighbors import Shell
from lamjax.system import Labels, System

SHELLS = (Shell(4.0), Shell(3.0, 8))


def assert_equal(a, b):
    """Same trees, shapes, precision and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(x, y)


def assert_same_frame(a, b):
    assert (a.source, a.keys) == (b.source, b.keys)
    assert_equal((a.system, a.labels), (b.system, b.labels))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two extxyz files with crystals and molecules, all kinds of labels and missing ones."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    atoms = []
    for k, frame in enumerate(make.copper_frames(11)):
        one = ase.Atoms(frame.system.numbers, frame.system.positions, cell=frame.system.cell, pbc=True)
        one.numbers[0] = (29, 13)[k % 2]
        one.info |= {"REF_energy": float(frame.labels.energy), "config": f"run {k}", "step": k}
        if k % 3:
            one.arrays["REF_forces"] = frame.labels.forces
            one.info["virial"] = frame.labels.virial
        atoms.append(one)
    ase.io.write(folder / "crystals.extxyz", atoms)
    molecule = ase.Atoms("OH2", rng.normal(size=(3, 3)), info={"energy": -3.0})
    ase.io.write(folder / "molecules.extxyz", [molecule])
    return folder / "crystals.extxyz", folder / "molecules.extxyz"


@pytest.fixture(scope="module")
def frames(files):
    return data.read(files)


@pytest.fixture
def store(frames, tmp_path):
    data.write_store(tmp_path / "set.h5", frames)
    return data.Store(tmp_path / "set.h5")


def test_every_bit_comes_back(frames, store):
    assert len(store) == len(frames) == 12
    for a, b in zip(frames, store, strict=True):
        assert_same_frame(a, b)
        assert not b.system.positions.flags.writeable
    assert store[3].info == {"config": "run 3", "step": 3}
    assert_same_frame(store[-1], frames[-1])
    for wrong in (12, -13):
        with pytest.raises(IndexError, match="there is no frame"):
            store[wrong]
    for a, b in zip(data.read(store.path), frames, strict=True):
        assert_same_frame(a, b)
    assert data.summarize(store) == data.summarize(frames)


def test_single_precision_rounds_once(frames, tmp_path):
    data.write_store(tmp_path / "set.h5", iter(frames), np.float32)
    store = data.Store(tmp_path / "set.h5")
    for a, b in zip(frames, store, strict=True):
        np.testing.assert_array_equal(a.system.positions.astype(np.float32), b.system.positions)
        np.testing.assert_array_equal(a.labels.energy, b.labels.energy)
        assert b.labels.forces.dtype == b.system.cell.dtype == np.float32 and b.labels.energy.dtype == np.float64
    assert data.read(store.path)[0].system.positions.dtype == np.float64


def test_parameters_are_kept_and_must_be_alike(tmp_path):
    bare = make.copper_frames(2)
    rich = [
        f._replace(system=f.system._replace(fparam=np.arange(2.0) + k, aparam=np.full((f.system.n_atoms, 3), 1.5 * k)))
        for k, f in enumerate(bare)
    ]
    data.write_store(tmp_path / "rich.h5", rich)
    for a, b in zip(rich, data.Store(tmp_path / "rich.h5"), strict=True):
        assert_same_frame(a, b)
    with pytest.raises(ValueError, match="copper frame 1 carries no numbers fparam, copper frame 0 2"):
        data.write_store(tmp_path / "mixed.h5", [rich[0], bare[1]])
    mixed = data.join([data.Store(tmp_path / "rich.h5"), bare])
    with pytest.raises(ValueError, match="all frames carry the same fparam"):
        data.pack(mixed, data.plan(bare, SHELLS))


@pytest.mark.parametrize("fixed", [[True, False, True, False], np.eye(4, 3, dtype=bool), np.zeros((4, 3), bool), None])
def test_what_is_fixed_is_kept(tmp_path, fixed):
    frame = data.from_atoms(ase.Atoms("Cu4", np.arange(12).reshape(4, 3)))
    other = frame._replace(info={"name": "nothing of fixed atoms"})
    frame = frame if fixed is None else frame._replace(info={"fixed": np.asarray(fixed)})
    data.write_store(tmp_path / "set.h5", [frame, other])
    first, second = data.read(tmp_path / "set.h5")
    assert second.info == other.info
    if fixed is None:
        assert "fixed" not in first.info
    else:
        expected = np.broadcast_to(np.asarray(fixed).reshape(4, -1), (4, 3))
        np.testing.assert_array_equal(first.info["fixed"], expected)
        assert first.info["fixed"].dtype == bool


def test_a_store_is_whole_or_not_there(frames, tmp_path):
    def broken():
        yield from frames[:5]
        raise OSError("the disk is gone")

    path = tmp_path / "set.h5"
    with pytest.raises(OSError, match="the disk is gone"):
        data.write_store(path, broken())
    with pytest.raises(ValueError, match="no frame to write"):
        data.write_store(path, [])
    assert list(tmp_path.iterdir()) == []
    data.write_store(path, frames)
    before = path.read_bytes()
    with pytest.raises(OSError):
        data.write_store(path, broken())
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["set.h5"]


def test_what_is_no_store_is_refused_with_a_remedy(store, tmp_path):
    def refused(path, message):
        with pytest.raises(ValueError, match=message) as error:
            data.read(path)
        assert str(path) in str(error.value)

    cut = tmp_path / "cut.h5"
    for size in (100, 3000, store.path.stat().st_size - 1000):
        cut.write_bytes(store.path.read_bytes()[:size])
        refused(cut, "cut short.*lamjax data convert")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["a"] = np.arange(3)
    refused(tmp_path / "foreign.h5", "not one of frames.*lamjax data convert")
    newer = tmp_path / "newer.h5"
    newer.write_bytes(store.path.read_bytes())
    with h5py.File(newer, "r+") as file:
        file.attrs["version"] = 99
    refused(newer, "newer lamjax.*Update")
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(ValueError, match="no HDF5 file"):
        data.Store(tmp_path / "text.h5")
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.Store(tmp_path / "none.h5")


def test_elements_and_labels_are_checked(store):
    assert len(data.open_frames(store.path, elements=["Cu", "Al", "O", "H"], require=["energy"])) == 12
    with pytest.raises(ValueError, match=r"set.h5, frame 1 \(crystals.extxyz frame 1\): element Al is not in"):
        data.open_frames(store.path, elements=["Cu", "O", "H"])
    with pytest.raises(ValueError, match=r"frame 0 \(crystals.extxyz frame 0\): the frame has no forces label"):
        data.open_frames(store.path, require=["forces"])
    with pytest.raises(ValueError, match="Unknown label charge"):
        data.open_frames(store.path, require=["charge"])


def test_stores_and_files_are_joined_without_copies(files, frames, store):
    assert isinstance(data.open_frames(store.path), data.Store)
    assert isinstance(data.open_frames(files), list)
    both = data.open_frames([files[1], store.path])
    assert isinstance(both, data.Joined) and len(both) == 13
    for a, b in zip([frames[-1], *frames], both, strict=True):
        assert_same_frame(a, b)
    assert data.source(both, 1) == both[1].source == frames[0].source and data.source(both, -1) == both[-1].source
    part = both[2:9:3]
    assert isinstance(part, data.Subset) and [f.source for f in part] == [both[k].source for k in (2, 5, 8)]
    assert [f.source for f in part[1:]] == [both[k].source for k in (5, 8)]
    for set_ in (both, part, store[3:]):
        listed = list(set_)
        assert data.summarize(set_) == data.summarize(listed)
        for a, b in zip(data.facts(set_), data.facts(listed), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(data.counts(set_, (4.0, 3.0)), data.counts(listed, (4.0, 3.0)))


@pytest.mark.parametrize("kind", ["store", "joined", "subset"])
def test_batches_made_when_asked_equal_those_in_memory(frames, store, kind):
    streamed = {"store": store, "joined": data.join([store[:5], frames[5:]]), "subset": store[:12]}[kind]
    plan = data.plan(frames, SHELLS, 2)
    assert data.plan(streamed, SHELLS, 2) == plan
    held, lazy = data.pack(frames, plan, np.float32), data.pack(streamed, plan, np.float32, memory=0)
    assert all(bucket.made is None for bucket in lazy.buckets) and held.numbers == lazy.numbers
    assert all(bucket.made is not None for bucket in held.buckets)
    assert list(lazy.sources) == list(held.sources)
    for a, b in zip(held.buckets, lazy.buckets, strict=True):
        np.testing.assert_array_equal(a.frame, b.frame)
        assert b.frame.dtype == np.int32
    options = ({"seed": 4, "epochs": 2}, {"seed": None, "epochs": 1, "multiple": 4, "part": (3, 4)}, {"epochs": 1})
    for size, option in zip((3, "auto:24", 5), options, strict=True):
        pairs = zip(data.batches(held, size, **option), data.batches(lazy, size, **option), strict=True)
        pairs = list(pairs)
        assert pairs
        for a, b in pairs:
            assert_equal(a, b)


def test_counts_are_kept_beside_the_store(frames, store, monkeypatch):
    sidecar = Path(f"{store.path}{SIDECAR}")
    expected = data.counts(frames, (4.0, 3.0))
    np.testing.assert_array_equal(data.counts(store, (4.0, 3.0)), expected)
    assert sidecar.is_file()

    def never(*_):
        raise AssertionError("counted again")

    with monkeypatch.context() as patch:
        patch.setattr("lamjax.data.counting.count", never)
        fresh = data.Store(store.path)
        np.testing.assert_array_equal(data.counts(fresh, (3.0,)), expected[:, 1:])
        np.testing.assert_array_equal(data.counts(fresh, (3.0, 4.0)), expected[:, ::-1])
        with pytest.raises(AssertionError, match="counted again"):
            data.counts(fresh, (3.5,))
    content = sidecar.read_bytes()
    for damaged in (b"", content[:100], b"nothing"):
        sidecar.write_bytes(damaged)
        np.testing.assert_array_equal(data.counts(data.Store(store.path), (4.0, 3.0)), expected)
    other = store.path.with_name("other.h5")
    data.write_store(other, frames[::-1])
    Path(f"{other}{SIDECAR}").write_bytes(content)  # of another set: its digest differs
    np.testing.assert_array_equal(data.counts(data.Store(other), (4.0, 3.0)), expected[::-1])


def test_a_folder_that_cannot_be_written_is_no_error(store, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("read-only")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    assert data.counts(store, (3.0,)).shape == (12, 1)
    assert not Path(f"{store.path}{SIDECAR}").exists()


def _sum(store):
    return sum(float(frame.system.positions.sum()) for frame in store)


def test_threads_and_processes_read_at_once(store):
    expected = _sum(store)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(_sum, [store] * 8)) == [expected] * 8
    copy = pickle.loads(pickle.dumps(store))
    assert _sum(copy) == expected and len(pickle.dumps(store)) < 1000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (there,) = pool.map(operator.itemgetter(7), [store])
    assert_same_frame(there, store[7])


def test_convert_there_and_back(files, frames, tmp_path):
    target, text = tmp_path / "set.h5", tmp_path / "set.extxyz"
    convert([*files, target])
    convert([target, text])
    for a, b in zip(frames, data.read(text), strict=True):
        for x, y in zip((*a.system[:4], *a.labels), (*b.system[:4], *b.labels), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-8)  # the digits of extxyz
        assert {k: b.info[k] for k in a.info.keys() & {"config", "step"}} == {
            k: a.info[k] for k in a.info.keys() & {"config", "step"}
        }
    for wrong, message in (([*files, target], "exists"), ([*files, tmp_path / "a.npy"], "must end in"),
                           ([target], "at least one file")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            convert(wrong)


def large_set(n: int, n_atoms: int = 1000):
    """Frames that differ, of a cubic lattice with a neighbour distance of 2.8 Å."""
    grid = 2.8 * np.stack(np.meshgrid(*[np.arange(10.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:n_atoms]
    numbers, forces = np.full(n_atoms, 18, np.int32), np.ones((n_atoms, 3))
    for k in range(n):
        system = System(grid + 1e-4 * k, numbers, np.zeros((3, 3)), np.zeros(3, bool))
        labels = Labels(np.asarray(float(k)), forces, np.zeros((3, 3)), np.array([1.0, 1.0, 0.0]))
        yield data.Frame(system, labels, f"made frame {k}", ("energy", "forces", ""), {})


def test_a_set_larger_than_the_memory_limit_is_shuffled_and_drawn(tmp_path):
    n = 3_200
    path = tmp_path / "large.h5"
    data.write_store(path, large_set(n))
    size = path.stat().st_size
    limit = 64 * 2**20
    assert size > 140e6 > 2 * limit
    np.savez(f"{path}{SIDECAR}", digest=data.Store(path).digest, **{(1.0).hex(): np.zeros(n, np.uint16)})

    def run(how):
        script = Path(__file__).with_name("limited_run.py")
        return subprocess.run(
            [sys.executable, script, path, str(limit), how],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    done = run("mapped")
    assert done.returncode == 0, done.stderr[-2000:]
    content = json.loads(done.stdout)
    assert content["n"] == 16 * 90 and content["energy"] == content["expected"]
    assert content["n"] / n * size > limit  # what was touched exceeds the limit too
    assert np.ptp(content["first"]) > n / 2  # from everywhere in the file
    assert "MemoryError" in run("copied").stderr  # the limit is a limit
