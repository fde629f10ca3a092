"""Models in and out of files: lamjax's one-file bundle, and whatever else `load` can open, told apart by content."""

import difflib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.serialization
import jax
import numpy as np
from jax.typing import DTypeLike
from pydantic import ValidationError

from lamjax import imported, pytree
from lamjax import potential as potentials
from lamjax.arguments import ArgumentError, describe, expect
from lamjax.files import write_atomically as write_atomically
from lamjax.imported import FactoryConfig
from lamjax.interop import nequix
from lamjax.interop.deepmd import checkpoint as deepmd
from lamjax.potential import CheckpointError, Params, Potential, PotentialConfig

STRUCTURES = (".extxyz", ".xyz", ".extxyz.gz", ".xyz.gz", ".traj", ".cif", ".vasp", ".h5", "POSCAR", "OUTCAR")
MODELS = (".lamjax", ".dp", ".pt", ".pth", ".pt2", ".pte", ".yaml", ".yml", ".nqx")
KINDS = "a lamjax bundle, a DeePMD-kit model (.pt, .pth, .dp, .yaml) or Nequix's .nqx"
MAGIC = b"lamjax bundle 1\n"
FACTORY = "factory"  # in the place of a config, where the potential is of one's own
CARD_HEAD = "default head"  # a card's word for the head that is meant where none is named
SHIPPED = Path(__file__).parent / "assets" / "models"  # bundles that come with the package


class Stored(NamedTuple):
    """The content of a model file."""

    config: Any  # PotentialConfig, or FactoryConfig of a potential of one's own
    params: Params  # numpy, in the file's precision
    card: dict[str, Any]  # facts that were saved with a bundle
    kind: str  # "lamjax bundle", "DeePMD-kit .pt"

    @property
    def default_head(self) -> str | None:
        """The head that is meant where none is named: the only one, or the one that the card says."""
        names = self.config.head_names
        name = names[0] if len(names) == 1 else self.card.get(CARD_HEAD)
        return name if name in names else None


def save(path: str | Path, potential: Potential, params: Params, card: dict[str, Any] | None = None) -> None:
    """Write a bundle: config, parameters in their own precision, and a card (JSON-able facts: data, errors, licence).

    The file appears whole or not at all; an older file of that name stays until the new one is complete. Of several
    heads the chosen one is the default when the file is opened, unless the card names another.
    """
    order = "The order is save(path, potential, params)."
    expect(path, (str, Path), "save takes the name of a file first", order)
    if not hasattr(potential, "config"):
        raise ArgumentError(f"save takes a potential second, got {describe(potential)}. {order}")
    if not isinstance(potential.config, PotentialConfig | FactoryConfig):
        raise CheckpointError(
            f"The potential {potential.config!s} does not say where its code is, which a file must. Name the function "
            "that makes it: potential, params = lamjax.load('package.module:factory'); then params with your numbers "
            "in the place of params.descriptor can be saved."
        )
    expect(params, Params, "save takes the parameters of a potential third", order)
    chosen = {CARD_HEAD: potential.head} if len(potential.config.heads) > 1 and potential.head else {}
    content = {**_stated(potential, params), "card": chosen | (card or {})}
    write_atomically(path, MAGIC + flax.serialization.msgpack_serialize(content))


def _stated(potential: Potential, params: Params) -> dict[str, Any]:
    """Config and parameters as a bundle holds them; of a potential of one's own the name of its function."""
    if isinstance(potential.config, FactoryConfig):
        potentials.check_form(imported.first_params(potential.config), params)
        flat = jax.tree_util.tree_flatten_with_path(params.descriptor)[0]
        return {
            FACTORY: {"name": potential.config.factory, "options": potential.config.options},
            "params": {pytree.path_name(path): np.asarray(leaf) for path, leaf in flat},
        }
    potentials.check_structure(potential.config, params)
    state = flax.serialization.to_state_dict(jax.tree.map(np.asarray, params._asdict()))
    return {"config": potentials.to_json(potential.config), "params": state}


def load(
    path: str | Path,
    head: str | None = None,
    dtype: DTypeLike | None = None,
    elements: Mapping[str, str] | None = None,
    trust: str | Sequence[str] = (),
) -> tuple[Potential, Params]:
    """The potential and parameters of a lamjax bundle, Nequix's `.nqx`, or DeePMD-kit's `.dp`, `.yaml`, `.pt`, `.pth`.

    `path` is a file, the name of a model that comes with lamjax (`shipped`), as in `load("small")`, or a function of
    your own that makes a potential, with its options: `load("package.module:factory,depth=0.5")`.
    `head` chooses whose energy is meant where there are several (default: the card's "default head"); `dtype` defaults
    to jax's default float; `elements` says which element a type of DeePMD-kit's is whose name is none, as in
    {"OW": "O"}.
    `trust` names a function of which a file may hold the parameters, "package.module:factory": it is imported then.
    Raises FileNotFoundError, or CheckpointError that says what was found; ValueError listing the heads for a wrong one.
    Nothing of the file is executed, and no function is imported that you have not named.
    """
    stored = read(path, head, elements, trust)
    chosen = stored.default_head if head is None else head
    params = potentials.cast_params(stored.params, dtype)
    if isinstance(stored.config, FactoryConfig):
        return potentials.select(imported.potential_of(stored.config), str(chosen)), params
    return potentials.build(stored.config, chosen), params


def read(
    path: str | Path,
    head: str | None = None,
    elements: Mapping[str, str] | None = None,
    trust: str | Sequence[str] = (),
) -> Stored:
    """The content of a model file, in its own precision; arguments, files and errors are those of `load`."""
    imported.trust([trust] if isinstance(trust, str) else trust)
    if is_function(path):
        config = imported.parse(str(path))
        return Stored(config, imported.first_params(config), {}, "function")
    path = locate(path)
    stored = _opened(path, head, elements)
    _check_finite(path, stored.params)
    return stored


def _opened(path: Path, head: str | None, elements: Mapping[str, str] | None) -> Stored:
    """The content of a file, as its kind is read."""
    if is_bundle(path):
        if elements:
            raise CheckpointError(f"{path}: a lamjax bundle, whose types are elements. Leave out `elements`.")
        return _read_bundle(path)
    if nequix.is_nequix(path):
        if elements:
            raise CheckpointError(f"{path}: a Nequix model, whose types are elements. Leave out `elements`.")
        config, params, header = nequix.load(path)
        return Stored(config, params, {"nequix": header}, "Nequix .nqx")
    if kind := deepmd.kind(path):
        return Stored(*deepmd.load(path, head, elements), {}, f"DeePMD-kit .{kind}")
    raise CheckpointError(
        f"{path}: {_describe(path)}. lamjax opens its own bundles (lamjax.save), DeePMD-kit's models (`.dp`, `.yaml`, "
        "checkpoints `.pt`, frozen `.pth`, exported `.pt2` and `.pte`) and Nequix's `.nqx`."
    )


def _check_finite(path: Path, params: Params) -> None:
    """CheckpointError that names the parameters which are NaN or infinite."""
    named = jax.tree_util.tree_flatten_with_path(params)[0]
    if wrong := [pytree.path_name(where) for where, x in named if not np.isfinite(np.asarray(x)).all()]:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(
            f"{path}: {wrong[0]}{more} holds NaN or infinite numbers: the file is damaged, or its training diverged."
        )


def is_function(path: str | Path) -> bool:
    """True if a model is named as a function that makes it, package.module:factory; a file of that name comes first."""
    return isinstance(path, str | Path) and imported.is_factory(str(path)) and not Path(path).exists()


def check_config(config: PotentialConfig | FactoryConfig, path: str | Path, what: str) -> None:
    """CheckpointError for a potential of one's own, where `what` works on descriptor and heads."""
    if not isinstance(config, PotentialConfig):
        raise CheckpointError(
            f"{path} is a potential of your own ({config}), which has no descriptor and no heads to work on: {what} is "
            "for models with a config."
        )


def is_bundle(path: str | Path) -> bool:
    """True if the file (or the model of that name) begins as a lamjax bundle does."""
    with open(locate(path), "rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _read_bundle(path: Path) -> Stored:
    try:
        content: Any = flax.serialization.msgpack_restore(path.read_bytes()[len(MAGIC) :])
        own = _own_config(content) if FACTORY in content else None
    except Exception as error:  # msgpack raises many kinds for a damaged file
        raise CheckpointError(_damaged(path, error)) from error
    if own is not None:
        imported.check_trusted(own, path)  # before anything is imported
    try:
        config: Any = potentials.from_json(content["config"]) if own is None else own
        params = _restore(config, content["params"])
    except ValidationError as error:
        raise CheckpointError(f"{path}: the config is not one that this version of lamjax knows:\n{error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except imported.FactoryError as error:
        raise CheckpointError(f"{path} holds the parameters of {config}. {error}") from error
    except Exception as error:  # flax raises many kinds for a damaged file
        raise CheckpointError(_damaged(path, error)) from error
    return Stored(config, params, content["card"], "lamjax bundle")


def _damaged(path: Path, error: Exception) -> str:
    return f"{path}: the bundle is damaged or truncated ({type(error).__name__}: {error})."


def _own_config(content: dict) -> FactoryConfig:
    stored = content[FACTORY]
    return FactoryConfig(str(stored["name"]), json.dumps(json.loads(stored["options"]), sort_keys=True))


def _restore(config: Any, state: dict) -> Params:
    """Dicts with numbered keys become the lists that the model's own structure has; shapes are checked."""
    if isinstance(config, FactoryConfig):
        first = imported.first_params(config)
        params = first._replace(descriptor=_filled(first.descriptor, state))
        potentials.check_form(first, params)
        return params
    params = _filled(jax.eval_shape(potentials.build(config).init, jax.random.key(0)), state)
    potentials.check_structure(config, params)
    return params


def _filled(template: Any, state: dict) -> Any:
    """The tree of the template with the numbers of the state; CheckpointError for names that are not in both."""
    flat = {pytree.path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}
    names = [pytree.path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(template)[0]]
    if missing := sorted(set(names) - flat.keys()):
        raise CheckpointError(f"parameters are missing: {', '.join(missing)}.")
    if unused := sorted(flat.keys() - set(names)):
        raise CheckpointError(f"parameters are unused: {', '.join(unused)}.")
    return jax.tree.unflatten(jax.tree.structure(template), [flat[name] for name in names])


def shipped() -> tuple[str, ...]:
    """The names of the models that come with lamjax."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.lamjax")))


def locate(model: str | Path) -> Path:
    """The file of a model, given by its path or by one of `shipped`; a file of that name in the folder comes first.

    Raises FileNotFoundError with what may be meant.
    """
    expect(model, (str, Path), "A model is read from a file", "Give its name: lamjax.load('model.lamjax').")
    path = Path(model)
    if path.is_file():
        return path
    if str(model) in shipped():
        return SHIPPED / f"{model}.lamjax"
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder, not a model file. {_models_in(path)}")
    close = difflib.get_close_matches(str(model), shipped(), n=1)
    known = f"Did you mean {close[0]}?" if close else f"Models that come with lamjax: {', '.join(shipped())}."
    raise FileNotFoundError(f"{path}: no such model file. {known}")


def _models_in(folder: Path) -> str:
    """The model files of a folder, in words, for an error message."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in MODELS)
    return f"It holds {', '.join(names[:5])}: name one." if names else f"No {', '.join(MODELS)} is in it."


def _names_in(path: Path) -> set[str]:
    """The files of a zip archive; none of a damaged one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return set()


def _describe(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(16)
    if not head:
        return "the file is empty"
    if head.startswith(b"PK") and _names_in(path) >= {"hyperparams.json", "params.npz"}:
        return (
            "a model of the mlip package, it seems, which only that package reads: potential, params = "
            "lamjax.interop.mlip.from_mlip(mlip.models.model_io.load_model_from_zip(Mace, path)), with the class of "
            "the network in the place of Mace (extra lamjax[mlip])"
        )
    if head.startswith(b"PK"):
        return "a zip archive that is no model of torch, or a truncated one"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file that is not a DeePMD-kit model, or a truncated one"
    if path.name.endswith(STRUCTURES):
        return "a file of structures, it seems, where a model is meant (a command takes the model first)"
    return f"an unknown kind of file (begins with {head!r})"
