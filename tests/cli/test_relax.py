"""`lamjax relax` as a user types it: what it writes, what it survives, and how it goes on."""

import csv
import gzip
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase
import ase.build
import ase.io
import jax
import numpy as np
import pytest
from ase.constraints import FixAtoms, FixCartesian
from invoke import invoke
from pages import read_page

import lamjax
from lamjax import files
from lamjax.cli import relax_records
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.potential import PotentialConfig
from lamjax.relaxation.stream import Outcome
from lamjax.system import fixed_components

ASSETS = Path(lamjax.__file__).parent / "assets" / "demo"
BASE = ASSETS / "base.lamjax"
COMMAND = [sys.executable, "-c", "from lamjax.cli import main; main()", "relax"]


def run(*arguments):
    """The command in this process; (exit code, output, exception)."""
    return invoke("relax", *arguments)


def table_of(out: Path) -> list[dict[str, str]]:
    """The lines of the table beside an output."""
    with open(out.with_suffix(".csv"), newline="") as file:
        return list(csv.DictReader(file))


def crystals(n: int = 6) -> list[ase.Atoms]:
    collected = []
    for seed in range(n):
        atoms = ase.build.bulk("Si", "diamond", a=5.4, cubic=seed % 2 == 0)
        atoms.rattle(0.1, seed=seed)
        atoms.info["name"] = f"crystal {seed}"
        collected.append(atoms)
    return collected


def test_records_hold_energy_forces_stress_outcome_and_constraints(tmp_path):
    starts = crystals(2)
    starts[0].set_constraint([FixAtoms([0, 1]), FixCartesian([2], [True, False, False])])
    starts[1].info |= {"REF_energy": -1.0, "labelled_by": "DFT"}
    ase.io.write(tmp_path / "first.extxyz", starts[0])
    ase.io.write(tmp_path / "second.cif", starts[1])
    defect = ase.io.read(gzip.open(ASSETS / "si_defects_heldout.extxyz.gz", "rt"), index=0, format="extxyz")
    ase.io.write(tmp_path / "third.extxyz", [defect, starts[1]])
    files = [tmp_path / name for name in ("first.extxyz", "second.cif", "third.extxyz")]
    out = tmp_path / "deep" / "relaxed.extxyz"
    code, output, _ = run(BASE, *files, "--out", out, "--max-steps", 4)
    assert code == 0, output
    structures = {atoms.info["source"]: atoms for atoms in ase.io.read(out, ":")}
    assert set(structures) == {f"{files[0]}#0", f"{files[1]}#0", f"{files[2]}#0", f"{files[2]}#1"}
    first, other = structures[f"{files[0]}#0"], structures[f"{files[2]}#1"]
    assert first.info["n_steps"] == 4 and not first.info["converged"] and first.info["finite"]
    np.testing.assert_array_equal(first.positions[:2], np.round(starts[0].positions[:2], 8))
    np.testing.assert_array_equal(fixed_components(first), fixed_components(starts[0]))
    assert not {"REF_energy", "labelled_by"} & other.info.keys() and other.info["name"] == "crystal 1"
    calculator = lamjax.Calculator(BASE, dtype="float32")
    atoms = other.copy()
    atoms.calc = calculator
    assert other.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
    np.testing.assert_allclose(other.get_stress(), atoms.get_stress(), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(other.get_forces(), axis=1).max(), other.info["fmax"], rtol=1e-4)
    assert "not converged" in output and "steps, median and most" in output
    way = np.linalg.norm(first.positions - starts[0].positions, axis=1).max()
    assert first.info["moved"] == pytest.approx(way, abs=1e-6) and "volume_change" not in first.info
    assert out.with_suffix(".png").stat().st_size > 10_000
    page = read_page(out.with_suffix(".html"))
    assert [[view["label"][:7] for view in pair] for pair in page.structures["pairs"]] == [["start", "relaxed"]] * 4


def test_what_is_bad_is_reported_and_the_rest_goes_on(tmp_path):
    (tmp_path / "broken.cif").write_text("this is no crystal")
    gold, good = ase.build.bulk("Au"), crystals(1)[0]
    double = good.copy()
    double.positions[1] = double.positions[0]
    ase.io.write(tmp_path / "mixed.extxyz", [gold, good, double])
    with open(tmp_path / "mixed.extxyz", "a") as file:
        file.write("1\n\nX 0 0 0\n")
        ase.io.write(file, good, format="extxyz")
    out = tmp_path / "relaxed.extxyz"
    files = [tmp_path / "broken.cif", tmp_path / "nowhere.cif", tmp_path / "mixed.extxyz"]
    code, output, _ = run(BASE, *files, "--out", out, "--max-steps", 1)
    assert code == 0, output
    flat = " ".join(output.split())
    for message in (
        "broken.cif",
        "nowhere.cif",
        "Au is not in",
        "two atoms on one place",
        "failed before the first step",
    ):
        assert message in flat
    first, kept, last, unread, after = ase.io.read(out, ":")  # frame by frame what was given
    assert len(unread) == 0 and unread.info["failed"] and "'X' is no chemical element" in unread.info["error"]
    assert after.info["source"].endswith("mixed.extxyz#4") and "failed" not in after.info
    assert kept.info["source"].endswith("mixed.extxyz#1") and kept.info["number"] == 1 and "failed" not in kept.info
    for atoms, start, message in ((first, gold, "Au is not in"), (last, double, "two atoms on one place")):
        assert atoms.info["failed"] and message in atoms.info["error"] and not atoms.info["converged"]
        assert atoms.calc is None and not np.isfinite(atoms.info["fmax"])
        assert atoms.symbols.get_chemical_formula() == start.symbols.get_chemical_formula()
        np.testing.assert_allclose(atoms.positions, start.positions, atol=1e-8)
    rows = table_of(out)
    assert [row["name"][-1] for row in rows] == [row["number"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["energy"] != "" for row in rows] == [False, True, False, False, True]
    assert rows[2]["error"] == last.info["error"] and rows[1]["error"] == "" and rows[1]["steps"] == "1"


def test_neighbours_that_the_model_drops_are_counted(tmp_path):
    """Of two structures the dense one has more than three neighbours within 3.2 Å."""
    descriptor = DPA1Config(rcut=3.2, rcut_smth=0.5, sel=3, neuron=(2, 4), axis_neuron=2, tebd_dim=2)
    potential = lamjax.build(PotentialConfig(("Si",), descriptor, (("Default", EnergyHeadConfig(neuron=(4,))),)))
    lamjax.save(tmp_path / "model.lamjax", potential, potential.init(jax.random.key(0), np.float64))
    pair = ase.Atoms("Si2", [(0, 0, 0), (2.3, 0, 0)], cell=np.eye(3) * 8, pbc=True)
    ase.io.write(tmp_path / "both.extxyz", [pair, crystals(1)[0]])
    out = tmp_path / "relaxed.extxyz"
    code, output, _ = run(tmp_path / "model.lamjax", tmp_path / "both.extxyz", "--out", out, "--max-steps", 2)
    assert code == 0, output
    assert "had neighbours beyond the model's sel │ 1" in " ".join(output.split())
    assert {a.info["number"]: bool(a.info["truncated"]) for a in ase.io.read(out, ":")} == {0: False, 1: True}


def test_nothing_to_relax_is_an_error_that_says_why(tmp_path):
    ase.io.write(tmp_path / "gold.extxyz", ase.build.bulk("Au"))
    _, _, error = run(BASE, tmp_path / "gold.extxyz", "--out", tmp_path / "o.extxyz")
    assert isinstance(error, ValueError) and "gold.extxyz" in str(error) and "Au" in str(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pressure", "1"], "add --cell"),
        (["--processes", "2"], "give both"),
        (["--processes", "2", "--process", "2"], "numbered from 0"),
        (["--out", "there.extxyz"], "there.extxyz exists"),
        (["--out", "foreign.extxyz", "--resume"], "not written by"),
        (["--out", "text.extxyz", "--resume"], "not written by"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    ase.io.write("start.extxyz", crystals(1))
    ase.io.write("foreign.extxyz", crystals(1))
    for name in ("there.extxyz", "text.extxyz"):
        Path(name).write_text("something of value\n")
    _, _, error = run(BASE, "start.extxyz", *arguments)
    assert isinstance(error, ValueError) and message in str(error)
    assert Path("text.extxyz").read_text() == "something of value\n"
    assert len(ase.io.read("foreign.extxyz", ":")) == 1


def test_variable_cell_and_pressure_are_those_of_the_library(tmp_path):
    ase.io.write(tmp_path / "start.extxyz", crystals(2))
    common = [BASE, tmp_path / "start.extxyz", "--max-steps", 8, "--cell"]
    code, output, _ = run(*common, "--out", tmp_path / "free.extxyz")
    assert code == 0, output
    assert run(*common, "--out", tmp_path / "pressed.extxyz", "--pressure", 30, "--keep", "shape")[0] == 0
    free, pressed = (ase.io.read(tmp_path / f"{name}.extxyz", ":") for name in ("free", "pressed"))
    start = {atoms.info["name"]: atoms for atoms in crystals(2)}
    by_name = {atoms.info["name"]: atoms for atoms in free}
    for atoms in pressed:
        before = start[atoms.info["name"]]
        assert atoms.get_volume() < by_name[atoms.info["name"]].get_volume()
        np.testing.assert_allclose(atoms.cell.angles(), before.cell.angles(), atol=1e-5)
        change = atoms.get_volume() / before.get_volume() - 1
        assert atoms.info["volume_change"] == pytest.approx(change, abs=1e-6)
        way = atoms.positions - before.get_scaled_positions(wrap=False) @ atoms.cell.array
        assert atoms.info["moved"] == pytest.approx(np.linalg.norm(way, axis=1).max(), abs=1e-6)


def test_a_killed_run_goes_on_to_the_same_set_of_results(tmp_path):
    """kill -9 in the middle; then the last record is cut by hand, too."""
    ase.io.write(tmp_path / "start.extxyz", crystals(14))
    arguments = [str(BASE), "start.extxyz", "--max-steps", "40", "--fmax", "0.05", "--slots", "2"]
    environment = dict(os.environ, PYTHONUNBUFFERED="1", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "programs"))
    whole = subprocess.run(
        [*COMMAND, *arguments, "--out", "whole.extxyz"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert whole.returncode == 0, whole.stdout + whole.stderr
    out = tmp_path / "killed.extxyz"
    command = [*COMMAND, *arguments, "--out", out.name]
    running = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    while not (out.exists() and out.stat().st_size > 0):
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    written = out.read_bytes()
    out.write_bytes(written[:-37])  # a record cut short
    resumed = subprocess.run([*command, "--resume"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    expected = {atoms.info["source"]: atoms for atoms in ase.io.read(tmp_path / "whole.extxyz", ":")}
    structures = ase.io.read(out, ":")
    assert sorted(a.info["source"] for a in structures) == sorted(expected)
    for atoms in structures:
        other = expected[atoms.info["source"]]
        assert atoms.get_potential_energy() == pytest.approx(other.get_potential_energy(), abs=1e-3)
        assert atoms.info["number"] == other.info["number"]
    again = subprocess.run([*command, "--resume"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0 and out.read_bytes() and "done before" in again.stdout


def test_processes_share_the_structures(tmp_path):
    ase.io.write(tmp_path / "start.extxyz", crystals(5))
    out = tmp_path / "relaxed.extxyz"
    for process in (0, 1):
        share = ["--processes", 2, "--process", process]
        assert run(BASE, tmp_path / "start.extxyz", "--out", out, "--max-steps", 1, *share)[0] == 0
    numbers = [[a.info["number"] for a in ase.io.read(tmp_path / f"relaxed.{k}.extxyz", ":")] for k in (0, 1)]
    assert [sorted(n) for n in numbers] == [[0, 2, 4], [1, 3]]
    assert relax_records.parts(out) == [tmp_path / "relaxed.0.extxyz", tmp_path / "relaxed.1.extxyz"]
    code, output, _ = run(BASE, tmp_path / "start.extxyz", "--out", out, "--max-steps", 1, "--resume")
    assert code == 0 and "done before" in output  # whoever did them


def test_two_runs_do_not_write_one_file(tmp_path):
    out = tmp_path / "relaxed.extxyz"
    with files.alone(out):
        _, _, error = run(BASE, "silicon.cif", "--out", out)
    assert isinstance(error, ValueError) and f"Another process is writing {out}" in str(error)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A model with random numbers that is compiled in no time."""
    descriptor = DPA1Config(rcut=3.2, rcut_smth=0.5, sel=12, neuron=(2, 4), axis_neuron=2, tebd_dim=2)
    potential = lamjax.build(PotentialConfig(("Si",), descriptor, (("Default", EnergyHeadConfig(neuron=(4,))),)))
    path = tmp_path_factory.mktemp("small") / "model.lamjax"
    lamjax.save(path, potential, potential.init(jax.random.key(0), np.float64))
    return path


def stiff_and_soft(n: int) -> list[ase.Atoms]:
    """Starts of which every second one is nearly relaxed, so that they finish in another order than they stand in."""
    collected = []
    for k in range(n):
        atoms = ase.build.bulk("Si", "diamond", a=5.4)
        atoms.rattle(0.3 if k % 2 == 0 else 0.001, seed=k)
        atoms.info |= {"name": f"crystal {k}", "failed": True, "error": "of another run"}
        collected.append(atoms)
    return collected


def check_order(out: Path, starts: list[ase.Atoms]) -> list[dict[str, str]]:
    """Frame k of the output, and line k of the table, are those of start k; the lines of the table."""
    ends, rows = ase.io.read(out, ":"), table_of(out)
    assert [end.info["name"] for end in ends] == [start.info["name"] for start in starts]
    assert len(rows) == len(ends)
    for k, (end, row) in enumerate(zip(ends, rows, strict=True)):
        assert end.info["number"] == int(row["number"]) == k and row["name"] == end.info["source"]
        assert float(row["energy"]) == pytest.approx(end.get_potential_energy(), abs=1e-7)
        assert int(row["steps"]) == end.info["n_steps"] and row["converged"] == str(bool(end.info["converged"]))
        assert "failed" not in end.info and "error" not in end.info and row["error"] == ""
    return rows


def test_results_stand_in_the_order_of_the_structures(tmp_path, monkeypatch, small):
    starts = stiff_and_soft(6)
    ase.io.write(tmp_path / "a.extxyz", starts[:4])
    ase.io.write(tmp_path / "b.extxyz", starts[4:])
    out, files_ = tmp_path / "relaxed.extxyz", [tmp_path / "a.extxyz", tmp_path / "b.extxyz"]
    written = []
    append = relax_records.append
    monkeypatch.setattr(
        relax_records, "append", lambda file, atoms: (written.append(atoms.info["number"]), append(file, atoms))
    )
    options = ["--slots", 2, "--max-steps", 6, "--cell"]
    assert run(small, *files_, "--out", out, *options)[0] == 0
    assert written != sorted(written), "the structures finish in their order: the test tells nothing"
    rows = check_order(out, starts)
    ends = ase.io.read(out, ":")
    volumes = [end.get_volume() / start.get_volume() - 1 for end, start in zip(ends, starts, strict=True)]
    np.testing.assert_allclose([float(row["volume_change"]) for row in rows], volumes, atol=1e-6)
    whole = out.read_bytes()
    assert run(small, *files_, "--out", out, *options, "--resume")[0] == 0 and out.read_bytes() == whole
    # the files in another order: so are the results
    assert run(small, *files_[::-1], "--out", out, *options, "--resume")[0] == 0
    check_order(out, starts[4:] + starts[:4])


def test_an_interrupted_run_is_in_order_and_goes_on(tmp_path, monkeypatch, small):
    """Ctrl-C while the second record is written: that one is whole, the rest is to be done."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    starts = stiff_and_soft(5)
    ase.io.write(tmp_path / "a.extxyz", starts)
    out, append, n = tmp_path / "relaxed.extxyz", relax_records.append, []

    def interrupted(file, atoms):
        n.append(atoms)
        if len(n) == 2:
            signal.raise_signal(signal.SIGINT)
        append(file, atoms)

    monkeypatch.setattr(relax_records, "append", interrupted)
    code, output, _ = run(small, tmp_path / "a.extxyz", "--out", out, "--slots", 2, "--max-steps", 6)
    assert code != 0 and "--resume goes on" in output and "Traceback" not in output
    numbers = [atoms.info["number"] for atoms in ase.io.read(out, ":")]
    assert len(numbers) == 2 and numbers == sorted(numbers)
    rows = table_of(out)
    assert [k for k, row in enumerate(rows) if "not relaxed yet" not in row["error"]] == numbers and len(rows) == 5
    assert run(small, tmp_path / "a.extxyz", "--out", out, "--max-steps", 6, "--resume")[0] == 0
    check_order(out, starts)


def test_what_failed_is_tried_again_and_keeps_its_place(tmp_path, monkeypatch, small):
    starts = stiff_and_soft(3)
    ase.io.write(tmp_path / "a.extxyz", starts)
    out, command = tmp_path / "relaxed.extxyz", sys.modules["lamjax.cli.relax"]
    stream = command.stream

    def failing(potential, params, systems, *arguments, **options):
        yield Outcome(0, None, 'no "room"\nfor it')
        for outcome in stream(potential, params, systems[1:], *arguments, **options | {"fixed": [None, None]}):
            yield outcome._replace(number=outcome.number + 1)

    monkeypatch.setattr(command, "stream", failing)
    assert run(small, tmp_path / "a.extxyz", "--out", out, "--max-steps", 2)[0] == 0
    first, *_ = structures = ase.io.read(out, ":")
    assert [atoms.info["name"] for atoms in structures] == [start.info["name"] for start in starts]
    assert first.info["failed"] and first.info["error"] == 'no "room" for it' and table_of(out)[0]["energy"] == ""
    monkeypatch.setattr(command, "stream", stream)
    assert run(small, tmp_path / "a.extxyz", "--out", out, "--max-steps", 2, "--resume")[0] == 0
    check_order(out, starts)


def test_a_run_goes_on_only_as_it_began(tmp_path, small):
    """With another model, other settings or changed structures the output would be a mixture."""
    start, out, other = tmp_path / "a.extxyz", tmp_path / "relaxed.extxyz", tmp_path / "other.lamjax"
    potential, params = lamjax.load(small, dtype=np.float64)
    lamjax.save(other, potential, jax.tree.map(lambda x: 1.1 * x, params))
    starts = stiff_and_soft(2)
    ase.io.write(start, starts)
    options = [start, "--out", out, "--max-steps", 1]
    assert run(small, *options)[0] == 0
    whole = out.read_bytes()
    for model, changed, message in (
        (other, [], "a.extxyz#0 was relaxed with another model or head .Default .*, now Default "),
        (small, ["--fmax", 0.3], "with other settings: fmax 0.02, now fmax 0.3. Give the same again, or name"),
        (small, ["--max-steps", 2], "max_steps 1, now max_steps 2"),
        (small, ["--cell", "--keep", "volume"], "cell fixed, now cell relaxing at 0 GPa keeping volume"),
        (small, ["--precision", "float64"], "precision float32, now precision float64"),
        (small, ["--minimiser", "lbfgs"], "minimiser fire, now minimiser lbfgs"),
    ):
        _, _, error = run(model, *options, *changed, "--resume")
        assert isinstance(error, ValueError) and re.search(message, str(error)), error
        assert out.read_bytes() == whole
    for change in (lambda a: a.positions.__iadd__(1e-3), lambda a: a.set_constraint(FixAtoms([0]))):
        changed = starts[1].copy()
        change(changed)
        ase.io.write(start, [starts[0], changed])
        _, _, error = run(small, *options, "--resume")
        assert isinstance(error, ValueError) and "a.extxyz#1 has changed since it was relaxed" in str(error)
        assert out.read_bytes() == whole


def test_what_processes_have_done_is_put_together(tmp_path, small):
    starts = stiff_and_soft(3)
    ase.io.write(tmp_path / "a.extxyz", starts)
    out, common = tmp_path / "relaxed.extxyz", [small, tmp_path / "a.extxyz", "--max-steps", 1]
    for process in (0, 1):
        assert run(*common, "--out", out, "--processes", 2, "--process", process)[0] == 0
    assert [row["number"] for row in table_of(tmp_path / "relaxed.0.extxyz")] == ["0", "2"]
    assert run(*common, "--out", out, "--resume")[0] == 0
    check_order(out, starts)
