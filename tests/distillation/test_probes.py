"""Hessian-vector products go with the labels, through the file, to the places of their atoms in a batch."""

import ase.build
import ase.io
import numpy as np

import lamjax
from lamjax import classical, data
from lamjax.data import from_atoms
from lamjax.distillation import PotentialLabeller
from lamjax.distillation.probes import with_probes
from lamjax.losses import force_change

MORSE = classical.morse(depth=0.34, width=1.36, distance=2.87, cutoff=4.5)


def test_products_reach_their_atoms(tmp_path):
    asked = []
    for seed in range(3):
        atoms = ase.build.bulk("Cu", cubic=True) * (1 + seed % 2, 1, 1)
        atoms.rattle(0.1, seed=seed)
        asked.append(atoms)
    labeller = PotentialLabeller(MORSE, MORSE.init(), dtype=np.float64, probes=True)
    ase.io.write(tmp_path / "labelled.extxyz", list(labeller.label(asked, tmp_path)))
    frames = [from_atoms(atoms) for atoms in ase.io.read(tmp_path / "labelled.extxyz", ":")]
    frames.append(from_atoms(asked[0]))  # has none
    packed = data.pack(frames, data.plan(frames, MORSE.shells, 1))
    (batch,) = data.batches(packed, 4, seed=3, epochs=1)
    probed = with_probes(batch, frames)
    for k, frame in enumerate(frames):
        (place,) = np.argwhere(batch.frame == k)
        mine = (batch.system.structure[place[0]] == place[1]) & (batch.system.numbers[place[0]] > 0)
        v, product = probed.directions[place[0], mine], probed.products[place[0], mine]
        if k == 3:
            assert not v.any() and not product.any()
            continue
        assert 0.3 < np.std(v) < 2
        lists = lamjax.allocate(MORSE, frame.system)
        np.testing.assert_allclose(product, force_change(MORSE, MORSE.init(), frame.system, lists, v), atol=1e-6)
    assert not np.array_equal(probed.directions[0, :4], probed.directions[0, 4:8])
