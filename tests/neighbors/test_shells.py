"""A list is used by the potential that it was made for, or an error says so before anything is computed."""

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax import classical, data, losses, neighbors, pytree
from lamjax.committee import committee_deviation, stack_members
from lamjax.neighbors import Shell
from lamjax.relaxation import RelaxConfig, Unrolled, relax
from lamjax.system import Labels, host_system

SHORT, LONG = classical.lennard_jones(cutoff=1.5), classical.lennard_jones(cutoff=2.5)
SAID = "made for the cutoff 1.5 Å, the potential looks at the cutoff 2.5 Å.*allocate"


def cluster() -> ase.Atoms:
    return ase.Atoms("Ar4", positions=[(0, 0, 0), (1.1, 0, 0), (0, 1.9, 0), (0.1, 0, 2.2)])


def taken(potential, lists):
    """Every function of one structure that takes a list, with one list."""
    system, params = lamjax.from_ase(cluster()), potential.init()
    return {
        "predict": lambda: lamjax.predict(potential, params, system, lists),
        "energy": lambda: potential.energy(params, system, lists),
        "relax": lambda: relax(potential, params, system, lists, RelaxConfig(adjoint=Unrolled(1))),
        "update": lambda: neighbors.update(lists, system, potential.shells),
        "committee": lambda: committee_deviation(potential, stack_members([params, params]), system, lists),
        "product": lambda: losses.force_change(potential, params, system, lists, jnp.ones((4, 3))),
    }


@pytest.mark.parametrize("name", taken(SHORT, None))
def test_another_cutoff_is_an_error_while_tracing(name):
    system = lamjax.from_ase(cluster())
    run = lambda lists: taken(LONG, lists)[name]()  # noqa: E731
    jax.eval_shape(run, lamjax.allocate(LONG, system))
    narrow = lamjax.allocate(SHORT, system)
    for change in (lambda x: x, pytree.stack, lambda x: jax.tree.map(np.asarray, x)):
        lists = change([narrow]) if change is pytree.stack else change(narrow)
        with pytest.raises(ValueError, match=SAID):
            jax.eval_shape(lambda n: run(pytree.take(n, 0) if n.mask.ndim == 3 else n), lists)
    with pytest.raises(ValueError, match=r"cutoff 2.5 Å, the potential looks at the cutoff 1.5 Å"):
        jax.eval_shape(lambda n: taken(SHORT, n)[name](), lamjax.allocate(LONG, system))


def test_packed_data_of_another_potential():
    system = host_system(cluster())
    labels = Labels(np.zeros(()), np.zeros((4, 3)), np.zeros((3, 3)), np.ones(3))
    frames = [data.Frame(system, labels, "a frame", {}, {})]
    packed = data.pack(frames, data.plan(frames, SHORT.shells, 1))
    (batch,) = data.batches(packed, 1, epochs=1)
    assert np.isfinite(jax.jit(losses.label_loss(SHORT))(SHORT.init(), batch)[0])
    with pytest.raises(ValueError, match=SAID):
        jax.eval_shape(losses.label_loss(LONG), LONG.init(), batch)
    with pytest.raises(ValueError, match=SAID):
        jax.eval_shape(losses.distillation_loss(LONG), LONG.init(), batch)


@pytest.mark.parametrize(
    ("made", "wanted", "fits"),
    [
        ((Shell(4.0, 8),), (Shell(4.0, 8),), True),
        ((Shell(4.0, 20),), (Shell(4.0, 30),), True),  # of 12 places, none of 20 can have been cut off unseen
        ((Shell(4.0),), (Shell(4.0, 30),), True),
        ((Shell(4.0, 12),), (Shell(4.0),), False),  # more than 12 would have been dropped
        ((Shell(4.0),), (Shell(4.0, 8),), False),  # 12 may be there where 8 are wanted
        ((Shell(4.0), Shell(3.0)), (Shell(4.0),), True),
        ((Shell(4.0),), (Shell(4.0), Shell(3.0)), False),
        ((Shell(4.0), Shell(3.0)), (Shell(4.0), Shell(2.0)), False),
        ((Shell(4.0), Shell(3.0)), (Shell(3.0),), False),
        ((Shell(4.0),), (Shell(3.9),), False),
        ((Shell(3.9),), (Shell(4.0),), False),
    ],
)
def test_what_fits(made, wanted, fits):
    lists = neighbors.host_neighbors(host_system(cluster()), made, (12,) * len(made))
    if fits:
        return neighbors.check_shells(lists, wanted)
    with pytest.raises(ValueError, match="list was made for"):
        neighbors.check_shells(lists, wanted)


def test_the_list_of_another_structure_is_an_error():
    lists = lamjax.allocate(LONG, cluster()[:1])
    with pytest.raises(ValueError, match="that of 1 atoms, the structure has 4"):
        lamjax.predict(LONG, LONG.init(), cluster(), lists)


def test_a_list_put_together_by_hand_is_taken():
    system = lamjax.from_ase(cluster())
    lists = lamjax.allocate(LONG, system)
    by_hand = neighbors.Neighbors(*lists[:8])
    assert by_hand.made_for is None
    assert LONG.energy(LONG.init(), system, by_hand) == LONG.energy(LONG.init(), system, lists)
    with pytest.raises(ValueError, match="for 1 cutoffs, 2 are needed"):
        neighbors.check_shells(by_hand, (Shell(2.5), Shell(2.0)))


def test_structures_and_whole_numbers_are_taken_where_a_system_is():
    atoms = cluster()
    atoms.positions = np.round(2 * atoms.positions)
    system = lamjax.from_ase(atoms)
    whole = system._replace(positions=np.asarray(system.positions, int), cell=np.zeros((3, 3), int))
    lists = lamjax.allocate(LONG, atoms)
    for given in (atoms, whole, whole._replace(positions=whole.positions.tolist())):
        got = lamjax.predict(LONG, LONG.init(), given, lists)
        assert got.energy == lamjax.predict(LONG, LONG.init(), system, lists).energy != 0
        assert got.forces.dtype == np.float64
    with pytest.raises(TypeError, match=r"lamjax\.System or an ase\.Atoms, got ndarray"):
        lamjax.allocate(LONG, atoms.positions)


def test_one_file_holds_lists_as_before():
    """A list has no further array: its leaves are those of old files, in their order."""
    lists = lamjax.allocate(LONG, cluster())
    assert len(jax.tree.leaves(lists)) == 7 and lists.made_for.shells == LONG.shells
    assert jax.tree.structure(lists) != jax.tree.structure(lamjax.allocate(SHORT, cluster()))


def test_a_new_search_may_keep_another_number():
    system, shells = host_system(cluster()), (Shell(2.5, 2),)
    lists = neighbors.host_neighbors(system, shells, (4,))
    after = jax.jit(neighbors.update, static_argnums=2)(lists, system, (Shell(2.5, 3),))
    assert after.made_for.shells == (Shell(2.5, 3),) and after.truncated  # the model of the first list dropped some
