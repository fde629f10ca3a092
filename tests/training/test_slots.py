"""With what probability tasks and buckets are drawn, and how wide the rows of a group are."""

from types import SimpleNamespace

import numpy as np

from lamjax import PotentialConfig, build
from lamjax.descriptors import DPA1Config
from lamjax.heads import EnergyHeadConfig
from lamjax.shapes import Bucket
from lamjax.training import labels, slots
from lamjax.training.config import TrainConfig


def test_the_probability_of_a_task_is_shared_by_the_batches_of_its_buckets(monkeypatch):
    counts = {("a", 0): 30, ("a", 1): 10, ("b", 1): 5}
    monkeypatch.setattr(slots, "n_batches", lambda train, size, bucket: counts[train.name, bucket])
    plan = SimpleNamespace(n_programs=2)
    tasks = [
        SimpleNamespace(train=SimpleNamespace(name=name, numbers=numbers, plan=plan), batch_size=1, probability=p)
        for name, numbers, p in (("a", (0, 1), 0.8), ("b", (1,), 0.2))
    ]
    np.testing.assert_allclose(slots.probabilities(tasks), [[0.6, 0.2], [0.0, 0.2]], rtol=1e-15)


def test_a_group_has_the_batch_size_that_makes_the_widest_rows_in_each_bucket():
    buckets = (Bucket(10, (4,), 10), Bucket(100, (4,), 100))
    train = SimpleNamespace(plan=SimpleNamespace(buckets=buckets))
    tasks = [SimpleNamespace(train=train, batch_size=size) for size in (3, "auto:120")]
    groups = [SimpleNamespace(tasks=(0, 1)), SimpleNamespace(tasks=(0,))]
    assert slots._sizes(tasks, groups) == [["auto:120", 3], [3, 3]]


def test_all_layers_are_as_many_as_the_smallest_head_has():
    heads = tuple((name, EnergyHeadConfig(neuron=(4, 4))) for name in "ab")
    potential = build(PotentialConfig(("H",), DPA1Config(rcut=3.0, sel=8, neuron=(2, 4), axis_neuron=2), heads))
    config = {"tasks": {}, "train": ("x",), "base": "y"}
    assert labels.shared_layers(TrainConfig(**config, share_layers="all"), potential) == 3
    assert labels.shared_layers(TrainConfig(**config, share_layers=1), potential) == 1
