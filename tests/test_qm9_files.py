"""QM9 from miniature raw files in exactly their formats."""

import numpy as np
import pytest

from samo_jax.experiments.data.qm9_files import TARGETS, read_qm9

HEADER = (
    "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,"
    "u0_atom,u298_atom,h298_atom,g298_atom"
)
# Methane, the first molecule of the data set.
METHANE_ROW = (
    "157.7118,157.70997,157.70699,0.0,13.21,-0.3877,0.1171,0.5048,35.3641,0.044749,"
    "-40.47893,-40.476062,-40.475117,-40.498597,6.469,"
    "-395.999594594,-398.643290011,-401.014646522,-372.471772148"
)
METHANE_ATOMS = [
    ("C", (-0.0127, 1.0858, 0.0080)),
    ("H", (0.0022, -0.0060, 0.0020)),
    ("H", (1.0117, 1.4638, 0.0003)),
    ("H", (-0.5408, 1.4475, -0.8766)),
    ("H", (-0.5238, 1.4379, 0.9064)),
]
METHANE_BONDS = [(1, 2, 1), (1, 3, 1), (1, 4, 1), (1, 5, 1)]
# Hydrogen cyanide, moved far so that the columns touch.
CYANIDE_ATOMS = [
    ("C", (-1000.0133, -1001.1325, -1000.0083)),
    ("N", (0.0023, 0.0192, 0.0019)),
    ("H", (-0.0278, 2.1989, 0.0042)),
]
CYANIDE_BONDS = [(1, 2, 3), (1, 3, 1)]
LEFT_OUT_HEADER = [
    "",
    "=" * 60,
    "Molecules that failed a consistency check",
    "of their geometries",
    "",
    "",
    "=" * 60,
    "#   Index      GDB17 SMILES      SMILES for B3LYP XYZ    D_IJ",
    "=" * 60,
]


def record(name, atoms, bonds):
    counts = f"{len(atoms):3d}{len(bonds):3d}  0     0  0  0  0  0  0999 V2000"
    zeros = "  0" * 12
    lines = [name, " -OEChem-03231823253D", "", counts]
    for element, (x, y, z) in atoms:
        lines.append(f"{x:10.4f}{y:10.4f}{z:10.4f} {element:<3s}{zeros[1:]}")
    lines += [f"{i:3d}{j:3d}{kind:3d}  0  0  0  0" for i, j, kind in bonds]
    return [*lines, "M  END", "$$$$"]


def write_qm9(folder, count=20, left_out=(3, 5)):
    """Methane and hydrogen cyanide in turns, alpha the number of the molecule."""
    raw = folder / "raw"
    raw.mkdir()
    structures, table = [], [HEADER]
    for k in range(1, count + 1):
        kind = (
            (CYANIDE_ATOMS, CYANIDE_BONDS)
            if k % 2 == 0
            else (
                METHANE_ATOMS,
                METHANE_BONDS,
            )
        )
        structures += record(f"gdb_{k}", *kind)
        row = METHANE_ROW.split(",")
        row[3:9] = (str(float(word) + k) for word in row[3:9])
        row[9:] = (str(float(word) * k) for word in row[9:])
        table.append(
            ",".join([f"gdb_{k}", *(METHANE_ROW.split(",") if k == 1 else row)])
        )
    listed = [f"{k:8d}        C             C        6.036217" for k in left_out]
    skipped = [*LEFT_OUT_HEADER, *listed, "=" * 60]
    for name, lines in (
        ("gdb9.sdf", structures),
        ("gdb9.sdf.csv", table),
        ("uncharacterized.txt", skipped),
    ):
        (raw / name).write_text("\n".join(lines) + "\n")


def find(data, number):
    """The molecule of this number: its arrays and its labels."""
    for molecules, labels in data[:3]:
        mine = labels["mu"] == (0 if number == 1 else number)
        if mine.any():
            [row] = np.flatnonzero(mine)
            arrays = [array[row] for array in molecules]
            return arrays, {target: values[row] for target, values in labels.items()}
    return None


def test_methane(tmp_path):
    """Labels are those that PyTorch Geometric publishes for its molecule 0."""
    write_qm9(tmp_path)
    (atoms, bonds, positions), labels = find(read_qm9(tmp_path, num_eval=4), 1)
    assert atoms.tolist() == [6, 1, 1, 1, 1] + [0] * 24
    expected = np.zeros((29, 29))
    expected[0, 1:5] = expected[1:5, 0] = 1
    np.testing.assert_array_equal(bonds, expected)
    np.testing.assert_allclose(
        positions[:5], [position for _, position in METHANE_ATOMS], rtol=1e-6
    )
    assert not positions[5:].any()
    assert tuple(labels) == TARGETS
    published = {
        "mu": 0.0,
        "alpha": 13.21,
        "homo": -10.549854,
        "lumo": 3.186453,
        "r2": 35.3641,
        "zpve": 1.217682,
        "u0": -17.172182,
        "u": -17.286823,
        "h": -17.389656,
        "g": -16.151918,
        "cv": 6.469,
    }
    for target, value in published.items():
        np.testing.assert_allclose(labels[target], value, rtol=1e-6, err_msg=target)


def test_columns_that_touch(tmp_path):
    write_qm9(tmp_path)
    (atoms, bonds, positions), _ = find(read_qm9(tmp_path, num_eval=4), 2)
    assert atoms[:4].tolist() == [6, 7, 1, 0]
    assert bonds[:3, :3].tolist() == [[0, 3, 1], [3, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(positions[0], [-1000.0133, -1001.1325, -1000.0083])


def test_split(tmp_path):
    write_qm9(tmp_path)
    data = read_qm9(tmp_path, seed=1, num_eval=4)
    numbers = [np.maximum(labels["mu"], 1) for _, labels in data[:3]]
    assert [len(part) for part in numbers] == [10, 4, 4]
    assert sorted(np.concatenate(numbers)) == sorted({*range(1, 21)} - {3, 5})
    assert find(data, 3) is None
    again = read_qm9(tmp_path, seed=1, num_eval=4)
    other = read_qm9(tmp_path, seed=2, num_eval=4)
    np.testing.assert_array_equal(again.test[1]["mu"], data.test[1]["mu"])
    assert set(other.test[1]["mu"]) != set(data.test[1]["mu"])
    for target in TARGETS:
        train = data.train[1][target].astype(float)
        np.testing.assert_allclose(data.mean[target], train.mean())
        np.testing.assert_allclose(data.deviation[target], train.std())


@pytest.mark.parametrize(
    ("name", "number", "become", "message"),
    [
        (
            "gdb9.sdf",
            4,
            "  5  4  0  0  0  0 V3000",
            r"sdf:4: must be the counts of atoms",
        ),
        (
            "gdb9.sdf",
            4,
            " 30  4  0  0  0  0 V2000",
            r"sdf:4: .* 1 to 29 atoms .* got 30",
        ),
        ("gdb9.sdf", 4, "  5 44  0  0  0  0 V2000", r"sdf:4: .* got 5 and 44 in 10 li"),
        ("gdb9.sdf", 5, "    0.0000    1.0000 C", r"sdf:5: must be a position and one"),
        (
            "gdb9.sdf",
            6,
            f"{0:10.4f}{0:10.4f}{0:10.4f} S  0",
            r"sdf:6: .* H, C, N, O, F",
        ),
        (
            "gdb9.sdf",
            6,
            f"{0:10.4f}{'nan':>10s}{0:10.4f} C  0",
            r"sdf:6: must be a posi",
        ),
        ("gdb9.sdf", 11, "  1  6  1  0", r"sdf:11: must be two of 5 atoms and a bond"),
        ("gdb9.sdf", 11, "  0  2  1  0", r"sdf:11: must be two of 5 atoms and a bond"),
        ("gdb9.sdf", 11, "  1  2  5  0", r"sdf:11: must be two of 5 atoms and a bond"),
        ("gdb9.sdf", 16, "gdb_7", r"sdf:16: .* line 3 of gdb9.sdf.csv, got 'gdb_7'"),
        ("gdb9.sdf", 16, None, r"the 20 molecules of gdb9.sdf.csv, got 1: is it cut"),
        ("gdb9.sdf", 20, None, r"sdf:16: the molecule must end with \$\$\$\$"),
        ("gdb9.sdf.csv", 20, None, r"sdf:\d+: must be the molecule of line 20 of"),
        (
            "gdb9.sdf.csv",
            1,
            HEADER.replace("zpve", "z"),
            r"csv:1: must name column zpve",
        ),
        ("gdb9.sdf.csv", 3, "gdb_2,1,2", r"csv:3: must be a name and 19 numbers"),
        ("gdb9.sdf.csv", 3, "gdb_2" + ",x" * 19, r"csv:3: must be a name and 19 numb"),
        ("gdb9.sdf.csv", 3, "gdb_2" + ",nan" * 19, r"csv:3: must be a name and 19 num"),
        ("uncharacterized.txt", 10, "C  C", r"txt:10: must be a molecule's number"),
        ("uncharacterized.txt", 11, "", r"txt:11: must be a molecule's number"),
        ("uncharacterized.txt", 11, "21 C C 1", r"txt:11: .*number from 1 to 20 and"),
        ("uncharacterized.txt", 11, "0 C C 1", r"txt:11: .*number from 1 to 20 and"),
    ],
)
def test_malformed(tmp_path, name, number, become, message):
    """Line `number` is something else, or the file ends before it."""
    write_qm9(tmp_path)
    path = tmp_path / "raw" / name
    lines = path.read_text().splitlines()
    changed = lines[: number - 1]
    if become is not None:
        changed += [become, *lines[number:]]
    path.write_text("\n".join(changed) + "\n")
    with pytest.raises(ValueError, match=message):
        read_qm9(tmp_path, num_eval=4)


@pytest.mark.parametrize("name", ["gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt"])
def test_missing(tmp_path, name):
    write_qm9(tmp_path)
    (tmp_path / "raw" / name).unlink()
    with pytest.raises(ValueError, match=rf"raw/{name} is missing: unpack"):
        read_qm9(tmp_path, num_eval=4)


def test_too_few(tmp_path):
    write_qm9(tmp_path)
    with pytest.raises(ValueError, match=r"more than 2 \* 10000 .*, got 18"):
        read_qm9(tmp_path)
