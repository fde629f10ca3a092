"""Frames that are trained on and measured with."""

import ase
import numpy as np
import pytest

from lamjax.data import Subset, from_atoms, write_store
from lamjax.data.store import Store
from lamjax.training.tasks import check_apart, common


def frames(n: int, seed: int = 0, energy: bool = True):
    """Copper dimers of random lengths."""
    rng = np.random.default_rng(seed)
    collected = []
    for k, length in enumerate(rng.uniform(2, 3, n)):
        atoms = ase.Atoms("Cu2", [[0, 0, 0], [length, 0, 0]])
        if energy:
            atoms.info["REF_energy"] = -round(length)  # many frames of one energy
        collected.append(from_atoms(atoms, source=f"set{seed} frame {k}"))
    return collected


@pytest.mark.parametrize("energy", [True, False], ids=["energies", "no energies"])
def test_common_frames_are_counted_wherever_they_are(energy, tmp_path):
    train, other = frames(20, energy=energy), frames(10, 1, energy)
    assert common(train, other) is None
    held_out = [*other[:4], train[17], *other[4:], train[3]]
    n, where = common(train, held_out)
    assert n == 2 and "which is set0 frame 17" in where
    write_store(tmp_path / "train.h5", train, np.float32)
    assert common(Store(tmp_path / "train.h5"), Subset(held_out, np.arange(5)))[0] == 1
    assert common(train, [held_out[4]] * 3)[0] == 3  # the same frame three times


def test_a_moved_atom_or_another_element_is_another_frame():
    (frame,) = frames(1)
    moved = frame._replace(system=frame.system._replace(positions=frame.system.positions + [0, 0, 0.001]))
    other = frame._replace(system=frame.system._replace(numbers=np.array([29, 28])))
    assert common([frame], [moved, other]) is None
    assert common([frame], [frame])[0] == 1


def test_a_validation_that_is_the_training_is_refused_and_a_part_of_it_told():
    train, other = frames(6), frames(3, 1)
    check_apart([(train, other), (train, [])])
    with pytest.raises(ValueError, match="3 of 3 frames of the validation are trained on .* the first set0 frame 0"):
        check_apart([(train, train[:3]), (other, [])])
    with pytest.warns(UserWarning, match="1 of 4 frames .* set0 frame 5, which is set0 frame 5: .* better than"):
        check_apart([(train, [*other, train[5]])])
    with pytest.warns(UserWarning, match="3 of 3 frames"):  # another task is measured rightly
        check_apart([(train, train[:3]), (train, other)])
