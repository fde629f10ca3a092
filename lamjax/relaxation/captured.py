"""Arrays that a potential's functions capture from the program around them, as parameters.

The rules by which a relaxation is differentiated are used when the program around it has been traced already. A value
of that program that a potential refers to, other than by its parameters, would no longer be there.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, PyTree

from lamjax.factories import Made
from lamjax.neighbors.verlet import Verlet
from lamjax.potential import atomic_energies as evaluate
from lamjax.relaxation.layouts import Padded
from lamjax.relaxation.surface import Surface, in_a_row


def explicit(surface: Surface, params: PyTree, layout: Padded, lists: Verlet) -> tuple[Surface, Any]:
    """Surface and parameters as they are, or, if the potential refers to traced values, with these as parameters.

    It can then be evaluated in these shapes alone.
    """
    potential = surface.potential
    function = potential.atomic_energies
    if isinstance(function, Made) and function.is_plain:
        return surface, params

    def arguments(z, lists):
        return in_a_row(surface.place(z), layout.neighbors(surface, lists, z))

    program = jax.make_jaxpr(partial(evaluate, potential))(params, *jax.eval_shape(arguments, surface.start(), lists))
    if not any(isinstance(x, jax.core.Tracer) for x in program.consts):
        return surface, params
    kinds = [jnp.asarray(x).dtype for x in program.consts]

    def atomic_energies(both, system, neighbors):
        params, held = both
        consts = [_as(x, kind) for x, kind in zip(held, kinds, strict=True)]
        evaluate = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))
        return evaluate(*jax.tree.leaves((params, system, neighbors)))[0]

    atomic_energies.finite_alone = True
    potential = potential._replace(atomic_energies=atomic_energies)
    return dataclasses.replace(surface, potential=potential), (params, [_floating(x) for x in program.consts])


def _floating(x: Array) -> Array:
    """Numbers of any kind as floating ones, of which a derivative (of zero) may be asked."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if x.dtype.itemsize < 4:
        return x.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(x, {4: jnp.float32, 8: jnp.float64}[x.dtype.itemsize])


def _as(x: Array, kind: np.dtype) -> Array:
    """The inverse of `_floating`."""
    if x.dtype == kind:
        return x
    return x.astype(kind) if kind.itemsize < 4 else jax.lax.bitcast_convert_type(x, kind)
