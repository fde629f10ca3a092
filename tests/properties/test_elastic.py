"""Elastic constants against the literature, against finite strains with re-relaxation, and their flags."""

import ase
import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import relaxed_crystals as crystals

import lamjax
from lamjax import classical, neighbors, properties, pytree, units
from lamjax.properties import PropertyConfig
from lamjax.properties.minimum import hessian
from lamjax.relaxation import CellConfig, Implicit, RelaxConfig
from lamjax.system import pad

GUPTA = crystals.potential_of("gupta")
SILICON = {"c11": 151.4, "c12": 76.4, "c44": 56.4, "c44_clamped": 109.7}  # GPa, see many_body


@pytest.fixture(scope="module")
def silicon():
    """Relaxed, and turned with one atom of padding."""
    potential = crystals.potential_of("stillinger_weber")
    system, lists = crystals.list_of("stillinger_weber")
    system, _ = jax.jit(lambda s, n: crystals.relaxed(potential, potential.init(), s, n))(system, lists)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    turned = system._replace(positions=system.positions @ turn, cell=system.cell @ turn)
    both = [pad(jax.tree.map(np.asarray, s), 3) for s in (system, turned)]
    lists = [neighbors.host_neighbors(s, potential.shells, (4,), 27) for s in both]
    batch = jax.tree.map(jnp.asarray, (pytree.stack(both), pytree.stack(lists)))

    @jax.jit
    def found(systems, lists):
        params = potential.init()

        def one(system, near):
            here = properties.at_minimum(potential, params, system, near)
            known = {"hessian": hessian(potential, params, here, None)}  # which takes longest to compile
            clamped = properties.elastic_at(potential, params, here, relax_ions=False, **known)
            whole = properties.elastic_tensor(potential, params, system, near)
            return whole, clamped, properties.bulk_modulus_at(potential, params, here, **known)

        return jax.vmap(one)(systems, lists)

    return jax.tree.map(np.asarray, found(*batch)), turn


def test_silicon_has_the_constants_of_the_literature(silicon):
    (elastic, clamped, bulk), _ = silicon
    tensor = elastic.tensor[0]
    expected = np.zeros((6, 6))
    expected[:3, :3] = SILICON["c12"]
    expected[range(6), range(6)] = [SILICON["c11"]] * 3 + [SILICON["c44"]] * 3
    np.testing.assert_allclose(tensor, expected, rtol=0, atol=0.06)
    np.testing.assert_allclose(clamped.tensor[0][3:, 3:], np.eye(3) * SILICON["c44_clamped"], rtol=0, atol=0.06)
    np.testing.assert_allclose(clamped.tensor[0][:3, :3], tensor[:3, :3], atol=1e-6)
    assert np.abs(tensor - tensor.T).max() < 1e-8 and np.abs(tensor[:3, 3:]).max() < 1e-6
    assert elastic.stable.all() and elastic.converged.all() and np.abs(elastic.stress).max() < 1e-6
    c11, c12, c44 = tensor[0, 0], tensor[0, 1], tensor[3, 3]
    assert elastic.bulk[0] == pytest.approx((c11 + 2 * c12) / 3) == pytest.approx(bulk.bulk_modulus[0])
    assert elastic.shear_voigt[0] == pytest.approx((c11 - c12 + 3 * c44) / 5)
    reuss = 5 * (c11 - c12) * c44 / (4 * c44 + 3 * (c11 - c12))
    assert elastic.shear_reuss[0] == pytest.approx(reuss)
    assert elastic.anisotropy[0] == pytest.approx(5 * elastic.shear_voigt[0] / reuss - 5)
    assert elastic.pugh[0] == pytest.approx(elastic.bulk[0] / elastic.shear[0])
    k, g = elastic.bulk[0], elastic.shear[0]
    assert (
        elastic.young[0]
        == pytest.approx(2 * g * (1 + elastic.poisson[0]))
        == pytest.approx(3 * k * (1 - 2 * elastic.poisson[0]))
    )
    assert bulk.derivative[0] == pytest.approx(2.926, abs=2e-3) and abs(bulk.pressure[0]) < 1e-6


def test_a_turned_crystal_has_the_turned_tensor(silicon):
    (elastic, *_), turn = silicon
    full = np.zeros((3, 3, 3, 3))
    places = [(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]
    for a, (i, j) in enumerate(places):
        for b, (k, m) in enumerate(places):
            for ij in {(i, j), (j, i)}:
                for km in {(k, m), (m, k)}:
                    full[(*ij, *km)] = elastic.tensor[0][a, b]
    turned = np.einsum("ijkl,ia,jb,kc,ld->abcd", full, turn, turn, turn, turn)
    expected = np.array([[turned[(*a, *b)] for b in places] for a in places])
    np.testing.assert_allclose(elastic.tensor[1], expected, atol=1e-6)
    for name in ("bulk", "shear", "anisotropy", "least_stiffness"):
        assert getattr(elastic, name)[0] == pytest.approx(getattr(elastic, name)[1], rel=1e-8)


@jax.jit
def stress_of(crystal, near, strain):
    """Of a strained crystal whose atoms relax; one program for all pressures."""
    relaxing = RelaxConfig(fmax=1e-8, max_steps=4000, adjoint=Implicit(tol=1e-10, polish=2, curvature=1e-7))
    deformation, params = jnp.eye(3) + strain, GUPTA.init()
    start = crystal._replace(positions=crystal.positions @ deformation, cell=crystal.cell @ deformation)
    end, lists = crystals.relaxed(GUPTA, params, start, near, relaxing)
    return lamjax.stress(lamjax.predict(GUPTA, params, end, lists), end)


@pytest.mark.parametrize("pressure", [0.0, 0.02], ids=["no pressure", "3.2 GPa"])
def test_finite_strains_with_relaxing_atoms_give_the_same(pressure):
    """∂σ/∂ε of ASE's definition; under a pressure too, where definitions of elastic constants differ."""
    potential, params = GUPTA, GUPTA.init()
    system, lists = crystals.list_of("gupta")
    cell = CellConfig(pressure=pressure)
    how = RelaxConfig(fmax=1e-6, max_steps=4000, cell=cell, adjoint=crystals.RELAX.adjoint)
    crystal, near = jax.jit(lambda s, n: crystals.relaxed(potential, params, s, n, how))(system, lists)
    run = jax.jit(lambda s, n: properties.elastic_tensor(potential, params, s, n, PropertyConfig(cell)))
    result = run(crystal, near)
    stress = lambda strain: stress_of(crystal, near, strain)  # noqa: E731
    h, columns = 1e-4, []
    for k in range(6):
        voigt = np.zeros(6)
        voigt[k] = h if k < 3 else h / 2
        strain = units.from_voigt(voigt)
        columns.append((stress(strain) - stress(-strain)) / (2 * h) / units.GPA)
    numeric = np.stack(columns, axis=1)
    scale = np.abs(numeric).max()
    np.testing.assert_allclose(result.tensor, (numeric + numeric.T) / 2, rtol=0, atol=2e-6 * scale)
    assert np.abs(result.tensor - result.tensor.T).max() < 1e-8
    assert np.abs(result.stress).max() < 1e-5 and bool(result.converged)


def test_what_is_wrong_is_flagged():
    """A simple cubic crystal of a pair potential is unstable; one that is not relaxed does not count as converged."""
    potential = crystals.potential_of("lennard_jones")
    params = potential.init()
    run = jax.jit(lambda s, n: properties.elastic_tensor(potential, params, s, n))

    def judged(atoms):
        return run(*crystals.room(potential, atoms))

    cubic = judged(ase.build.bulk("Cu", "sc", a=1.283))
    assert not cubic.stable and cubic.least_stiffness < 0
    system = lamjax.from_ase(ase.build.bulk("Cu", "sc", a=1.35))
    like = crystals.room(potential, ase.build.bulk("Cu", "sc", a=1.283))[1]
    stretched = run(system, neighbors.allocate(system, potential.shells, like.capacities))
    assert not stretched.converged and stretched.fmax > 1e-2 and np.abs(stretched.stress).max() > 0.1


def test_molecules_and_slabs_are_told_apart():
    potential = crystals.potential_of("lennard_jones")
    params = potential.init()
    molecule = ase.Atoms("Cu2", positions=[(0, 0, 0), (1.3, 0, 0)])
    both = crystals.room(potential, molecule)
    for function in (properties.elastic_tensor, properties.bulk_modulus, properties.lattice):
        with pytest.raises(ValueError, match="a molecule .no periodic direction."):
            function(potential, params, *both)
    slab = ase.build.fcc111("Cu", (1, 1, 1), a=1.85, vacuum=None)
    with pytest.raises(ValueError, match=r"a slab .two.*sheet_stiffness .N/m."):
        properties.elastic_tensor(potential, params, *crystals.room(potential, slab))


def test_a_sheet_has_a_stiffness_per_area():
    """A triangular lattice of springs k between nearest neighbours is isotropic: λ = μ = √3 k/4 per area."""
    potential = classical.morse(depth=0.5, width=2.0, distance=1.5, cutoff=2.2, switch_start=1.9)
    params = potential.init()
    sheet = ase.Atoms("Cu", cell=[[1.5, 0, 0], [0.75, 1.5 * 0.75**0.5, 0], [0, 0, 0]], pbc=(True, True, False))
    system, lists = crystals.room(potential, sheet)
    stiffness = jax.jit(lambda s, n: properties.sheet_stiffness(potential, params, s, n))(system, lists)
    k = 2 * 0.5 * 2.0**2 * 16.02176634  # N/m: E'' = 2 D a² at the minimum
    lame = 3**0.5 / 4 * k
    np.testing.assert_allclose(
        stiffness.tensor, lame * np.array([[3, 1, 0], [1, 3, 0], [0, 0, 1]]), rtol=1e-8, atol=1e-8
    )
    assert bool(stiffness.stable) and bool(stiffness.converged)
