"""Crystals of a fine-tuning on properties: units of targets, what is refused, and batches that can be resumed."""

import dataclasses
import warnings
from pathlib import Path

import ase.build
import ase.io
import copper_crystals as copper
import many_body
import numpy as np
import pytest
import yaml

from lamjax.training.properties_config import TEMPLATE, PropertyTuneConfig, complete, read_config
from lamjax.training.properties_data import (
    column_batches,
    columns,
    crystal_batches,
    loss_on,
    n_batches,
    pack,
    read_crystals,
    read_sets,
)
from lamjax.training.properties_judge import HeldOut, judge

POTENTIAL = many_body.stillinger_weber()


def silicon(**info):
    atoms = ase.build.bulk("Si", "diamond", a=5.43)
    atoms.info |= info
    return atoms


def read(folder: Path, *frames, **changes):
    ase.io.write(folder / "some.extxyz", list(frames))
    config = read_config(None, {"base": "none", "crystals": [str(folder / "some.extxyz")], **changes})
    return config, read_crystals(config, config.crystals, POTENTIAL)


def test_units_are_those_of_keys_or_of_the_config(tmp_path):
    tensor = np.diag([166.0, 166, 166, 80, 80, 80])
    frames = [
        silicon(bulk_modulus_GPa=98.0, volume=40.0, lengths=[3.84] * 3),
        silicon(bulk_modulus_kbar=980.0, heat_capacity_eV_K=4e-4),
        silicon(bulk_modulus_eV_A3=0.6117, elastic_tensor=tensor.ravel()),
        silicon(REF_bulk_modulus_GPa=98.0),
        silicon(bulk_modulus_vrh=98.0, heat_capacity_per_atom_J_molK=19.8),
    ]
    _, crystals = read(tmp_path, *frames)
    for crystal in crystals:
        assert crystal.targets["bulk_modulus"] == pytest.approx(98.0, abs=0.01)
    assert crystals[1].targets["heat_capacity"] == pytest.approx(38.594, abs=1e-3)
    np.testing.assert_array_equal(crystals[2].targets["elastic_tensor"], tensor)
    _, (one,) = read(tmp_path, silicon(bulk_modulus=980.0), targets=[{"name": "bulk_modulus", "unit": "kbar"}])
    assert one.targets["bulk_modulus"] == pytest.approx(98.0)


WRONG = {
    "two": (
        {"bulk_modulus": 98.0, "bulk_modulus_kbar": 980.0},
        "given more than once: bulk_modulus, bulk_modulus_kbar",
    ),
    "too large": ({"bulk_modulus": 9.8e10}, "no crystal has.*kbar"),
    "another cell": ({"volume": 160.0}, "160 Å³, that of the structure as it is given 40.0.*per atom"),
    "lengths": ({"lengths": [3.84, 3.84, 38.4]}, "another unit"),
    "density": ({"density_kg_m3": 2.3}, "another unit"),
    "heat": ({"heat_capacity_per_atom": 47.0}, "3 k for each"),
    "cold": ({"heat_capacity": -1.0}, "between 0 and 49.89"),
    "shape": ({"elastic_tensor": [1.0, 2.0]}, "shape .6, 6"),
    "text": ({"bulk_modulus_GPa": "98 GPa"}, "bulk_modulus_GPa='98 GPa' is no number. The unit belongs into the key"),
    "no value": ({"bulk_modulus": -1.0}, "-1 GPa, which is not above 0"),
    "nothing": ({"band_gap": 1.1}, "no target in its info, which has band_gap"),
    "no supercell": ({"force_constants": "FORCE_CONSTANTS"}, "three whole numbers"),
    "another supercell": ({"force_constants": "FORCE_CONSTANTS", "supercell": [3, 1, 1]}, "of 8 atoms.*6"),
    "no file": ({"force_constants": "FC", "supercell": [2, 2, 1]}, "no such file"),
    "no constants": ({"force_constants": "some.extxyz", "supercell": [2, 2, 1]}, "not a file FORCE_CONSTANTS"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_targets_are_named(tmp_path, name):
    info, message = WRONG[name]
    copper.write_force_constants(tmp_path / "FORCE_CONSTANTS", 8)
    with pytest.raises(ValueError, match=rf"(?s)some.extxyz frame 0: .*{message}"):
        read(tmp_path, silicon(**info))


@pytest.mark.parametrize(("pbc", "kind"), [(False, "a molecule"), ((1, 1, 0), "a slab"), ((1, 0, 0), "a wire")])
def test_what_is_no_crystal_is_left_out_with_the_reason(tmp_path, pbc, kind):
    other = silicon(bulk_modulus=98.0)
    other.pbc = pbc
    with pytest.warns(UserWarning, match=f"(?s)Left out 1 structures.*frame 1.*{kind}"):
        _, crystals = read(tmp_path, silicon(bulk_modulus=98.0), other)
    assert len(crystals) == 1


@pytest.mark.parametrize(("value", "meant"), [(0.6, "bulk_modulus_eV_A3"), (980.0, "bulk_modulus_kbar")])
def test_magnitudes_of_another_unit_are_noticed(tmp_path, value, meant):
    with pytest.warns(UserWarning, match=f"half of the 2 targets.*{meant}"):
        read(tmp_path, silicon(bulk_modulus=value), silicon(bulk_modulus=1.1 * value))
    with warnings.catch_warnings(action="error"):  # one soft crystal among others is in order
        read(tmp_path, silicon(bulk_modulus=98.0), silicon(bulk_modulus=0.6), silicon(bulk_modulus=120.0))


def test_keys_that_look_like_targets_are_not_lost_without_a_word(tmp_path):
    with pytest.warns(UserWarning, match="Not read: bulk_modulus_Mbar"):
        read(tmp_path, silicon(bulk_modulus_Mbar=0.98, shear_modulus=66.0))


def test_sets_shapes_and_batches(tmp_path):
    """Groups are held out together; every epoch shows all; the order is a function of the number of batches alone."""
    carbon = ase.build.bulk("C", "diamond", a=5.3)
    frames = [silicon(bulk_modulus=90.0 + k) for k in range(5)] + [carbon, silicon().repeat((2, 1, 1))]
    for atoms in frames[5:]:
        atoms.info |= {"bulk_modulus": 95.0}
    config, _ = read(tmp_path, *frames, group_by="elements", hold_out=0.1, max_programs=2)
    sets = read_sets(config, POTENTIAL, POTENTIAL)
    kinds = [{crystal.info["elements"] for crystal in some} for some in (sets.train, sets.validation)]
    assert sorted(map(sorted, kinds)) == [["C"], ["Si"]]
    assert sets.loss.targets[0].scale == pytest.approx(0.1 * np.median([c.targets["bulk_modulus"] for c in sets.train]))
    (packed,) = pack(config, POTENTIAL, sets.loss, [read_crystals(config, config.crystals, POTENTIAL)])
    assert sorted(k for part in packed for k in part.members) == list(range(7))
    assert sorted(part.rows.start.numbers.shape[1] for part in packed) == [2, 4]
    n = n_batches(packed, 4)
    shown = crystal_batches(packed, 4, seed=3)
    epochs = [[next(shown) for _ in range(n)] for _ in range(2)]
    for epoch in epochs:
        values = sorted(v for b in epoch for v in b.targets["bulk_modulus"][b.weights["bulk_modulus"] > 0])
        assert values == [90, 91, 92, 93, 94, 95, 95]
    again = next(crystal_batches(packed, 4, seed=3, start=n + 1))
    np.testing.assert_array_equal(again.targets["bulk_modulus"], epochs[1][1].targets["bulk_modulus"])
    empty = [b for b in epochs[0] if (b.start.numbers == 0).all(axis=1).any()]
    assert empty and all(np.isfinite(b.start.positions).all() for b in empty)


def test_every_crystal_is_judged_by_its_own_properties(tmp_path):
    """Also where a batch is filled up; nothing moves with so large a limit on the forces."""
    volumes = [a**3 / 8 for a in (5.2, 5.43, 5.6)]
    frames = [silicon(volume_per_atom_A3=volume) for volume in volumes]
    for atoms, volume in zip(frames, volumes, strict=True):
        atoms.set_cell(atoms.cell * (volume * len(atoms) / atoms.get_volume()) ** (1 / 3), scale_atoms=True)
    config, crystals = read(tmp_path, *frames, relax={"fmax": 1e3}, targets=[{"name": "volume_per_atom"}])
    loss = loss_on(config, crystals)
    (packed,) = pack(config, POTENTIAL, loss, [crystals])
    judgement = judge(POTENTIAL, POTENTIAL.init(), HeldOut(crystals, packed, loss, batch_size=2))
    np.testing.assert_allclose(judgement["volume_per_atom"], volumes, rtol=1e-5)
    assert judgement["converged"].all() and np.abs(judgement["error"]).max() < 1e-3


def test_columns_of_force_constants(tmp_path):
    copper.write_force_constants(tmp_path / "FORCE_CONSTANTS", 4, stiffness=8.0)
    lone = ase.Atoms("Si", cell=[2.6] * 3, pbc=True)
    lone.info |= {"force_constants": "FORCE_CONSTANTS", "supercell": [2, 2, 1]}
    _, crystals = read(tmp_path, lone)
    known = columns(crystals, POTENTIAL)
    batch = next(column_batches(known, 3, 1, seed=0))
    assert batch.directions.shape == (1, 3, 4, 3) and np.all(batch.directions[0, :, 0].sum(axis=1) == 1)
    np.testing.assert_allclose(batch.products[0, :, 0], 8 * batch.directions[0, :, 0])
    np.testing.assert_allclose(batch.products[0].sum(axis=1), 0, atol=1e-12)
    again = next(column_batches(known, 3, 1, seed=0, start=0))
    np.testing.assert_array_equal(again.directions, batch.directions)


def test_the_template_holds_the_defaults():
    content = yaml.safe_load(TEMPLATE)
    assert set(content) == {field.name for field in dataclasses.fields(PropertyTuneConfig)}
    needed = {"base": content["base"], "crystals": content["crystals"]}
    assert read_config(None, content) == read_config(None, needed) == PropertyTuneConfig(**needed)
    assert complete({"relax": {"fmax": 0.01}})["relax"] == {"fmax": 0.01, "max_steps": 500, "cell": {}}
