"""What a potential's functions hold of the program around them, as parameters.

The rules by which a relaxation is differentiated are used when the program around it has been traced already. A value
of that program that a potential refers to, other than by its parameters, would no longer be there.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from lamjax.factories import Made
from lamjax.neighbors import verlet
from lamjax.potential import Potential
from lamjax.potential import atomic_energies as evaluate
from lamjax.relaxation import landscape
from lamjax.relaxation.landscape import Landscape


def explicit(potential: Potential, params, there: Landscape, z, lists, capacities: tuple[int, ...]):
    """Potential and parameters as they are, or, if it refers to traced values, with these among the parameters.

    It can then be evaluated in these shapes alone.
    """
    function = potential.atomic_energies
    if isinstance(function, Made) and function.is_plain:
        return potential, params

    def now(z, lists):
        here = landscape.place(there, z)
        around = jax.vmap(lambda v, s: verlet.narrow(v, s, potential.shells, capacities))(lists, here)
        return landscape.in_a_row(here, around)

    program = jax.make_jaxpr(partial(evaluate, potential))(params, *jax.eval_shape(now, z, lists))
    if not any(isinstance(x, jax.core.Tracer) for x in program.consts):
        return potential, params
    kinds = [jnp.asarray(x).dtype for x in program.consts]

    def atomic_energies(both, system, neighbors):
        params, held = both
        consts = [_as(x, kind) for x, kind in zip(held, kinds, strict=True)]
        evaluate = jaxpr_as_fun(ClosedJaxpr(program.jaxpr, consts))
        return evaluate(*jax.tree.leaves((params, system, neighbors)))[0]

    atomic_energies.finite_alone = True
    return potential._replace(atomic_energies=atomic_energies), (params, [_floating(x) for x in program.consts])


def _floating(x):
    """Numbers of any kind as floating ones, of which a derivative (of zero) may be asked."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if x.dtype.itemsize < 4:
        return x.astype(jnp.float32)
    return jax.lax.bitcast_convert_type(x, {4: jnp.float32, 8: jnp.float64}[x.dtype.itemsize])


def _as(x, kind):
    """The inverse of `_floating`."""
    if x.dtype == kind:
        return x
    return x.astype(kind) if kind.itemsize < 4 else jax.lax.bitcast_convert_type(x, kind)
