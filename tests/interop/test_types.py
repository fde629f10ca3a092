"""Type maps with names that are no elements: the same numbers under the elements that a user gives them."""

import json
import shutil
from pathlib import Path

import ase
import h5py
import jax
import numpy as np
import pytest
from invoke import invoke

import lamjax
from lamjax import checkpoints
from lamjax.interop.deepmd import checkpoint, state_dict, torch_file
from lamjax.interop.deepmd.types import with_elements
from lamjax.potential import CheckpointError

FILES = Path(__file__).parents[1] / "fixtures/torch_files"


@pytest.fixture
def named(tmp_path):
    """Makes a copy of l0.dp (O, H) with other names for its types, everywhere in its tree."""

    def make(*names: str) -> Path:
        path = shutil.copy(FILES / "l0.dp", tmp_path / "named.dp")
        with h5py.File(path, "a") as file:
            file.attrs["json"] = file.attrs["json"].replace('["O","H"]', json.dumps(names))
            assert file.attrs["json"].count(json.dumps(names)) > 2
        return path

    return make


def test_a_mapping_gives_the_same_model(named):
    config, params = checkpoint.load(named("OW", "HW"), elements={"OW": "O", "HW": "H"})
    wanted, numbers = checkpoint.load(FILES / "l0.dp")
    assert config == wanted and all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(numbers)))


def test_a_calculator_takes_a_mapping(named):
    water = ase.Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    mapped = lamjax.Calculator(named("OW", "HW"), elements={"OW": "O", "HW": "H"})
    wanted = lamjax.Calculator(FILES / "l0.dp").get_potential_energy(water)
    assert mapped.get_potential_energy(water) == wanted != 0
    with pytest.raises(CheckpointError, match="OW, HW.*elements="):
        lamjax.Calculator(named("OW", "HW"))
    with pytest.raises(TypeError, match="elements says what types of a file are"):
        lamjax.Calculator((mapped.potential, mapped.params), elements={"OW": "O"})


def test_torch_files_take_it_too():
    content = torch_file.read_script(FILES / "l0.pth")
    content["model"]["_extra_state"]["model_params"]["type_map"] = ["C_1", "D"]
    config, _ = state_dict.from_checkpoint(with_elements(content, {"C_1": "C"}))
    assert config.elements == ("C", "H")


def test_names_without_a_mapping_are_refused_with_it(named):
    with pytest.raises(CheckpointError, match=r"OW, HW.*elements=\{'OW': 'O', 'HW': 'H'\}.*--types OW=O,HW=H"):
        lamjax.load(named("OW", "HW"))


def test_deuterium_is_hydrogen_where_there_is_no_other(named):
    assert lamjax.load(named("O", "D"))[0].elements == ("O", "H")
    with pytest.raises(CheckpointError, match="the types H and D are all H"):
        lamjax.load(named("H", "D"))
    assert lamjax.load(named("H", "D"), elements={"D": "He"})[0].elements == ("H", "He")


@pytest.mark.parametrize(
    ("names", "elements", "message"),
    [
        (("C_1", "C_2"), {"C_1": "C", "C_2": "C"}, "types C_1 and C_2 are all C.*'C_2': 'Og'"),
        (("OW", "H"), {"OW": "Oxygen"}, "'Oxygen', which is no chemical symbol"),
        (("OW", "H"), {"OW": "O", "HW": "H"}, "names the type HW, which is not in the model's type map"),
        (("O", "H"), {"O": "S"}, "the type O is that element already"),
        (("OW", "X"), {"OW": "O"}, "holds X, which are no chemical"),
    ],
)
def test_mappings_that_do_not_say_which_are_refused(named, names, elements, message):
    with pytest.raises(CheckpointError, match=message):
        lamjax.load(named(*names), elements=elements)


def test_convert_takes_the_types_once_for_all_commands(named, tmp_path):
    target = tmp_path / "model.lamjax"
    assert invoke("convert", named("OW", "HW"), target, "--types", "OW=O,HW=H")[0] == 0
    assert checkpoints.read(target).config.elements == ("O", "H")
    with pytest.raises(CheckpointError, match="bundle, whose types are elements"):
        lamjax.load(target, elements={"O": "O"})
