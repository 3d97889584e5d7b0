"""Random molecules: what is drawn is possible, and the properties are what they say."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components
from scipy.spatial.transform import Rotation

from samo_jax.experiments.data.molecules import (
    MAX_ATOMS,
    TARGETS,
    Molecules,
    draw_molecules,
    graph_regression,
    properties,
    random_molecules,
    standardised,
)

VALENCE = {6: 4, 7: 3, 8: 2, 9: 1}
MASS = {1: 1.008, 6: 12.011, 7: 14.007, 8: 15.999, 9: 18.998}
ELECTRONEGATIVITY = {6: 2.55, 7: 3.04, 8: 3.44, 9: 3.98}


def one(molecules, n):
    """Molecule `n` without padding: its atoms as ints, bonds and positions."""
    size = np.count_nonzero(molecules.atoms[n])
    return (
        molecules.atoms[n, :size].tolist(),
        molecules.bonds[n, :size, :size].astype(int),
        molecules.positions[n, :size].astype(float),
    )


def brute_force(atoms, bonds, positions):
    """The eleven properties of one molecule, pair by pair."""
    size = len(atoms)
    pairs = list(combinations(range(size), 2))

    def distance(i, j):
        return sum((positions[i] - positions[j]) ** 2) ** 0.5

    def steps(i, j):
        reached, frontier, count = {i}, {i}, 0
        while j not in reached:
            frontier = {b for a in frontier for b in range(size) if bonds[a, b]}
            reached, count = reached | frontier, count + 1
        return count

    free = [VALENCE[z] - sum(bonds[i]) for i, z in enumerate(atoms)]
    chi = [ELECTRONEGATIVITY[z] for z in atoms]
    polarity = [
        sum(bonds[i, j] * (chi[j] - chi[i]) for j in range(size)) for i in range(size)
    ]
    centre = sum(positions) / size
    coulomb = np.zeros((size, size))
    for i, j in product(range(size), repeat=2):
        coulomb[i, j] = (
            atoms[i] ** 2.4 / 2 if i == j else atoms[i] * atoms[j] / distance(i, j)
        )
    levels = sorted(np.linalg.eigvals(-bonds - np.diag(chi)).real)
    homo = (size + 1) // 2 - 1
    return {
        "mass": sum(MASS[z] for z in atoms) + 1.008 * sum(free),
        "hydrogens": sum(free),
        "rings": sum(bonds[i, j] > 0 for i, j in pairs) - size + 1,
        "wiener": sum(steps(i, j) for i, j in pairs),
        "gyration": (sum(sum((x - centre) ** 2) for x in positions) / size) ** 0.5,
        "dipole": np.linalg.norm(sum(polarity[i] * positions[i] for i in range(size))),
        "repulsion": sum(atoms[i] * atoms[j] / distance(i, j) for i, j in pairs),
        "dispersion": -sum(distance(i, j) ** -6 for i, j in pairs),
        "adjacency": max(np.linalg.eigvals(bonds).real),
        "gap": levels[homo + 1] - levels[homo],
        "coulomb": max(np.linalg.eigvals(coulomb).real),
    }


@pytest.fixture(scope="module")
def molecules():
    return draw_molecules(200, seed=3)


@pytest.mark.parametrize("n", range(12))
def test_properties_by_brute_force(molecules, n):
    labels = properties(molecules)
    expected = brute_force(*one(molecules, n))
    assert list(labels) == list(TARGETS) == list(expected)
    for target in TARGETS:
        np.testing.assert_allclose(
            labels[target][n], expected[target], rtol=2e-5, atol=2e-5, err_msg=target
        )


def test_properties_of_formaldehyde():
    """C=O without its hydrogens: everything by hand."""
    labels = properties(
        Molecules(
            np.array([[6, 8, 0]], np.uint8),
            np.array([[[0, 2, 0], [2, 0, 0], [0, 0, 0]]], np.uint8),
            np.array([[[0, 0, 0], [0, 2, 0], [9, 9, 9]]], np.float32),
        )
    )
    expected = {
        "mass": 12.011 + 15.999 + 2.016,
        "hydrogens": 2,
        "rings": 0,
        "wiener": 1,
        "gyration": 1,
        "dipole": 2 * (3.44 - 2.55) * 2,
        "repulsion": 24,
        "dispersion": -1 / 64,
        "adjacency": 2,
        "gap": np.hypot(3.44 - 2.55, 4),
        "coulomb": (6**2.4 + 8**2.4) / 4 + np.hypot(24, (8**2.4 - 6**2.4) / 4),
    }
    for target in TARGETS:
        np.testing.assert_allclose(labels[target], [expected[target]], rtol=1e-5)


def test_drawn_molecules_are_possible(molecules):
    sizes = np.count_nonzero(molecules.atoms, axis=1)
    assert set(sizes) == set(range(5, MAX_ATOMS + 1))
    assert molecules.bonds.max() == 3
    for n, size in enumerate(sizes):
        atoms, bonds, positions = one(molecules, n)
        assert set(atoms) <= set(VALENCE)
        assert not molecules.bonds[n, size:].any()
        assert not molecules.positions[n, size:].any()
        np.testing.assert_array_equal(bonds, bonds.T)
        assert not bonds.diagonal().any()
        assert connected_components(bonds)[0] == 1
        assert all(sum(bonds[i]) <= VALENCE[z] for i, z in enumerate(atoms))
        distances = np.linalg.norm(positions[:, None] - positions, axis=-1)
        assert np.all(distances[bonds > 0] < 2.6)
        assert np.all(distances[~np.eye(size, dtype=bool)] > 0.5)


def test_permutation_of_the_atoms_changes_nothing(molecules):
    order = np.random.default_rng(0).permutation(MAX_ATOMS)
    permuted = Molecules(
        molecules.atoms[:, order],
        molecules.bonds[:, order][:, :, order],
        molecules.positions[:, order],
    )
    labels, same = properties(molecules), properties(permuted)
    for target in TARGETS:
        np.testing.assert_allclose(
            same[target], labels[target], rtol=1e-5, atol=1e-5, err_msg=target
        )


def test_rotation_and_shift_change_nothing(molecules):
    rotation = Rotation.random(rng=0).as_matrix()
    moved = molecules._replace(positions=molecules.positions @ rotation.T + [3, -1, 2])
    labels, same = properties(molecules), properties(moved)
    for target in TARGETS:
        np.testing.assert_allclose(
            same[target], labels[target], rtol=1e-5, atol=1e-5, err_msg=target
        )


def test_same_seed_same_molecules(molecules):
    for again, array in zip(draw_molecules(200, seed=3), molecules, strict=True):
        np.testing.assert_array_equal(again, array)
    assert np.any(draw_molecules(200, seed=4).bonds != molecules.bonds)


def test_standardised_by_the_training_set():
    data = random_molecules(num_train=300, num_eval=50, seed=1)
    assert [len(part[0].atoms) for part in data[:3]] == [300, 50, 50]
    scaled = standardised(data.train[1], data.mean, data.deviation)
    raw = data.test[1]
    other = standardised(raw, data.mean, data.deviation)
    for target in TARGETS:
        assert abs(scaled[target].mean()) < 1e-5
        assert abs(scaled[target].std() - 1) < 1e-5
        back = other[target] * data.deviation[target] + data.mean[target]
        np.testing.assert_allclose(back, raw[target], rtol=1e-4, atol=1e-4)
    whole = draw_molecules(400, seed=1)
    for (part, labels), start, stop in (
        (data.train, 0, 300),
        (data.validation, 300, 350),
        (data.test, 350, 400),
    ):
        np.testing.assert_array_equal(part.atoms, whole.atoms[start:stop])
        np.testing.assert_array_equal(
            labels["gap"], properties(whole)["gap"][start:stop]
        )


def test_constant_target_is_refused():
    part = draw_molecules(1, seed=0)
    example = part, properties(part)
    with pytest.raises(ValueError, match=r"'mass' must vary .* deviation 0"):
        graph_regression(example, example, example)
