"""QM9 from miniature raw files in exactly their formats."""

import os

import numpy as np
import pytest

from samo_jax.experiments.data import qm9_files
from samo_jax.experiments.data.qm9_files import TARGETS, read_qm9

from miniatures import HEADER, METHANE_ATOMS, write_qm9

FILES = ("gdb9.sdf", "gdb9.sdf.csv", "uncharacterized.txt")


def find(data, number):
    """The molecule of this number: its arrays and its labels."""
    molecules, labels = data
    mine = labels["mu"] == (0 if number == 1 else number)
    if not mine.any():
        return None
    [row] = np.flatnonzero(mine)
    arrays = [array[row] for array in molecules]
    return arrays, {target: values[row] for target, values in labels.items()}


def test_methane(tmp_path):
    """Labels are those that PyTorch Geometric publishes for its molecule 0."""
    write_qm9(tmp_path)
    (atoms, bonds, positions), labels = find(read_qm9(tmp_path), 1)
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
    (atoms, bonds, positions), _ = find(read_qm9(tmp_path), 2)
    assert atoms[:4].tolist() == [6, 7, 1, 0]
    assert bonds[:3, :3].tolist() == [[0, 3, 1], [3, 0, 0], [1, 0, 0]]
    np.testing.assert_allclose(positions[0], [-1000.0133, -1001.1325, -1000.0083])


def test_molecules_left_out(tmp_path):
    write_qm9(tmp_path)
    data = read_qm9(tmp_path)
    numbers = np.maximum(data[1]["mu"], 1)
    assert sorted(numbers) == sorted({*range(1, 21)} - {3, 5})
    assert find(data, 3) is None


@pytest.mark.parametrize(
    ("name", "number", "become", "message"),
    [
        (
            "gdb9.sdf",
            4,
            "  5  4  0  0  0  0 V3000",
            r"sdf:4: must be the counts of 1 to 29 atoms",
        ),
        (
            "gdb9.sdf",
            4,
            " 30  4  0  0  0  0 V2000",
            r"sdf:4: .* 1 to 29 atoms .* got ' 30",
        ),
        ("gdb9.sdf", 4, "  5 -1  0  0  0  0 V2000", r"sdf:4: .* and of bonds .* got"),
        ("gdb9.sdf", 4, "  5 44  0  0  0  0 V2000", r"sdf:4: .* 44 bonds, got 10 li"),
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
        ("gdb9.sdf", 11, "  2  2  1  0", r"sdf:11: must be two of 5 atoms and a bond"),
        ("gdb9.sdf", 1, "$$$$", r"sdf:1: .* the molecule of line 2 of .*, got ''"),
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
        (
            "gdb9.sdf.csv",
            1,
            HEADER.replace("zpve", "mu"),
            r"csv must name each column once, got 'mu' 2 times",
        ),
        (
            "gdb9.sdf.csv",
            3,
            "gdb_1" + ",1" * 19,
            r"csv must name each molecule once, got 'gdb_1' 2 times",
        ),
        ("gdb9.sdf.csv", 3, "gdb_2" + ",1e39" * 19, r"csv:3: must be a name and 19 nu"),
        ("gdb9.sdf.csv", 3, "gdb_2" + ",1_0" * 19, r"csv:3: must be a name and 19 num"),
        ("gdb9.sdf.csv", 3, "gdb_2,1,2", r"csv:3: must be a name and 19 numbers"),
        ("gdb9.sdf.csv", 3, "gdb_2" + ",x" * 19, r"csv:3: must be a name and 19 numb"),
        ("gdb9.sdf.csv", 3, "gdb_2" + ",nan" * 19, r"csv:3: must be a name and 19 num"),
        ("uncharacterized.txt", 10, "C  C", r"txt:10: must be a molecule's number"),
        ("uncharacterized.txt", 11, "", r"txt:11: must be a molecule's number"),
        ("uncharacterized.txt", 11, "21 C C 1", r"txt:11: .*number from 1 to 20 and"),
        ("uncharacterized.txt", 11, "0 C C 1", r"txt:11: .*number from 1 to 20 and"),
        ("uncharacterized.txt", 11, "3 C C 1", r"txt must name .* once, got 3 2 times"),
        ("uncharacterized.txt", 1, None, r"txt must have 9 lines of header, .*cut off"),
        ("uncharacterized.txt", 5, None, r"txt must have 9 lines of header, .*cut off"),
        ("uncharacterized.txt", 10, None, r"txt must have 9 lines of header, .*cut of"),
        ("uncharacterized.txt", 11, None, r"txt must have 9 lines of header, .*cut of"),
        ("uncharacterized.txt", 12, None, r"txt must have 9 lines of header, .*cut of"),
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
        read_qm9(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_other_files(tmp_path, name):
    """None, a folder, a pipe that nobody writes to, and bytes that are no text."""
    write_qm9(tmp_path)
    path = tmp_path / "raw" / name
    path.unlink()
    for make, message in (
        (lambda: None, "is missing: unpack"),
        (path.mkdir, "must be a regular file, got a folder, pipe or device: unpack"),
        (lambda: (path.rmdir(), os.mkfifo(path)), "must be a regular file, got"),
        (lambda: (path.unlink(), path.write_bytes(b"\xff" * 9)), "must be text in UTF"),
    ):
        make()
        with pytest.raises(ValueError, match=rf"raw/{name} {message}"):
            read_qm9(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html><body>Too many requests</body></html>",
        "<html>\n" + "<p>Not found</p>\n" * 30 + "</html>\n",
        "".join(f"{k} C C 1.0\n" for k in range(1, 15)) + "=" * 60,  # no header
    ],
)
def test_what_is_not_the_list_of_those_left_out(tmp_path, text):
    """It is not taken for a shorter list, which would let bad molecules in."""
    write_qm9(tmp_path)
    (tmp_path / "raw/uncharacterized.txt").write_text(text)
    with pytest.raises(ValueError, match=r"txt(:10:)? must (have 9 |be a mol)"):
        read_qm9(tmp_path)


def test_all_of_qm9_has_3054_left_out(tmp_path):
    write_qm9(tmp_path)
    path = tmp_path / "raw/uncharacterized.txt"
    assert qm9_files._read_left_out(path, 20).tolist() == [2, 4]
    with pytest.raises(ValueError, match=r"txt must list 3054 of .* 133885 .*, got 2:"):
        qm9_files._read_left_out(path, 133_885)
