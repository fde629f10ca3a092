"""Torch's format read without torch; nothing in a file is ever run."""

import collections
import io
import os
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

import lamjax
from lamjax.interop.deepmd import torch_file
from lamjax.potential import CheckpointError


def archive(path, data: bytes, storages: dict[str, bytes] = {}, extra: dict[str, bytes] = {}):  # noqa: B006
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("model/data.pkl", data)
        for key, values in storages.items():
            file.writestr(f"model/data/{key}", values)
        for key, values in extra.items():
            file.writestr(f"model/{key}", values)
    return path


class _Global:
    """Pickles as the global of that name, whether or not it can be imported here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Storage:
    def __init__(self, kind, key, size):
        self.pid = ("storage", _Global("torch", kind), key, "cpu", size)


class _Pickler(pickle._Pickler):  # the Python one, whose `save` can be replaced
    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, _Storage) else None


def pickled(obj) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(obj)
    return buffer.getvalue()


class Tensor:
    """As torch pickles one."""

    def __init__(self, storage, offset, size, stride):
        self.arguments = (storage, offset, size, stride, False, collections.OrderedDict())

    def __reduce__(self):
        return _rebuild, self.arguments


def _rebuild(*_):
    raise AssertionError("this stands for torch's function and is never called")


@pytest.fixture(autouse=True)
def _rebuild_is_torchs(monkeypatch):
    original = _Pickler.save

    def save(self, obj, save_persistent_id=True):
        original(self, _Global("torch._utils", "_rebuild_tensor_v2") if obj is _rebuild else obj, save_persistent_id)

    monkeypatch.setattr(_Pickler, "save", save)


def test_tensors_of_every_kind_with_strides_and_offsets(tmp_path):
    numbers = np.arange(12, dtype=np.float32)
    halves = np.array([1.5, -2.0], np.float16)
    brains = struct.pack("<2H", 0x3FC0, 0xC000)  # bfloat16 1.5 and -2
    content = {
        "plain": Tensor(_Storage("FloatStorage", "0", 12), 0, (3, 4), (4, 1)),
        "transposed": Tensor(_Storage("FloatStorage", "0", 12), 0, (4, 3), (1, 4)),
        "part": Tensor(_Storage("FloatStorage", "0", 12), 5, (2,), (3,)),
        "scalar": Tensor(_Storage("FloatStorage", "0", 12), 7, (), ()),
        "empty": Tensor(_Storage("FloatStorage", "0", 12), 0, (0, 3), (3, 1)),
        "half": Tensor(_Storage("HalfStorage", "1", 2), 0, (2,), (1,)),
        "brain": Tensor(_Storage("BFloat16Storage", "2", 2), 0, (2,), (1,)),
        "others": [1, 2.5, "text", None, True, (3,), collections.OrderedDict(a=1)],
    }
    storages = {"0": numbers.tobytes(), "1": halves.tobytes(), "2": brains}
    read = torch_file.read(archive(tmp_path / "x.pt", pickled(content), storages))
    np.testing.assert_array_equal(read["plain"], numbers.reshape(3, 4))
    np.testing.assert_array_equal(read["transposed"], numbers.reshape(3, 4).T)
    np.testing.assert_array_equal(read["part"], [5, 8])
    assert read["scalar"] == 7 and read["scalar"].shape == () and read["empty"].shape == (0, 3)
    np.testing.assert_array_equal(read["half"], halves)
    np.testing.assert_array_equal(read["brain"].astype(float), [1.5, -2])
    assert read["others"] == content["others"]


class Malicious:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("load", [torch_file.read, lamjax.load], ids=["read", "load"])
def test_a_malicious_pickle_is_not_run(tmp_path, protocol, load):
    victim = tmp_path / "victim"
    data = pickle.dumps({"model": Malicious(os.mkdir, str(victim))}, protocol)
    with pytest.raises(CheckpointError, match=rf"{os.mkdir.__module__}\.mkdir.*nothing was run"):
        load(archive(tmp_path / "evil.pt", data))
    assert not victim.exists()
    os.mkdir(victim)  # the test could have failed
    assert victim.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch.serialization", "FloatStorage"),
        ("collections", "namedtuple"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("torch.serialization", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("builtins", "__import__"),
        ("__torch", "x"),
        ("collections.OrderedDict", "fromkeys"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ],
)
def test_only_tensors_and_plain_containers_are_admitted(tmp_path, module, name):
    with pytest.raises(CheckpointError, match=f"{module}.{name}"):
        torch_file.read(archive(tmp_path / "x.pt", pickled([_Global(module, name)])))


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_scalars_and_arrays_are_numbers(tmp_path, protocol):
    """As checkpoints hold them that were written before 3.0.0b4 (`lr`), by any numpy."""
    content = {
        "lr": np.float64(1.5e-3),
        "step": np.int64(7),
        "flag": np.bool_(True),
        "name": np.str_("abc"),
        "big": np.array(2.5, ">f8")[()],
        "array": np.arange(6.0).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
        "empty": np.zeros((0, 2), np.float32),
        "dtype": np.dtype("<f4"),
        "bytes": b"\x00\xff",
        "set": {1, 2},
    }
    data = pickle.dumps(content, protocol)
    if protocol == 2:  # as numpy 1 wrote it
        data = data.replace(b"numpy._core.", b"numpy.core.")
    read = torch_file.read(archive(tmp_path / "x.pt", data))
    assert read["lr"] == 1.5e-3 and type(read["lr"]) is float
    assert read["step"] == 7 and read["flag"] is True and read["name"] == "abc" and read["big"] == 2.5
    for name in ("array", "fortran", "empty"):
        np.testing.assert_array_equal(read[name], content[name])
        assert read[name].dtype == content[name].dtype
    assert read["bytes"] == b"\x00\xff" and read["set"] == {1, 2}


def test_names_of_torch_are_text(tmp_path):
    class Device:
        def __reduce__(self):
            return _device, ("cuda", 0)

    names = [_Global("torch", "float32"), _Global("torch", "bfloat16"), Device()]
    data = pickled(names).replace(f"{__name__}\n_device\n".encode(), b"torch\ndevice\n")
    assert torch_file.read(archive(tmp_path / "x.pt", data)) == ["float32", "bfloat16", "cuda:0"]


def _device(*_):
    raise AssertionError("this stands for torch's class and is never called")


@pytest.mark.parametrize(
    "content",
    [np.array([os.mkdir], object), np.zeros(2, [("a", "i4"), ("b", "f8")]), np.datetime64("2026-01-01")],
    ids=["objects", "fields", "dates"],
)
def test_numpy_arrays_of_other_things_are_refused(tmp_path, content):
    with pytest.raises(CheckpointError, match="mkdir|dtype|scalar"):
        torch_file.read(archive(tmp_path / "x.pt", pickle.dumps({"x": content}, 2)))


def test_numpy_arrays_stay_inside_their_bytes(tmp_path):
    data = pickle.dumps(np.arange(3, dtype=np.int32), 2)
    assert data.count(b"K\x03\x85") == 1  # the shape
    with pytest.raises(CheckpointError, match=r"shape \(200,\) has 12 bytes"):
        torch_file.read(archive(tmp_path / "x.pt", data.replace(b"K\x03\x85", b"K\xc8\x85")))


def test_extension_codes_are_refused(tmp_path):
    """The opcodes EXT1 and so on name classes of a registry in the process."""
    with pytest.raises(CheckpointError):
        torch_file.read(archive(tmp_path / "x.pt", b"\x80\x02\x82\x01."))


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(_Storage("FloatStorage", "0", 4), 2, (3,), (1,)),
        Tensor(_Storage("FloatStorage", "0", 4), -1, (2,), (1,)),
        Tensor(_Storage("FloatStorage", "0", 4), 3, (2,), (-2,)),
        Tensor(_Storage("FloatStorage", "0", 4), 0, (2, 2), (1,)),
        Tensor(_Storage("FloatStorage", "0", 400), 0, (2,), (1,)),
        Tensor(_Storage("FloatStorage", "1", 4), 0, (2,), (1,)),
        Tensor(_Storage("FloatStorage", "0", 4), 0, (10**9, 10**6), (0, 0)),
    ],
    ids=["beyond", "offset", "stride", "rank", "short", "absent", "repeated"],
)
def test_tensors_stay_inside_their_storage(tmp_path, tensor):
    with pytest.raises(CheckpointError):
        torch_file.read(archive(tmp_path / "x.pt", pickled(tensor), {"0": np.ones(4, np.float32).tobytes()}))


def test_other_archives_are_told_apart(tmp_path):
    data = pickled({})
    script = archive(tmp_path / "a.pth", data, extra={"code/x.py": b"", "constants.pkl": b""})
    assert torch_file.kind(script) == "pth"
    with pytest.raises(CheckpointError, match="TorchScript file without DeePMD-kit's `model_def_script`"):
        lamjax.load(script)
    with pytest.raises(CheckpointError, match="big-endian"):
        torch_file.read(archive(tmp_path / "b.pt", data, extra={"byteorder": b"big"}))
    assert "torch" not in sys.modules


@pytest.mark.parametrize(("name", "package"), [("mace.modules.models", "MACE"), ("sevenn.model_build", "SevenNet")])
def test_models_of_other_packages_are_named(tmp_path, name, package):
    """Such a file holds Python objects: it says whose it is and what can be done, and nothing is imported."""
    path = archive(tmp_path / "other.model", pickled(_Global(name, "Model")))
    with pytest.raises(CheckpointError, match=rf"other\.model: a model of {package} .*lamjax distill.*Nothing was run"):
        lamjax.load(path)
    assert name.split(".")[0] not in sys.modules


def test_a_model_of_mlip_is_told_how_to_be_opened(tmp_path):
    with zipfile.ZipFile(tmp_path / "mace.zip", "w") as file:
        file.writestr("hyperparams.json", "{}")
        file.writestr("params.npz", b"")
    with pytest.raises(CheckpointError, match=r"lamjax\.interop\.mlip\.from_mlip\(mlip\.models\.model_io"):
        lamjax.load(tmp_path / "mace.zip")
