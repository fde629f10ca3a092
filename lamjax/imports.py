"""Imports of what a user names, and imports that would take seconds, made short."""

import difflib
import functools
import importlib.util
import re
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

SELDOM = ("energy", "nn", "rigid_body", "elasticity")  # of jax-md, loaded on first use
NAMED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")  # package.module:name
FAILURES = (Exception, SystemExit)  # importing runs code, which may fail in any way, and end the process


def is_named(name: str) -> bool:
    """Whether it is "package.module:name"."""
    return NAMED.fullmatch(name) is not None


def named(name: str, what: str) -> Any:
    """The object called "package.module:name"; ValueError, beginning with `what` it is, where it cannot be imported.

    Only a name that the user gives may come here, or one from a file that the user has consented to: importing runs
    the module's code.
    """
    module, _, path = name.partition(":")
    try:
        place = importlib.import_module(module)
    except FAILURES as error:
        raise ValueError(
            f"{what}: {name!r} cannot be imported ({type(error).__name__}: {error}). Install its package into "
            "this environment; of a file of your own put the folder on PYTHONPATH."
        ) from error
    try:
        return functools.reduce(getattr, path.split("."), place)
    except AttributeError:
        close = difflib.get_close_matches(path, dir(place), n=3)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"It has: {', '.join(_public(place))}."
        raise ValueError(f"{what}: the module {module} has no {path!r}. {hint}") from None


def _public(place: Any) -> list[str]:
    return sorted(key for key, value in vars(place).items() if callable(value) and not key.startswith("_"))[:20]


def e3nn() -> ModuleType:
    """e3nn-jax, when a model asks for spherical harmonics: it takes four seconds, which no other model needs."""
    return importlib.import_module("e3nn_jax")


def jax_md() -> ModuleType:
    """jax-md; its energies, neural networks and rigid bodies, of which lamjax needs none, are loaded on first use.

    Loading those takes five seconds, in which a computation is run, after which `jax.distributed.initialize` is no
    longer possible (jax-md 0.2.29).
    """
    if "jax_md" in sys.modules or (spec := importlib.util.find_spec("jax_md")) is None:
        return importlib.import_module("jax_md")
    package = importlib.util.module_from_spec(spec)
    made = {"jax_md": package}
    for name in SELDOM:
        seldom: Any = PathFinder.find_spec(f"jax_md.{name}", spec.submodule_search_locations)
        if seldom is not None:
            seldom.loader = importlib.util.LazyLoader(seldom.loader)
            made[seldom.name] = importlib.util.module_from_spec(seldom)
            seldom.loader.exec_module(made[seldom.name])
            setattr(package, name, made[seldom.name])  # so that jax-md's own imports leave it alone
    sys.modules.update(made)
    try:
        spec.loader.exec_module(package)
    except BaseException:
        for name in made:
            sys.modules.pop(name, None)
        raise
    return package
