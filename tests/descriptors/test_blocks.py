"""DPA-2 of many atoms is evaluated some atoms at a time: the same numbers in less memory."""

import jax
import numpy as np
import potentials
import pytest
import structures

import lamjax
from lamjax.descriptors.dpa2 import repformer


@pytest.mark.parametrize("name", ["dpa2_preset", "dpa2_default"])
def test_atoms_in_blocks_give_the_same_numbers(name, monkeypatch):
    """All atoms in blocks of five, of which the last is not full."""
    case = potentials.cases()[name]
    system, lists = potentials.prepare(case.potential, structures.triclinic())
    whole = potentials.compiled(case.potential)(case.params, system, lists)
    monkeypatch.setitem(repformer.BLOCK, "cpu", 5)
    blocks = jax.jit(lambda *given: lamjax.predict(case.potential, *given))(case.params, system, lists)
    for a, b in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-12 * max(1, np.abs(a).max()))
    assert system.n_atoms % 5


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
