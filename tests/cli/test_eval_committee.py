"""`lamjax eval --committee`: the force deviation of stored members, frame by frame."""

import ase.io
import numpy as np
import potentials
import pytest
import structures
import students
from invoke import invoke

import lamjax


def run(*arguments):
    return invoke("eval", *arguments, COLUMNS="120")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two members, a model of another config, and two frames."""
    folder = tmp_path_factory.mktemp("committee")
    case = students.case()
    for seed in (1, 2):
        lamjax.save(folder / f"{seed}.lamjax", case.potential, potentials.random_params(case.potential, seed, 0.0))
    lamjax.save(folder / "other.lamjax", *lamjax.edit.restrict_elements(case.potential, case.params, ["O", "H"]))
    ase.io.write(folder / "frames.extxyz", [structures.triclinic(), structures.water_box()])
    return folder


def test_deviation_of_every_frame(folder):
    options = ("--committee", folder / "2.lamjax", "--precision", "float64")
    for out in ("out.extxyz", "out.npz"):
        code, output, error = run(folder / "1.lamjax", folder / "frames.extxyz", *options, "--out", folder / out)
        assert code == 0 and "committee of 2" in output, error
    wanted = []
    for atoms in ase.io.read(folder / "frames.extxyz", ":"):
        forces = []
        for seed in (1, 2):
            atoms.calc = lamjax.Calculator(folder / f"{seed}.lamjax")
            forces.append(atoms.get_forces())
        wanted.append(np.linalg.norm(forces[0] - forces[1], axis=1).max() / 2)
    np.testing.assert_allclose(
        [a.info["deviation"] for a in ase.io.read(folder / "out.extxyz", ":")], wanted, rtol=1e-8
    )
    with np.load(folder / "out.npz") as arrays:
        np.testing.assert_allclose(arrays["deviation"], wanted, rtol=1e-8)


def test_members_of_another_config_are_refused(folder):
    code, _, error = run(folder / "1.lamjax", folder / "frames.extxyz", "--committee", folder / "other.lamjax")
    assert code == 1 and "not of the same elements" in str(error)
