"""DPA-2 and NequIP of many atoms are evaluated some atoms at a time: the same numbers in less memory."""

import sys

import jax
import numpy as np
import potentials
import pytest
import structures

import lamjax
from lamjax.descriptors.dpa2 import repformer

nequip = sys.modules[lamjax.descriptors.nequip.__module__]
SIZES = {"dpa2_preset": (repformer, 3), "dpa2_default": (repformer, 3), "nequip": (nequip, None)}


@pytest.mark.parametrize("name", SIZES)
def test_atoms_in_blocks_give_the_same_numbers(name, monkeypatch):
    """All atoms in blocks of three, of which the last is not full; gradients by the parameters, too."""
    case = potentials.cases()[name]
    system, lists = potentials.prepare(case.potential, structures.triclinic())
    module, n_atoms = SIZES[name]

    def programs(size: int):
        monkeypatch.setitem(module.BLOCK, "cpu", size)

        def loss(params):
            prediction = lamjax.predict(case.potential, params, system, lists)
            return (prediction.forces**2).sum(), prediction

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(case.params)

    whole, blocks = (programs(size) for size in (10**6, n_atoms or 3 * lists.indices.shape[1]))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * max(1, np.abs(a).max()))
    assert system.n_atoms % 3


def test_memory_of_many_atoms_is_that_of_a_block():
    """What XLA plans for four times the atoms of a block, in blocks, is not four times as much."""
    case = potentials.cases()["dpa2_preset"]
    system, lists = potentials.prepare(case.potential, structures.triclinic(), n_atoms=64)

    def planned(size: int) -> int:
        repformer.BLOCK["cpu"], before = size, repformer.BLOCK["cpu"]
        run = jax.jit(lambda *given: lamjax.predict(case.potential, *given))
        memory = run.lower(case.params, system, lists).compile().memory_analysis()
        repformer.BLOCK["cpu"] = before
        return memory.temp_size_in_bytes

    assert planned(8) < 0.6 * planned(64)
