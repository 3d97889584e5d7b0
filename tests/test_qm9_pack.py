"""QM9 from a miniature of the package `qm9pack`, and its split."""

import importlib.metadata

import numpy as np
import pytest

from samo_jax.experiments.data import qm9_pack
from samo_jax.experiments.data.qm9_files import TARGETS, read_qm9
from samo_jax.experiments.data.qm9_pack import read_qm9_pack
from samo_jax.experiments.data.qm9_parts import qm9_parts, read_permutation
from samo_jax.experiments.problems import registry

from miniatures import write_qm9, write_qm9_pack


@pytest.fixture(name="data")
def package(tmp_path, monkeypatch):
    """An installed package with the molecules of `write_qm9`, of which one is cut."""
    folder = tmp_path / "site"
    count = write_qm9_pack(folder)

    class Distribution:
        version = "1.0.3"

        @staticmethod
        def locate_file(path):
            return folder / path

    monkeypatch.setattr(qm9_pack, "NUM_MOLECULES", count)
    monkeypatch.setattr(qm9_pack, "distribution", lambda _: Distribution)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder / "qm9pack/data"


@pytest.mark.usefixtures("data")
def test_package_and_raw_files_agree(tmp_path):
    """The same molecules: totals less those of atoms are the files' energies."""
    write_qm9(tmp_path)
    pack, raw = read_qm9_pack(), read_qm9(tmp_path)
    methane = [np.flatnonzero(labels["mu"] == 0)[0] for _, labels in (pack, raw)]
    for target in TARGETS:
        values = [
            labels[target][row]
            for (_, labels), row in zip((pack, raw), methane, strict=True)
        ]
        # The two have one energy of an atom rounded each.
        np.testing.assert_allclose(*values, rtol=2e-6, err_msg=target)
    for mine, theirs in zip(pack[0], raw[0], strict=True):
        np.testing.assert_allclose(mine[methane[0]], theirs[methane[1]], atol=1e-6)


@pytest.mark.usefixtures("data")
def test_bonds_by_distance():
    """Hydrogen cyanide: C and N, C and H, though not N and H; of one kind."""
    molecules, _ = read_qm9_pack()
    [row] = np.flatnonzero((molecules.atoms == 7).any(axis=1))[:1]
    assert molecules.bonds[row][:3, :3].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert not molecules.bonds[row][3:].any()


@pytest.mark.usefixtures("data")
def test_read_once(tmp_path, monkeypatch):
    first = read_qm9_pack()
    monkeypatch.setattr(qm9_pack, "_read", None)
    again = read_qm9_pack()
    np.testing.assert_array_equal(first[0].bonds, again[0].bonds)
    np.testing.assert_array_equal(first[1]["u0"], again[1]["u0"])
    [cache] = (tmp_path / "cache/samo_jax").iterdir()
    cache.write_bytes(cache.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{cache} cannot be read .* delete it"):
        read_qm9_pack()


@pytest.mark.parametrize(
    ("become", "message"),
    [
        ('Elements,XYZ_Ang\n"[\'C\']","[[0,0,0]]"\n', "must hold QM9 as qm9pack has"),
        ("", r"must have 12 molecules, got 8"),
        (None, "must hold QM9 as qm9pack has"),
        ("['C'", "must hold QM9 as qm9pack has"),
        ("one less", "molecules, got"),
    ],
)
def test_damaged_package(data, become, message):
    path = data / "qm9_part2.csv"
    text = path.read_text()
    if become is None:
        path.unlink()
    elif become == "one less":
        path.write_text("".join(text.splitlines(keepends=True)[:-1]))
    elif become == "['C'":
        path.write_text(text.replace("['C',", "['S',"))
    else:
        path.write_text(become)
    with pytest.raises(ValueError, match=message):
        read_qm9_pack()


def test_missing_package(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(qm9_pack, "distribution", missing)
    with pytest.raises(SystemExit, match=r"pip install 'samo_jax\[qm9\]'"):
        read_qm9_pack()


def labelled(count):
    """Molecules and labels that are the molecules' numbers."""
    numbers = np.arange(count)
    molecules = qm9_pack.Molecules(numbers, numbers, numbers)
    return molecules, dict.fromkeys(TARGETS, numbers.astype(np.float32))


def test_parts_of_the_whole():
    """As SAMO's code cuts them: 10,000 for test, 10,000 for validation, the rest."""
    order = np.random.default_rng(3).permutation(130_831)
    data = qm9_parts(*labelled(130_831), order)
    for part, expected in (
        (data.test, order[:10_000]),
        (data.validation, order[10_000:20_000]),
        (data.train, order[20_000:]),
    ):
        np.testing.assert_array_equal(part[0].atoms, expected)
        np.testing.assert_array_equal(part[1]["g"], expected)
    train = order[20_000:].astype(float)
    np.testing.assert_allclose(data.mean["g"], train.mean())
    np.testing.assert_allclose(data.deviation["g"], train.std())


@pytest.mark.parametrize("most", [13_000, 200, 10**6])
def test_parts_of_some(most):
    """Each part is the beginning of the whole one's."""
    order = np.random.default_rng(3).permutation(130_831)
    data = qm9_parts(*labelled(130_831), order, most)
    sizes = [len(part[0].atoms) for part in (data.test, data.validation, data.train)]
    assert abs(sum(sizes) - min(most, 130_831)) <= 2
    np.testing.assert_array_equal(data.test[0].atoms, order[: sizes[0]])
    np.testing.assert_array_equal(data.train[0].atoms, order[20_000:][: sizes[2]])


def test_too_few_molecules():
    with pytest.raises(ValueError, match="three or more molecules, got 2"):
        qm9_parts(*labelled(2), np.arange(2))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_permutation(tmp_path, suffix):
    path, order = tmp_path / f"order.{suffix}", np.array([2, 0, 1], np.int32)
    if suffix == "npy":
        np.save(path, order)
    else:
        np.savez(path, permutation=order)
    assert read_permutation(path, 3).tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match=r"numbers from 0 to 3, got .* shape \(3,\)"):
        read_permutation(path, 4)


def test_no_permutation(tmp_path):
    path = tmp_path / "order.npy"
    with pytest.raises(ValueError, match="is missing"):
        read_permutation(path, 3)
    np.save(path, np.array([0, 1, 1]))
    with pytest.raises(ValueError, match="must be a permutation"):
        read_permutation(path, 3)
    path.write_text("2 0 1")
    with pytest.raises(ValueError, match="must be a NumPy array"):
        read_permutation(path, 3)


@pytest.mark.usefixtures("data")
def test_benchmark_of_the_package(tmp_path):
    order = tmp_path / "order.npy"
    count = qm9_pack.NUM_MOLECULES
    np.save(order, np.arange(count)[::-1])
    found = registry.load("qm9", None, "test", batch_size=4, permutation=order)
    molecules, labels = read_qm9_pack()
    np.testing.assert_array_equal(
        found.evaluation.inputs.positions[0], molecules.positions[-1]
    )
    mean = labels["cv"][: count - 2].astype(float).mean()
    np.testing.assert_allclose(
        found.train.labels["cv"].mean(), 0, atol=1e-5, err_msg=f"{mean}"
    )
    assert found.tasks["u0"].units == {"error": "eV"}
    assert found.train.num_examples == count - 2
