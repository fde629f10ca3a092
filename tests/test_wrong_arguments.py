"""Public functions given something else, or in another order: the message says what is meant and how to get it."""

import ase
import jax
import numpy as np
import pytest
import students

import lamjax
from lamjax import committee, data, edit, losses, training
from lamjax.arguments import ArgumentError

CASE = students.case()
POTENTIAL, PARAMS = CASE[:2]
PAIR = (POTENTIAL, PARAMS)
ATOMS = ase.Atoms("OH", positions=[[0, 0, 0], [0, 0, 1.1]], cell=[6, 6, 6], pbc=True, info={"REF_energy": 1.0})
FRAMES = [data.from_atoms(ATOMS)]
PLAN = data.plan(FRAMES, POTENTIAL.shells)
PACKED = data.pack(FRAMES, PLAN)
PAIRS = data.pack_pairs(
    [data.Pair(FRAMES[0].system, FRAMES[0].system, np.zeros((2, 3), bool), FRAMES[0].labels, "x", {})], POTENTIAL.shells
)
LOSS = losses.label_loss(POTENTIAL)
RELAXING = losses.structure_loss(POTENTIAL)
ADAM = training.optimizer(training.OptimizerConfig(), 1e-3)
BATCH = next(data.batches(PACKED))

WRONG = {
    "got an empty list. For example stack_members": lambda: committee.stack_members([]),
    "stack_members takes a list .* got a Params": lambda: committee.stack_members(PARAMS),
    "pack takes a plan .* got a tuple of Shell. .* data.plan": lambda: data.pack(FRAMES, POTENTIAL.shells),
    "pack takes a plan .* got a Potential": lambda: data.pack(FRAMES, POTENTIAL),
    "pack takes a list of frames, got a Plan. .*data.read": lambda: data.pack(PLAN, FRAMES),
    "pack takes a list of frames, got a list of System": lambda: data.pack([FRAMES[0].system], PLAN),
    "plan takes a list of frames, got the text 'a.xyz'": lambda: data.plan("a.xyz", POTENTIAL.shells),
    "plan takes a list of frames, got a generator": lambda: data.plan((f for f in FRAMES), POTENTIAL.shells),
    "plan takes a list of frames, got a Frame": lambda: data.plan(FRAMES[0], POTENTIAL.shells),
    "plan takes the shells .* got a Potential. Give potential.shells": lambda: data.plan(FRAMES, POTENTIAL),
    "plan takes the shells .* got 4.0": lambda: data.plan(FRAMES, 4.0),
    "batches takes packed frames or pairs, got a list of Frame. Pack": lambda: next(data.batches(FRAMES)),
    "batches takes packed frames or pairs, got a Plan": lambda: next(data.batches(PLAN)),
    "batch_size must be a whole number of pairs, got 'auto'": lambda: next(data.batches(PAIRS)),
    "batch_size must be a whole number, .* got 1.5": lambda: next(data.batches(PACKED, 1.5)),
    "pair_batches takes packed pairs, got a Packed.*pack_pairs": lambda: next(data.pair_batches(PACKED, 2)),
    "pack_pairs takes a list of pairs, got a list of Frame": lambda: data.pack_pairs(FRAMES, POTENTIAL.shells),
    "Pairs are made of frames, got the text": lambda: data.pairs_from_frames("a.extxyz"),
    "Pairs are made of frames, got an Atoms.*from_atoms": lambda: data.pairs_from_frames([ATOMS]),
    "Files are given by their names, got an Atoms.*from_atoms": lambda: data.read([ATOMS]),
    "from_atoms takes one ASE structure, got a list of Atoms": lambda: data.from_atoms([ATOMS]),
    "audit takes sets of frames by name, got a list": lambda: data.audit(FRAMES),
    "write_store takes the name of a file first": lambda: data.write_store(FRAMES, "x.h5"),
    "energy_bias takes a list of frames, got a Params": lambda: data.set_bias(POTENTIAL, FRAMES, PARAMS),
    "save takes the name of a file first.*save.path, potential": lambda: lamjax.save(POTENTIAL, PARAMS, "x"),
    "save takes a potential second, got a Params": lambda: lamjax.save("x", PARAMS, POTENTIAL),
    "A model is read from a file, got a Potential": lambda: lamjax.load(POTENTIAL),
    "build takes a PotentialConfig, got a DPA1Config": lambda: lamjax.build(POTENTIAL.config.descriptor),
    "build takes .* got the text 'm.lamjax'.*lamjax.load": lambda: lamjax.build("m.lamjax"),
    "label_loss takes a potential first, got a tuple of Potential and Params": lambda: losses.label_loss(PAIR),
    "label_loss takes a LabelLossConfig": lambda: losses.label_loss(POTENTIAL, losses.StructureLossConfig()),
    "structure_loss takes .* got a RelaxConfig.*relax=": lambda: losses.structure_loss(POTENTIAL, lamjax.RelaxConfig()),
    "loss of labels takes a batch of frames, got a Packed": lambda: LOSS(PARAMS, PACKED),
    "loss of structures takes a batch of starts and targets, got a Batch": lambda: RELAXING(PARAMS, BATCH),
    "weighted_sum takes {name: .weight, loss.}": lambda: losses.weighted_sum({"a": LOSS}),
    "a part for each of the losses a; got parts for b": lambda: losses.weighted_sum({"a": (1.0, LOSS)})(
        PARAMS, {"b": 1}
    ),
    "a part for one of the losses a; got a Batch": lambda: losses.multitask_loss({"a": LOSS})(PARAMS, BATCH),
    "got 0 heads and 0 configs": lambda: losses.heads_loss(POTENTIAL, [], []),
    "evaluate takes several batches, got a Batch": lambda: training.evaluate(LOSS, PARAMS, BATCH),
    "evaluate takes several batches, got a Packed.*data.batches": lambda: training.evaluate(LOSS, PARAMS, PACKED),
    "sums that a loss of labels returns; energy_n is not among dq_mean.*label_loss": lambda: losses.errors(
        {"dq_mean": 1.0}
    ),
    "fit takes the state of a training second, got a Params.*init": lambda: next(training.fit(LOSS, PARAMS, ADAM, [])),
    "init takes an optimiser second, got a Params": lambda: training.init(ADAM, PARAMS),
    "optimizer takes an OptimizerConfig first, got the text 'adam'": lambda: training.optimizer("adam", 1e-3),
    "schedule takes a ScheduleConfig first, got 100": lambda: training.schedule(100, training.ScheduleConfig()),
    "takes a potential first, got a tuple.*potential, params = lamjax.load": lambda: edit.add_head(PAIR, "a", "b"),
    "like says .* got the text 'O'. For example": lambda: edit.extend_elements(*PAIR, ["Au"], like="O"),
    "closest .* must be above 0, got -1": lambda: edit.tabulate(*PAIR, closest=-1),
    "Calculator takes a model file or a pair .* got a Potential": lambda: lamjax.Calculator(POTENTIAL),
    "Calculator takes .* got a tuple of Params and Potential": lambda: lamjax.Calculator(PAIR[::-1]),
}


@pytest.mark.parametrize("message", list(WRONG))
def test_a_wrong_argument_is_named_with_the_next_step(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_a_folder_is_no_model_file_but_those_in_it_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder, not a model file. No .lamjax"):
        lamjax.load(tmp_path)
    for name in ("b.nqx", "c.pth", "d.dp", "e.txt"):
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match="It holds b.nqx, c.pth, d.dp: name one"):
        lamjax.load(tmp_path)
    lamjax.save(tmp_path / "a.lamjax", *PAIR)
    with pytest.raises(FileNotFoundError, match="It holds a.lamjax, b.nqx, c.pth, d.dp: name one"):
        lamjax.load(tmp_path)


def test_right_arguments_are_taken(tmp_path):
    assert jax.tree.leaves(committee.stack_members([PARAMS, PARAMS]))[0].shape[0] == 2
    assert data.n_batches(data.pack(tuple(FRAMES), PLAN), np.int64(1)) == 1
    assert lamjax.Calculator([*PAIR]).potential is POTENTIAL
    assert issubclass(ArgumentError, TypeError)
    training.schedule(training.ScheduleConfig(), 1e4)
