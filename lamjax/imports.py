"""Imports that would take seconds, made short."""

import importlib.util
import sys
from importlib.machinery import PathFinder
from types import ModuleType

SELDOM = ("energy", "nn", "rigid_body", "elasticity")  # of jax-md, loaded when someone asks for something in them


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
        if (found := PathFinder.find_spec(f"jax_md.{name}", spec.submodule_search_locations)) is not None:
            found.loader = importlib.util.LazyLoader(found.loader)
            made[found.name] = importlib.util.module_from_spec(found)
            found.loader.exec_module(made[found.name])
            setattr(package, name, made[found.name])  # so that jax-md's own imports leave it alone
    sys.modules.update(made)
    try:
        spec.loader.exec_module(package)
    except BaseException:
        for name in made:
            sys.modules.pop(name, None)
        raise
    return package
