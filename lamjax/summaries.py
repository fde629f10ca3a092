"""One line for what would print as pages of arrays: a potential, its parameters, structures, relaxations.

Only the names of fields are known here, no class: each class prints itself with one of these.
"""

from typing import Any

import ase
import jax
import numpy as np
from jax.core import Tracer


def of_potential(potential: Any) -> str:
    """`DPA-2, 3 layers, 89 elements, cutoff 6 Å, heads: PBE, r2SCAN (PBE is used)`."""
    config = potential.config
    kind = getattr(getattr(config, "descriptor", config), "type", None)
    named = isinstance(kind, str)
    parts = [kind.replace("dpa", "DPA-").replace("nequip", "NequIP") if named else str(config).partition("(")[0]]
    for block in (_block(config, "repformer"), _block(config, "repflow")):
        parts += [f"{block.nlayers} layers"] if hasattr(block, "nlayers") else []
    known = potential.elements
    parts.append("all elements" if known is None else _several(len(known), "element"))
    if known is not None and len(known) <= 10:
        parts[-1] = "-".join(known)
    parts.append(f"cutoff {potential.shells[0].cutoff:g} Å")
    return f"<{', '.join([*parts, *_heads(potential)])}>"


def of_params(params: Any) -> str:
    """`1,234,567 parameters (float32): descriptor 1,000,000; heads PBE, r2SCAN`."""
    leaves = [leaf for leaf in jax.tree.leaves(tuple(params)) if hasattr(leaf, "shape")]
    kinds = sorted({str(leaf.dtype) for leaf in leaves if hasattr(leaf, "dtype")})
    heads = ", ".join(params.heads) if isinstance(params.heads, dict) else "-"
    return (
        f"<{_count(leaves):,} parameters ({', '.join(kinds) or 'no numbers'}): descriptor "
        f"{_count(jax.tree.leaves(params.descriptor)):,}; heads {heads}>"
    )


def of_system(system: Any) -> str:
    """`Si8, 8 atoms, periodic along a b c, 160.1 Å³`; of a batch or inside jit, shapes alone."""
    if not is_known(system.numbers, system.cell, system.pbc) or np.ndim(system.numbers) != 1:
        return f"<System, arrays {_shape(system.positions)}>"
    numbers = np.asarray(system.numbers)
    real = numbers > 0
    formula = ase.Atoms(numbers[real]).get_chemical_formula("metal") or "no atoms"
    padding = f" and {np.sum(~real)} of padding" if np.any(~real) else ""
    parts = [formula, _several(int(real.sum()), "atom") + padding]
    if system.structure is not None:
        return f"<System, {', '.join([*parts, _several(np.shape(system.cell)[0], 'structure')])}>"
    axes = " ".join(name for name, periodic in zip("abc", np.asarray(system.pbc), strict=True) if periodic)
    parts.append(f"periodic along {axes}" if axes else "not periodic")
    if axes == "a b c":
        parts.append(f"{abs(np.linalg.det(np.asarray(system.cell, np.float64))):.4g} Å³")
    return f"<System, {', '.join(parts)}>"


def of_relaxation(relaxed: Any) -> str:
    """`converged after 23 steps: -10.84 eV, fmax 0.015 eV/Å, Si8`; of a batch how many of them have converged."""
    if not is_known(relaxed.energy, relaxed.converged, relaxed.n_steps, relaxed.fmax):
        return f"<Relaxation, energies {_shape(relaxed.energy)}>"
    converged, steps = np.asarray(relaxed.converged), np.asarray(relaxed.n_steps)
    if converged.ndim:
        return f"<Relaxation, {np.sum(converged)} of {converged.size} converged, at most {steps.max(initial=0)} steps>"
    outcome = "converged" if converged else "not finite" if not np.asarray(relaxed.finite) else "not converged"
    end = f"{float(relaxed.energy):.6g} eV, fmax {float(relaxed.fmax):.2g} eV/Å"
    structure = of_system(relaxed.system)[1:-1].removeprefix("System, ")
    return f"<Relaxation, {outcome} after {steps} steps: {end}, {structure}>"


def is_known(*arrays: Any) -> bool:
    """True if these are numbers and not what jit, vmap or eval_shape put in their place."""
    return all(isinstance(x, np.ndarray | np.generic | jax.Array | bool | int | float) for x in arrays) and not any(
        isinstance(x, Tracer) or getattr(x, "is_deleted", bool)() for x in arrays
    )


def _block(config: Any, name: str) -> Any:
    return getattr(getattr(config, "descriptor", None), name, None)


def _heads(potential: Any) -> list[str]:
    names = getattr(potential.config, "head_names", ())
    if len(names) < 2:
        return [f"head {name}" for name in names]
    used = "none chosen" if potential.head is None else f"{potential.head} is used"
    return [f"heads: {', '.join(names)} ({used})"]


def _count(leaves: list) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in leaves if hasattr(leaf, "shape"))


def _several(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _shape(array: Any) -> str:
    return f"of shape {tuple(array.shape)}" if hasattr(array, "shape") else f"{type(array).__name__}"
