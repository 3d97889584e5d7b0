"""QM9 from its raw files, without RDKit.

Ramakrishnan et al. 2014, as packed by MoleculeNet and read by PyTorch Geometric:
`raw/gdb9.sdf`, `raw/gdb9.sdf.csv` and `raw/uncharacterized.txt`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from samo_jax.experiments.data.checked_files import (
    finite_number,
    short,
    text_lines,
    whole_number,
    without_repetition,
)
from samo_jax.experiments.data.malformed import MalformedFileError
from samo_jax.experiments.data.molecules import Labels, Molecules

MAX_ATOMS = 29
ELEMENTS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
# Of all molecules; and of those that `uncharacterized.txt` lists among these.
NUM_MOLECULES, NUM_LEFT_OUT = 133_885, 3_054

_HARTREE, _KCAL_PER_MOL = 27.2113825435, 0.04336414  # in eV
# By target, the column of `gdb9.sdf.csv` and the factor to the unit of `read_qm9`.
_COLUMNS = {
    "mu": ("mu", 1.0),
    "alpha": ("alpha", 1.0),
    "homo": ("homo", _HARTREE),
    "lumo": ("lumo", _HARTREE),
    "r2": ("r2", 1.0),
    "zpve": ("zpve", _HARTREE),
    "u0": ("u0_atom", _KCAL_PER_MOL),
    "u": ("u298_atom", _KCAL_PER_MOL),
    "h": ("h298_atom", _KCAL_PER_MOL),
    "g": ("g298_atom", _KCAL_PER_MOL),
    "cv": ("cv", 1.0),
}
TARGETS = tuple(_COLUMNS)

_MAX_BYTES = 2**30
_REMEDY = (
    "unpack MoleculeNet's qm9.zip and save figshare's file 3195404 as "
    "uncharacterized.txt there, as PyTorch Geometric does"
)

_T = TypeVar("_T")


def read_qm9(folder: Path) -> tuple[Molecules, Labels]:
    """QM9's characterised molecules and eleven targets of each.

    The targets and units are those of the trainers of Nash-MTL and SAMO, that is of
    PyTorch Geometric: dipole moment mu in debye; polarisability alpha in cubic bohr;
    energies of the orbitals homo and lumo and zero-point energy zpve in eV; spatial
    extent r2 in square bohr; atomisation energies u0, u, enthalpy h and free energy g
    in eV; and heat capacity cv in cal/(mol K). The two papers report errors in meV
    where the unit is eV.

    Args:
        folder: folder with `raw/gdb9.sdf`, its `.csv`, and `raw/uncharacterized.txt`.

    Returns:
        Molecules of up to 29 atoms, hydrogen among them, and raw labels, float32. The
        molecules of `uncharacterized.txt` are left out.

    Raises:
        ValueError: a file is missing or malformed.
    """
    structures, table, left_out = (
        folder / "raw" / name
        for name in ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")
    )
    names, labels = _read_table(table)
    kept = np.setdiff1d(np.arange(len(names)), _read_left_out(left_out, len(names)))
    molecules = _read_structures(structures, names)
    return (
        Molecules(*(array[kept] for array in molecules)),
        {target: labels[kept, k] for k, target in enumerate(TARGETS)},
    )


def _each(
    path: Path, start: int, lines: Iterable[str], read: Callable[[str], _T], wanted: str
) -> Iterator[_T]:
    """Read each of the lines, the first of which is number `start` of the file."""
    for number, line in enumerate(lines, start):
        try:
            yield read(line)
        except (IndexError, KeyError, ValueError) as error:
            raise MalformedFileError(
                f"{path}:{number}: must be {wanted}, got {short(repr(line.rstrip()))}: "
                f"{_REMEDY}"
            ) from error


def _read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Names of the molecules and their targets, (N, 11) float32."""
    lines = (line for _, line in text_lines(path, _MAX_BYTES, _REMEDY))
    header = next(lines, "").strip().split(",")
    without_repetition(path, "column", header, _REMEDY)
    for column in ("mol_id", *(column for column, _ in _COLUMNS.values())):
        if column not in header:
            raise MalformedFileError(
                f"{path}:1: must name column {column}, got {short(header)}: {_REMEDY}"
            )

    def read(line: str) -> tuple[str, list[float]]:
        row = dict(zip(header, line.split(","), strict=True))
        values = _COLUMNS.values()
        return row["mol_id"], [finite_number(row[name]) * unit for name, unit in values]

    wanted = f"a name and {len(header) - 1} numbers"
    rows = list(_each(path, 2, lines, read, wanted))
    names = [name for name, _ in rows]
    without_repetition(path, "molecule", names, _REMEDY)
    return names, np.array([row for _, row in rows], np.float32)


def _read_left_out(path: Path, count: int) -> np.ndarray:
    """Indices, from 0, between nine lines of header and a closing line."""

    def read(line: str) -> int:
        return whole_number(line.split()[0], 1, count)

    def is_entry(line: str) -> bool:
        return "".join(line.split()[:1]).isdecimal()

    lines = [line for _, line in text_lines(path, _MAX_BYTES, _REMEDY)]
    header, entries, closing = lines[:9], lines[9:-1], lines[9:][-1:]
    if not entries or any(map(is_entry, header + closing)):
        raise MalformedFileError(
            f"{path} must have 9 lines of header, the molecules left out and a closing "
            f"line, got {len(lines)} lines that are not: is it cut off? {_REMEDY}"
        )
    wanted = f"a molecule's number from 1 to {count} and its SMILES"
    left_out = list(_each(path, 10, entries, read, wanted))
    without_repetition(path, "molecule", left_out, _REMEDY)
    if count == NUM_MOLECULES and len(left_out) != NUM_LEFT_OUT:
        raise MalformedFileError(
            f"{path} must list {NUM_LEFT_OUT} of QM9's {count} molecules, got "
            f"{len(left_out)}: {_REMEDY}"
        )
    return np.array(left_out) - 1


def _read_structures(path: Path, names: Sequence[str]) -> Molecules:
    """The molecules of an SDF file, which have to have these names."""
    count = len(names)
    molecules = Molecules(
        np.zeros((count, MAX_ATOMS), np.uint8),
        np.zeros((count, MAX_ATOMS, MAX_ATOMS), np.uint8),
        np.zeros((count, MAX_ATOMS, 3), np.float32),
    )
    found = 0
    for start, lines in _records(path):
        name = "".join(lines[:1]).strip()
        if found == count or name != names[found]:
            raise MalformedFileError(
                f"{path}:{start}: must be the molecule of line {found + 2} of "
                f"{path.name}.csv, got {short(repr(name))}: take both from one archive"
            )
        atoms, bonds, positions = _structure(path, start, lines)
        size, (i, j, kind) = len(atoms), np.array(bonds, int).reshape(-1, 3).T
        molecules.atoms[found, :size] = atoms
        molecules.positions[found, :size] = positions
        molecules.bonds[found, i, j] = molecules.bonds[found, j, i] = kind
        found += 1
    if found < count:
        raise MalformedFileError(
            f"{path} must have the {count} molecules of {path.name}.csv, got {found}: "
            f"is it cut off? {_REMEDY}"
        )
    return molecules


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line, and the lines, of each molecule of an SDF file."""
    start, lines = 1, []
    for number, line in text_lines(path, _MAX_BYTES, _REMEDY):
        if line.startswith("$$$$"):
            yield start, lines
            start, lines = number + 1, []
        else:
            lines.append(line)
    if lines:
        raise MalformedFileError(
            f"{path}:{start}: the molecule must end with $$$$: is it cut off? {_REMEDY}"
        )


def _structure(path: Path, start: int, lines: list[str]):
    """Atomic numbers, bonds as pairs with kind, and positions of a V2000 record.

    Its fields have fixed columns: three for a number of the fourth line, which counts
    atoms and bonds, and of a bond; ten for a coordinate; then the element.
    """

    def counts(line: str) -> tuple[int, int]:
        if "V2000" not in line:
            raise ValueError(line)
        return whole_number(line[:3], 1, MAX_ATOMS), whole_number(line[3:6], 0, 999)

    def atom(line: str) -> tuple[int, list[float]]:
        position = [finite_number(line[k : k + 10]) for k in (0, 10, 20)]
        return ELEMENTS[line[31:34].strip()], position

    def bond(line: str) -> tuple[int, int, int]:
        i, j = whole_number(line[:3], 1, size), whole_number(line[3:6], 1, size)
        if i == j:
            raise ValueError(line)
        return i - 1, j - 1, whole_number(line[6:9], 1, 4)

    wanted = f"the counts of 1 to {MAX_ATOMS} atoms and of bonds of a V2000 molecule"
    [(size, pairs)] = _each(path, start + 3, lines[3:4] or [""], counts, wanted)
    ends = np.cumsum([4, size, pairs])
    if len(lines) < ends[-1]:
        raise MalformedFileError(
            f"{path}:{start + 3}: must be followed by {size} atoms and {pairs} bonds, "
            f"got {len(lines) - 4} lines: {_REMEDY}"
        )
    wanted = f"a position and one of {', '.join(ELEMENTS)}"
    atoms = list(_each(path, start + 4, lines[4 : 4 + size], atom, wanted))
    wanted = f"two of {size} atoms and a bond from 1 to 4"
    rest = lines[4 + size : 4 + size + pairs]
    bonds = list(_each(path, start + 4 + size, rest, bond, wanted))
    return [z for z, _ in atoms], bonds, [position for _, position in atoms]
