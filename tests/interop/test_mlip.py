"""Force fields of mlip as potentials: their own energies, forces and stresses; `pytest -m mlip`, extra [mlip]."""

import functools

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lamjax
from lamjax.interop.mlip import from_mlip, to_mlip
from lamjax.relaxation import RelaxConfig, Unrolled, relax_structures

pytestmark = [pytest.mark.mlip, pytest.mark.filterwarnings("ignore")]
CUTOFF = 4.0
NETWORKS = {
    "Mace": {"num_channels": 4, "correlation": 2, "num_layers": 2, "readout_irreps": ("4x0e", "0e")},
    "Nequip": {"num_layers": 2},
    "Visnet": {"num_channels": 16, "num_heads": 2, "num_layers": 2},
    "Esen": {},
}


@functools.cache
def force_field(name: str, dtype: str = "float64"):
    from mlip import models
    from mlip.data import DatasetInfo
    from mlip.typing.properties import Properties

    network = getattr(models, name)
    energies = {8: -2.0, 12: -1.0}
    info = DatasetInfo(atomic_energies_map=energies, graph_cutoff_angstrom=CUTOFF, avg_num_neighbors=10.0)
    made = models.ForceField.from_mlip_network(network(network.Config(**NETWORKS[name]), info), Properties(stress=True))
    return to_mlip(
        from_mlip(made)[0], jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, made.params)
    )


def crystal(n: int = 8) -> ase.Atoms:
    atoms = ase.build.bulk("MgO", "rocksalt", a=4.3, cubic=True)
    atoms.rattle(0.1, seed=1)
    return atoms[:n]


def slab() -> ase.Atoms:
    atoms = crystal()
    atoms.pbc = (True, True, False)
    atoms.center(5.0, axis=2)
    return atoms


def molecule() -> ase.Atoms:
    return ase.Atoms("OMgO", [(0, 0, 0), (1.8, 0.1, 0), (3.5, 0, 0.3)])


def own(force_field, atoms: ase.Atoms):
    from mlip.data.chemical_system import ChemicalSystem
    from mlip.graph import Graph

    one = ChemicalSystem(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array if atoms.pbc.any() else None,
        pbc=tuple(map(bool, atoms.pbc)) if atoms.pbc.any() else None,
    )
    return force_field(Graph.from_chemical_system(one, CUTOFF))


@pytest.mark.parametrize("make", [crystal, slab, molecule], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", NETWORKS)
def test_energies_forces_and_stress_are_its_own(name, make):
    field, atoms = force_field(name), make()
    potential, params = from_mlip(field)
    expected = own(field, atoms)
    system = lamjax.from_ase(atoms)
    prediction = jax.jit(lambda p: lamjax.predict(potential, p, system, lamjax.allocate(potential, system)))(params)
    n = len(atoms)
    np.testing.assert_allclose(prediction.energy, expected.energy[0], rtol=2e-6)
    np.testing.assert_allclose(
        prediction.forces, expected.forces[:n], atol=5e-6 * np.abs(prediction.forces).max() + 1e-7
    )
    if atoms.pbc.all():
        virial = -np.asarray(expected.stress[0]) * atoms.get_volume()
        np.testing.assert_allclose(prediction.virial, virial, atol=5e-6 * np.abs(virial).max() + 1e-7)


def test_several_structures_and_padding_change_nothing():
    potential, params = from_mlip(force_field("Nequip"))
    structures = [crystal(), crystal(5), molecule()]
    ends = relax_structures(potential, params, structures, RelaxConfig(max_steps=3))
    for atoms, end in zip(structures, ends, strict=True):
        (alone,) = relax_structures(potential, params, [atoms], RelaxConfig(max_steps=3))
        np.testing.assert_allclose(end.forces, alone.forces, atol=1e-9)


def test_gradients_go_through_its_relaxation():
    potential, params = from_mlip(force_field("Visnet"))
    system = lamjax.from_ase(molecule())
    lists = lamjax.allocate(potential, system)
    config = RelaxConfig(fmax=1e-12, adjoint=Unrolled(4))

    @jax.jit
    def length(t):
        moved = jax.tree.map(lambda x: (1 + t) * x, params)
        end = lamjax.relax(potential, moved, system, lists, config).system.positions
        return jnp.sum((end[0] - end[1]) ** 2)

    slope = jax.grad(length)(0.0)
    assert slope != 0 and abs((length(1e-5) - length(-1e-5)) / 2e-5 - slope) < 1e-7 * abs(slope)


def test_back_to_mlip_and_what_cannot_be():
    field = force_field("Nequip")
    potential, params = from_mlip(field)
    doubled = jax.tree.map(lambda x: 2 * x if x.dtype.kind == "f" else x, params)
    again = to_mlip(potential, doubled)
    assert type(again) is type(field) and again.predictor is field.predictor
    assert own(again, crystal()).energy[0] != own(field, crystal()).energy[0]
    assert "force field of mlip" in repr(potential) and potential.elements == ("O", "Mg")
    with pytest.raises(ValueError, match=r"from_mlip takes a mlip\.models\.ForceField"):
        from_mlip(potential)
    with pytest.raises(ValueError, match="to_mlip takes a potential that from_mlip made"):
        to_mlip(lamjax.classical.lennard_jones(), {})
