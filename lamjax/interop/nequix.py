"""Nequix's weights (`.nqx`) in and out: one line of JSON, then numpy arrays behind one another in a fixed order.

Koker et al., arXiv 2508.16067. Nothing of a file is executed.
"""

import io
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import ase.data
import numpy as np

from lamjax.descriptors.nequip import Layer, NequIPConfig, layers
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import DEFAULT_HEAD, CheckpointError, Params, PotentialConfig

SUFFIX = ".nqx"
# keys that say what the model is, and those that its training alone needs (values as they come)
_MODEL = (
    "atomic_numbers",
    "cutoff",
    "hidden_irreps",
    "lmax",
    "n_layers",
    "radial_basis_size",
    "radial_mlp_size",
    "radial_mlp_layers",
    "radial_polynomial_p",
    "avg_n_neighbors",
    "scale",
    "shift",
)
# settings of the training, which change no energy
_TRAINING = frozenset(
    "state_path resume_from train_path valid_path cache_dir valid_frac avg_n_edges avg_n_nodes max_n_edges max_n_nodes "
    "seed mlp_init_scale optimizer learning_rate warmup_epochs warmup_factor grad_clip_norm weight_decay batch_size "
    "n_epochs energy_weight force_weight stress_weight loss_type log_every val_every ema_decay atom_energies".split()
)
_FIXED = {"index_weights": False, "layer_norm": True}
_REAL = ("cutoff", "radial_polynomial_p", "avg_n_neighbors", "scale", "shift")
# whole numbers, and the most of each: a damaged header must not ask for more than any machine can build
_WHOLE = {"lmax": 11, "n_layers": 64, "radial_basis_size": 4096, "radial_mlp_size": 65536, "radial_mlp_layers": 64}


def is_nequix(path: str | Path) -> bool:
    """True if the file begins with a line of JSON that names radial sizes, as a `.nqx` does."""
    with open(path, "rb") as file:
        start = file.read(1)
        return start == b"{" and b'"radial_polynomial_p"' in start + file.readline(1 << 20)


def load(path: str | Path) -> tuple[PotentialConfig, Params, dict[str, Any]]:
    """Config, parameters (numpy, float32; biases float64) and the header of a file.

    Raises CheckpointError for a truncated file, unknown settings, or arrays that do not fit them.
    """
    with open(path, "rb") as file:
        header = _header(path, file.readline())
        config = _config(path, header)
        numbers = _arrays(path, file, _shapes(config))
    return config, _params(config, header, numbers), header


def write(config: PotentialConfig, params: Params, head: str, header: dict[str, Any] | None = None) -> bytes:
    """The bytes of a file that Nequix reads; `header` holds further keys of its training, as `load` gave them.

    Raises ValueError for a model that the format cannot hold: another descriptor, hidden layers in the head, or an
    embedding that is not as wide as there are elements.
    """
    _check(config, dict(config.heads)[head])
    net, shift = params.heads[head], float((header or {}).get("shift", 0.0))
    statistics, (last,) = net["statistics"], net["layers"]
    constant = np.asarray(statistics["bias_atom_e"], np.float64) + np.asarray(last["b"], np.float64)
    energies = np.asarray(statistics["out_bias"], np.float64) + constant - shift
    content = {**(header or {}), **_keys(config, shift), "atom_energies": _by_number(config, energies)}
    out = io.BytesIO()
    out.write(json.dumps(content).encode() + b"\n")
    for array in _in_order(config, params, energies, last["w"]):
        np.save(out, np.asarray(array, "<f4"), allow_pickle=False)
    out.write(b"\n")
    return out.getvalue()


def _header(path: Any, line: bytes) -> dict[str, Any]:
    try:
        header = json.loads(line)
    except ValueError as error:
        raise CheckpointError(f"{path}: the first line of a .nqx is JSON, this one is not ({error}).") from error
    if missing := [key for key in (*_MODEL, *_FIXED) if key not in header]:
        raise CheckpointError(f"{path}: the header does not say {', '.join(missing)}: not a Nequix model of this kind.")
    for key, value in _FIXED.items():
        if header[key] != value:
            raise CheckpointError(f"{path}: {key} is {header[key]}, lamjax reads models with {key} {value} only.")
    _check_kinds(path, header)
    if unknown := sorted(header.keys() - {*_MODEL, *_FIXED} - _TRAINING):
        warnings.warn(
            f"{path}: the header has keys that lamjax does not know: {', '.join(unknown)}. If they change the model, "
            "its energies here are not Nequix's: compare some.",
            stacklevel=2,
        )
    return header


def _check_kinds(path: Any, header: dict[str, Any]) -> None:
    """CheckpointError for a value that is not of the kind that its key asks for, or larger than can be meant."""
    for key in (*_REAL, *_WHOLE):
        value, most = header[key], _WHOLE.get(key, np.inf)
        if not _is_number(value) or key in _WHOLE and value != int(value):
            raise CheckpointError(f"{path}: {key} is {value!r}, expected a {'whole ' * (key in _WHOLE)}number.")
        if value > most:
            raise CheckpointError(f"{path}: {key} is {value}, more than {most}. Is the file damaged?")
    numbers, irreps = header["atomic_numbers"], header["hidden_irreps"]
    if not isinstance(numbers, list) or not all(_is_number(z) and z == int(z) for z in numbers):
        raise CheckpointError(f"{path}: atomic_numbers is {numbers!r}, expected a list of whole numbers, as in [1, 8].")
    if not isinstance(irreps, str):
        raise CheckpointError(f"{path}: hidden_irreps is {irreps!r}, expected a text, as in '128x0e + 64x1o'.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _config(path: Any, header: dict[str, Any]) -> PotentialConfig:
    numbers = [int(z) for z in header["atomic_numbers"]]
    if wrong := [z for z in numbers if not 0 < z < len(ase.data.chemical_symbols)]:
        raise CheckpointError(f"{path}: atomic_numbers names {wrong[0]}, which is no element.")
    try:
        descriptor = NequIPConfig(
            rcut=float(header["cutoff"]),
            channels=_channels(header["hidden_irreps"]),
            lmax=int(header["lmax"]),
            nlayers=int(header["n_layers"]),
            embed_dim=len(numbers),
            radial_basis=int(header["radial_basis_size"]),
            radial_neuron=(int(header["radial_mlp_size"]),) * int(header["radial_mlp_layers"]),
            polynomial_p=float(header["radial_polynomial_p"]),
            avg_n_neighbors=float(header["avg_n_neighbors"]),
            scale=float(header["scale"]),
        )
        heads = ((DEFAULT_HEAD, EnergyHeadConfig(neuron=(), resnet_dt=False)),)
        return PotentialConfig(tuple(ase.data.chemical_symbols[z] for z in numbers), descriptor, heads)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _channels(irreps: str) -> tuple[int, ...]:
    """(128, 64, 32) of "128x0e + 64x1o + 32x2e"."""
    channels = []
    for number, part in enumerate(irreps.split("+")):
        match = re.fullmatch(r"(\d+)x(\d+)([eo])", part.strip())
        if not match or int(match[2]) != number or match[3] != "eo"[number % 2]:
            raise ValueError(
                f"hidden_irreps is {irreps!r}: lamjax builds l = 0, 1, 2, ... of natural parity, as in 128x0e + 64x1o."
            )
        channels.append(int(match[1]))
    return tuple(channels)


def _layer_shapes(config: NequIPConfig, layer: Layer, is_first: bool) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of a layer's arrays by name, in the file's order."""
    widths = (config.radial_basis, *config.radial_neuron, layer.n_radial)
    inputs = layer.inputs[:1] if is_first else layer.inputs
    return {
        "radial": list(zip(widths[:-1], widths[1:], strict=True)),
        "send": [(n, n) for n in inputs],
        "gather": list(zip(layer.gathered, layer.raw, strict=True)),
        "skip": list(zip(inputs, layer.raw, strict=False)),
        "norm": [(n,) for n in layer.raw],
    }


def _shapes(config: PotentialConfig) -> list[tuple[int, ...]]:
    """All shapes in the file's order: energies of the elements, layers, readout."""
    descriptor = cast(NequIPConfig, config.descriptor)
    shapes: list[tuple[int, ...]] = [(len(config.elements),)]
    for number, layer in enumerate(layers(descriptor)):
        shapes += [shape for part in _layer_shapes(descriptor, layer, number == 0).values() for shape in part]
    return [*shapes, (descriptor.width, 1)]


def _arrays(path: Any, file: Any, shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    arrays = []
    for number, shape in enumerate(shapes):
        try:
            array = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise CheckpointError(
                f"{path}: array {number + 1} of {len(shapes)} cannot be read ({error}): the file is truncated, or has "
                "fewer layers than its header says."
            ) from error
        if array.shape != shape:
            raise CheckpointError(
                f"{path}: array {number + 1} of {len(shapes)} has shape {array.shape}, its header means {shape}."
            )
        arrays.append(array)
    if left := file.read().strip(b"\n"):
        raise CheckpointError(f"{path}: {len(left)} bytes follow the last array: more layers than its header says.")
    return arrays


def _params(config: PotentialConfig, header: dict[str, Any], numbers: list[np.ndarray]) -> Params:
    descriptor, arrays, layer_params = config.descriptor, iter(numbers), []
    energies = np.asarray(next(arrays), np.float64) + float(header["shift"])
    species: dict[str, np.ndarray] = {}
    for number, layer in enumerate(layers(descriptor)):
        parts = {
            name: [next(arrays) for _ in shapes]
            for name, shapes in _layer_shapes(descriptor, layer, number == 0).items()
        }
        if number == 0:
            species = {"w": parts.pop("send")[0], "skip": parts.pop("skip")[0]}
        layer_params.append(parts)
    n = len(config.elements)
    statistics = {"bias_atom_e": np.zeros(n, np.float32), "out_bias": energies, "out_std": np.ones(n)}
    head = {"layers": [{"w": next(arrays), "b": np.zeros(1, np.float32)}], "statistics": statistics}
    return Params({"species": species, "layers": layer_params}, {DEFAULT_HEAD: head})


def _check(config: PotentialConfig, head: EnergyHeadConfig) -> None:
    descriptor, what = config.descriptor, None
    if not isinstance(descriptor, NequIPConfig):
        what = f"a {descriptor.type} model"
    elif descriptor.embed_dim != len(config.elements):
        what = (
            f"an embedding of {descriptor.embed_dim} numbers for {len(config.elements)} elements (they must be equal)"
        )
    elif not descriptor.layer_norm or descriptor.exclude_types or config.pair_exclude_types:
        what = "a model without layer norm or with excluded pairs"
    elif len(set(descriptor.radial_neuron)) > 1:
        what = f"radial nets of different widths {list(descriptor.radial_neuron)}"
    elif head.neuron or head.numb_fparam or head.numb_aparam or head.dim_case_embd or head.exclude_types:
        what = "a head with hidden layers, parameters or excluded types"
    if what:
        raise ValueError(f"A .nqx cannot hold {what}. Save it as .lamjax.")


def _keys(config: PotentialConfig, shift: float) -> dict[str, Any]:
    descriptor = cast(NequIPConfig, config.descriptor)
    irreps = " + ".join(f"{n}x{k}{'eo'[k % 2]}" for k, n in enumerate(descriptor.channels))
    return {
        "atomic_numbers": [ase.data.atomic_numbers[e] for e in config.elements],
        "cutoff": descriptor.rcut,
        "hidden_irreps": irreps,
        "lmax": descriptor.lmax,
        "n_layers": descriptor.nlayers,
        "radial_basis_size": descriptor.radial_basis,
        "radial_mlp_size": descriptor.radial_neuron[0],
        "radial_mlp_layers": len(descriptor.radial_neuron),
        "radial_polynomial_p": descriptor.polynomial_p,
        "avg_n_neighbors": descriptor.avg_n_neighbors,
        "scale": descriptor.scale,
        "shift": shift,
        **_FIXED,
    }


def _by_number(config: PotentialConfig, energies: np.ndarray) -> dict[str, float]:
    return {str(ase.data.atomic_numbers[e]): float(x) for e, x in zip(config.elements, energies, strict=True)}


def _in_order(config: PotentialConfig, params: Params, energies: np.ndarray, readout: Any) -> Iterator[np.ndarray]:
    yield energies
    species = params.descriptor["species"]
    for number, layer in enumerate(params.descriptor["layers"]):
        parts = layer if number else {**layer, "send": [species["w"]], "skip": [species["skip"]]}
        for name in ("radial", "send", "gather", "skip", "norm"):
            yield from parts[name]
    yield readout
