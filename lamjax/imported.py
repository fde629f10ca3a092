"""Potentials of a user's own, called package.module:factory: made, named in files, and imported with consent alone."""

import json
import re
from collections.abc import Iterable
from typing import Any, ClassVar

import jax
import numpy as np
import yaml

from lamjax import imports
from lamjax.arguments import describe
from lamjax.config import configuration
from lamjax.factories import factory
from lamjax.potential import DEFAULT_HEAD, CheckpointError, Params, Potential

WHAT = "potential"
EXAMPLE = "package.module:factory,depth=0.5"

_made: dict["FactoryConfig", tuple[Potential, Any]] = {}  # results of the functions
_trusted: set[str] = set()  # functions that files may name: those that the user has named in this process


class FactoryError(ValueError):
    """A function cannot be imported, or makes no potential."""


@configuration
class FactoryConfig:
    """The function that makes a potential, "package.module:factory", and its keyword arguments as JSON."""

    factory: str
    options: str = "{}"
    head_names: ClassVar[tuple[str, ...]] = (DEFAULT_HEAD,)
    heads: ClassVar = ((DEFAULT_HEAD, None),)

    def __str__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in json.loads(self.options).items())
        return f"{self.factory}({given})"

    @property
    def elements(self) -> tuple[str, ...] | None:
        """The elements of the potential; None: all. Its function is called, if it was not yet."""
        return _opened(self)[0].elements

    @property
    def type(self) -> str:
        """The name that is printed as the kind of the potential."""
        return self.factory


def is_factory(name: str) -> bool:
    """Whether a model is named as "package.module:factory", perhaps with options: "package.module:factory,n=9"."""
    return imports.is_named(_parts(name)[0])


def parse(name: str) -> FactoryConfig:
    """The config of "package.module:factory,KEY=VALUE,..."; values are YAML. ValueError for what is no KEY=VALUE."""
    factory, *given = _parts(name)
    options: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key.strip().isidentifier():
            raise ValueError(f"{name}: {one!r} is no option KEY=VALUE of {factory}. Write it as in {EXAMPLE}.")
        if key.strip() in options:
            raise ValueError(f"{name}: the option {key.strip()} is given twice.")
        try:
            options[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{name}: the value {value!r} of {key.strip()} is no YAML.") from error
    return FactoryConfig(factory, _json(options, name))


def trust(names: Iterable[str]) -> None:
    """Let files name these functions, package.module:factory, until the process ends."""
    for name in names:
        factory = _parts(name)[0]
        if not imports.is_named(factory):
            raise ValueError(f"trust: {name!r} is no function to import. Name it as package.module:factory.")
        _trusted.add(factory)


def check_trusted(config: FactoryConfig, path: Any) -> None:
    """CheckpointError unless the user has named the function that a file wants; nothing is imported before."""
    if config.factory not in _trusted:
        raise CheckpointError(
            f"{path}: the energy is computed by code that is not in the file, {config}. It was not imported, because a "
            "file must not choose what is run. If you know that code and trust it, name it yourself: lamjax.load(path, "
            f"trust={config.factory!r}), in a command --trust {config.factory}."
        )


@factory
def potential_of(config: FactoryConfig) -> Potential:
    """The potential of a config. Its parameters have the form of all models: the user's are `Params.descriptor`.

    The function is imported and called: the user has named it, or trusts it. ValueError for what is no potential.
    """
    own, _ = _opened(config)

    def init(key: Any, dtype: Any = None) -> Params:
        return Params(own.init(key, dtype), {DEFAULT_HEAD: {}})

    def atomic_energies(params: Params, system: Any, neighbors: Any) -> Any:
        return own.atomic_energies(params.descriptor, system, neighbors)

    for stated in ("finite_alone", "forward_over_reverse"):
        setattr(atomic_energies, stated, getattr(own.atomic_energies, stated, False))
    return own._replace(config=config, init=init, atomic_energies=atomic_energies, head=DEFAULT_HEAD)


def first_params(config: FactoryConfig) -> Params:
    """The parameters that come with the potential of a config, else those that its `init` draws with the key 0."""
    return Params(_opened(config)[1], {DEFAULT_HEAD: {}})


def _opened(config: FactoryConfig) -> tuple[Potential, Any]:
    """The potential as its function makes it, and parameters (numpy); the function is called once."""
    if config not in _made:
        made = _called(config)
        own, params = made if type(made) is tuple and len(made) == 2 else (made, None)
        if not isinstance(own, Potential):
            raise FactoryError(
                f"{WHAT}: {config} is {describe(made)}. A factory returns a lamjax.Potential, or a pair of it and its "
                "parameters; docs/how-to/bring-your-own.md shows one."
            )
        params = own.init(jax.random.key(0)) if params is None else params
        _made[config] = own, _numbers(params, config)
        _trusted.add(config.factory)
    return _made[config]


def _called(config: FactoryConfig) -> Any:
    options = json.loads(config.options)
    try:
        named = imports.named(config.factory, WHAT)
    except ValueError as error:
        raise FactoryError(str(error)) from error
    if isinstance(named, Potential):
        if options:
            raise FactoryError(f"{WHAT}: {config.factory} is a potential, not a function: it takes no options.")
        return named
    if not callable(named):
        raise FactoryError(f"{WHAT}: {config.factory} is {describe(named)}. Name a function that returns a potential.")
    try:
        return named(**options)
    except imports.FAILURES as error:
        raise FactoryError(
            f"{WHAT}: {config} fails ({type(error).__name__}: {error}). Options are the keyword arguments of the "
            f"function, as in {EXAMPLE}."
        ) from error


def _numbers(params: Any, config: FactoryConfig) -> Any:
    """The parameters as arrays; ValueError for leaves that are no numbers."""
    for leaf in jax.tree.leaves(params):
        if not isinstance(leaf, np.ndarray | np.generic | jax.Array | int | float) or np.asarray(leaf).dtype == object:
            raise FactoryError(
                f"{WHAT}: the parameters of {config} hold {describe(leaf)}. They are arrays of numbers, in "
                "dictionaries, lists or other pytrees."
            )
    return jax.tree.map(np.asarray, params)


def _parts(name: str) -> list[str]:
    """The parts between the commas that are not within brackets."""
    return [part.strip() for part in re.split(r",(?![^\[{(]*[\]})])", str(name))]


def _json(options: dict[str, Any], name: str) -> str:
    try:
        return json.dumps(options, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: options are numbers, texts, lists of them, true or false ({error}).") from error
