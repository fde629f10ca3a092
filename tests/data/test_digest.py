"""A set has another name as soon as anything in it that is learned from is another, and the same in every container."""

import label_frames as make
import numpy as np
import pytest

from lamjax import data
from lamjax.data import Joined, Pair, Store, Subset, digests, pair_digests
from lamjax.system import Labels

PARTS = {"structures", "energies", "forces", "virials"}


@pytest.fixture(scope="module")
def frames():
    """Six frames of two sizes with all labels; one without forces."""
    result = make.copper_frames(6)
    result[2] = result[2]._replace(labels=result[2].labels._replace(weights=np.array([1.0, 0.0, 1.0])))
    return result


def system_of(field, change):
    return lambda frame: frame._replace(system=frame.system._replace(**{field: change(getattr(frame.system, field))}))


def labels_of(field, change):
    return lambda frame: frame._replace(labels=frame.labels._replace(**{field: change(getattr(frame.labels, field))}))


def one(values):
    """The last number is moved by its last bits."""
    values = values.copy()
    values.flat[-1] = np.nextafter(values.flat[-1], np.inf)
    return values


CHANGES = {
    "a position": (system_of("positions", one), {"structures"}),
    "a lattice vector": (system_of("cell", one), {"structures"}),
    "two numbers exchanged": (system_of("numbers", lambda z: np.roll(z, 1)), {"structures"}),
    "pbc": (system_of("pbc", lambda p: p & [True, True, False]), {"structures"}),
    "an energy": (labels_of("energy", one), {"energies"}),
    "the signs of forces": (labels_of("forces", lambda f: -f), {"forces"}),
    "forces of two atoms exchanged": (labels_of("forces", lambda f: f[[1, 0, *range(2, len(f))]]), {"forces"}),
    "a virial": (labels_of("virial", one), {"virials"}),
    "the weight of energies": (labels_of("weights", lambda w: w * [2, 1, 1]), {"energies"}),
    "no virial": (labels_of("weights", lambda w: w * [1, 1, 0]), {"virials"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_number_counts(frames, name):
    change, parts = CHANGES[name]
    mixed = [f._replace(system=f.system._replace(numbers=np.arange(1, 1 + f.system.n_atoms))) for f in frames]
    before, after = digests(mixed), digests([*mixed[:-1], change(mixed[-1])])
    assert set(before) == PARTS and {part for part in PARTS if before[part] != after[part]} == parts


def test_order_and_borders_count(frames):
    whole = digests(frames)
    for others in (frames[::-1], frames[:-1], [*frames, frames[0]], [frames[1], frames[0], *frames[2:]]):
        assert all(digests(others)[part] != whole[part] for part in PARTS)
    # the same columns of numbers, cut into other frames
    first = frames[0]
    n, system, labels = first.system.n_atoms, first.system, first.labels
    halves = [
        first._replace(
            system=system._replace(positions=system.positions[some], numbers=system.numbers[some]),
            labels=Labels(labels.energy, labels.forces[some], labels.virial, labels.weights),
        )
        for some in (slice(0, n // 4), slice(n // 4, n))
    ]
    cut = {part: name for part, name in digests(halves).items() if part in ("structures", "forces")}
    other = [*(f for f in digests(halves[::-1]).items() if f[0] in cut)]
    assert all(cut[part] != name for part, name in other)


def test_the_container_does_not_matter(frames, tmp_path):
    data.write_store(tmp_path / "a.h5", frames)
    data.write_store(tmp_path / "b.h5", frames[:2])
    data.write_store(tmp_path / "single.h5", frames, np.float32)
    store, joined = Store(tmp_path / "a.h5"), Joined([Store(tmp_path / "b.h5"), frames[2:]])
    for rows in (range(6), (0, 1, 3), (1, 4, 2), (5,)):
        expected = digests([frames[k] for k in rows])
        for whole in (store, joined, frames):
            assert digests(Subset(whole, list(rows))) == expected
    assert digests(store) == digests(joined) == digests(frames)
    assert digests(Store(tmp_path / "single.h5"))["structures"] != digests(frames)["structures"]
    assert set(digests([])) == PARTS


def test_pairs_have_names(frames):
    def pairs(**changes):
        collected = [Pair(f.system, f.system, np.zeros((f.system.n_atoms, 3), bool), f.labels, "", {}) for f in frames]
        return [
            *collected[:-1],
            collected[-1]._replace(**{name: of(getattr(collected[-1], name)) for name, of in changes.items()}),
        ]

    moved = lambda system: system._replace(positions=one(system.positions))  # noqa: E731
    before = pair_digests(pairs())
    for changes, part in (
        ({"start": moved}, "starts"),
        ({"target": moved}, "targets"),
        ({"fixed": np.logical_not}, "fixed"),
        ({"labels": lambda labels: labels._replace(forces=-labels.forces)}, "labels"),
    ):
        after = pair_digests(pairs(**changes))
        assert [name for name in before if before[name] != after[name]] == [part]
    assert all(pair_digests(pairs()[::-1])[name] != before[name] for name in ("starts", "targets", "labels"))
