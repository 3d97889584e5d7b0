"""Random molecules and eleven properties of them, of very different scales."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

MAX_ATOMS = 12
TARGETS = (
    "mass",
    "hydrogens",
    "rings",
    "wiener",
    "gyration",
    "dipole",
    "repulsion",
    "dispersion",
    "adjacency",
    "gap",
    "coulomb",
)
Labels: TypeAlias = dict[str, np.ndarray]

# By atomic number, for carbon to fluorine; 0 is no atom.
_ELEMENTS = np.array([6, 7, 8, 9])
_ABUNDANCES = (0.6, 0.15, 0.15, 0.1)
_VALENCE = np.array([0, 0, 0, 0, 0, 0, 4, 3, 2, 1])
_MASS = np.array([0, 1.008, 0, 0, 0, 0, 12.011, 14.007, 15.999, 18.998])
_ELECTRONEGATIVITY = np.array([0, 0, 0, 0, 0, 0, 2.55, 3.04, 3.44, 3.98])  # Pauling
_BOND_LENGTH, _BOND_REACH = 1.5, 2.6
_DIRECTIONS, _EXTRA_BONDS = 8, 3


class Molecules(NamedTuple):
    """Molecules, padded to the same number of atoms A.

    Attributes:
        atoms: shape (N, A), uint8: atomic numbers, 0 where there is no atom.
        bonds: shape (N, A, A), uint8: 0 for none, 1 to 3 for single to triple, 4 for
            aromatic; symmetric.
        positions: shape (N, A, 3), float32, in angstrom.
    """

    atoms: np.ndarray
    bonds: np.ndarray
    positions: np.ndarray


class GraphRegression(NamedTuple):
    """Molecules with raw labels, and what standardises these.

    Attributes:
        train, validation, test: molecules and, by target, labels of shape (N,).
        mean, deviation: of the training labels, by target.
    """

    train: tuple[Molecules, Labels]
    validation: tuple[Molecules, Labels]
    test: tuple[Molecules, Labels]
    mean: dict[str, float]
    deviation: dict[str, float]


def graph_regression(
    train: tuple[Molecules, Labels],
    validation: tuple[Molecules, Labels],
    test: tuple[Molecules, Labels],
) -> GraphRegression:
    """The three sets with mean and deviation of the training labels.

    Raises:
        ValueError: a target does not vary, so that it cannot be standardised.
    """
    labels = {target: values.astype(float) for target, values in train[1].items()}
    mean = {target: float(values.mean()) for target, values in labels.items()}
    deviation = {target: float(values.std()) for target, values in labels.items()}
    for target, value in deviation.items():
        if not value > 0:
            raise ValueError(
                f"target {target!r} must vary over the training molecules to be "
                f"standardised, got deviation {value:g}: take more molecules"
            )
    return GraphRegression(train, validation, test, mean, deviation)


def standardised(
    labels: Mapping[str, np.ndarray],
    mean: Mapping[str, float],
    deviation: Mapping[str, float],
) -> Labels:
    """`(label - mean) / deviation` of each target, float32.

    >>> standardised({"mass": np.array([1.0, 5.0])}, {"mass": 3.0}, {"mass": 2.0})
    {'mass': array([-1.,  1.], dtype=float32)}
    """
    return {
        target: ((values - mean[target]) / deviation[target]).astype(np.float32)
        for target, values in labels.items()
    }


def random_molecules(
    num_train: int = 4000, num_eval: int = 1000, seed: int = 0
) -> GraphRegression:
    """Drawn molecules with their properties, always the same for a seed.

    Args:
        num_train: number of training molecules.
        num_eval: number of validation and of test molecules.
        seed: seed of all three sets.
    """
    molecules = draw_molecules(num_train + 2 * num_eval, seed)
    labels = properties(molecules)

    def part(start: int, stop: int) -> tuple[Molecules, Labels]:
        rows = slice(start, stop)
        return (
            Molecules(*(array[rows] for array in molecules)),
            {target: labels[target][rows] for target in TARGETS},
        )

    ends = np.cumsum([0, num_train, num_eval, num_eval])
    return graph_regression(*(part(*ends[k : k + 2]) for k in range(3)))


def draw_molecules(count: int, seed: int) -> Molecules:
    """Random connected molecules of 5 to 12 atoms among C, N, O and F.

    Each atom is bonded to a random earlier one that has free valence, at 1.5 angstrom,
    in that of eight random directions which keeps farthest from the atoms already
    there. Then up to three times two near atoms with free valence get one more bond,
    which makes double and triple bonds and rings. Hydrogen is implicit: it fills the
    valence that is left.

    Args:
        count: number of molecules.
        seed: the molecules are always the same for it.
    """
    rng = np.random.default_rng(seed)
    molecule = np.arange(count)
    size = rng.integers(5, MAX_ATOMS + 1, count)
    drawn = rng.choice(_ELEMENTS, (count, MAX_ATOMS), p=_ABUNDANCES)
    drawn[:, 0] = 6
    atoms = np.zeros((count, MAX_ATOMS), np.uint8)
    bonds = np.zeros((count, MAX_ATOMS, MAX_ATOMS), np.uint8)
    positions = np.zeros((count, MAX_ATOMS, 3))
    atoms[:, 0] = 6
    for k in range(1, MAX_ATOMS):
        free = _free_valence(atoms, bonds)
        present = k < size
        # An atom of valence one must not take the last free place.
        atoms[:, k] = present * np.where(free.sum(1) == 1, 6, drawn[:, k])
        parent = _choose(rng, free)
        bonds[molecule, k, parent] = bonds[molecule, parent, k] = present
        step = _BOND_LENGTH * _unit(rng.normal(size=(count, _DIRECTIONS, 3)))
        candidates = positions[molecule, parent][:, None] + step
        gaps = candidates[:, :, None] - positions[:, None, :k]
        best = np.linalg.norm(gaps, axis=-1).min(-1).argmax(-1)
        positions[:, k] = present[:, None] * candidates[molecule, best]
    near = _distances(positions) < _BOND_REACH
    near &= ~np.eye(MAX_ATOMS, dtype=bool)
    for _ in range(_EXTRA_BONDS):
        free = _free_valence(atoms, bonds)
        pairs = near & (free[:, :, None] * free[:, None] > 0) & (bonds < 3)
        i, j = divmod(_choose(rng, pairs.reshape(count, -1)), MAX_ATOMS)
        order = bonds[molecule, i, j] + pairs.any((1, 2))
        bonds[molecule, i, j] = bonds[molecule, j, i] = order
    return Molecules(atoms, bonds, positions.astype(np.float32))


def properties(molecules: Molecules) -> Labels:
    r"""Eleven properties of drawn molecules.

    With atomic numbers $Z_i$, masses $m_i$, electronegativities $\chi_i$ (Pauling),
    bond orders $b_{ij}$, free valences $h_i$ (valence minus bonds: implicit hydrogen),
    positions $x_i$ and distances $r_{ij}$ in angstrom:

    - mass: $\sum_i m_i + 1.008 h_i$;
    - hydrogens: $\sum_i h_i$;
    - rings: bonded pairs - atoms + 1;
    - wiener: $\sum_{i<j}$ of the number of bonds on the shortest path;
    - gyration: root mean square distance of the atoms from their mean position;
    - dipole: $\|\sum_i q_i x_i\|$ with $q_i = \sum_j b_{ij} (\chi_j - \chi_i)$;
    - repulsion: $\sum_{i<j} Z_i Z_j / r_{ij}$;
    - dispersion: $-\sum_{i<j} r_{ij}^{-6}$;
    - adjacency: largest eigenvalue of $b$;
    - gap: between eigenvalues $\lceil n/2 \rceil$ and $\lceil n/2 \rceil + 1$,
      ascending, of the Hückel matrix $-b - \mathrm{diag}(\chi)$ of the $n$ atoms;
    - coulomb: largest eigenvalue of the Coulomb matrix, $Z_i^{2.4} / 2$ on the
      diagonal and $Z_i Z_j / r_{ij}$ off it (Rupp et al. 2012).

    Returns:
        For each of `TARGETS`, shape (N,), float32.
    """
    atoms = molecules.atoms
    charge, bonds, positions = (array.astype(float) for array in molecules)
    present = atoms > 0
    size = present.sum(1)
    chi = _ELECTRONEGATIVITY[atoms]
    free = _free_valence(atoms, bonds)
    diagonal = np.eye(atoms.shape[1])
    pair = present[:, :, None] & present[:, None] & (diagonal == 0)
    inverse = np.divide(1, _distances(positions), where=pair, out=np.zeros(pair.shape))
    polarity = (bonds * (chi[:, None] - chi[:, :, None])).sum(2)
    centred = (
        positions
        - (positions * present[..., None]).sum(1, keepdims=True) / (size[:, None, None])
    )
    coulomb = charge[:, :, None] * charge[:, None] * inverse
    # Absent atoms get an energy above all others.
    huckel = -bonds - diagonal * np.where(present, chi, -1e3)[:, None]
    energies = np.linalg.eigvalsh(huckel)
    occupied = (size[:, None] + 1) // 2
    values = (
        _MASS[atoms].sum(1) + _MASS[1] * free.sum(1),
        free.sum(1),
        (bonds > 0).sum((1, 2)) / 2 - size + 1,
        np.where(pair, _path_lengths(bonds), 0).sum((1, 2)) / 2,
        np.sqrt(((centred**2).sum(2) * present).sum(1) / size),
        np.linalg.norm(np.einsum("ni,nix->nx", polarity, centred), axis=1),
        coulomb.sum((1, 2)) / 2,
        -(inverse**6).sum((1, 2)) / 2,
        np.linalg.eigvalsh(bonds)[:, -1],
        np.diff(np.take_along_axis(energies, occupied - [1, 0], 1))[:, 0],
        np.linalg.eigvalsh(coulomb + diagonal * charge[:, None] ** 2.4 / 2)[:, -1],
    )
    return {
        target: value.astype(np.float32)
        for target, value in zip(TARGETS, values, strict=True)
    }


def _free_valence(atoms: np.ndarray, bonds: np.ndarray) -> np.ndarray:
    return _VALENCE[atoms] - bonds.sum(-1, dtype=int)


def _choose(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """An index of each row with probability in proportion to its weight."""
    total = np.cumsum(weights, axis=1)
    return (total > rng.random((len(total), 1)) * total[:, -1:]).argmax(1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _distances(positions: np.ndarray) -> np.ndarray:
    return np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)


def _path_lengths(bonds: np.ndarray) -> np.ndarray:
    """Number of bonds on the shortest path between atoms: Floyd and Warshall."""
    lengths = np.where(bonds > 0, 1.0, np.inf)
    for k in range(bonds.shape[1]):
        lengths = np.minimum(lengths, lengths[:, :, k, None] + lengths[:, k, None])
    return lengths
