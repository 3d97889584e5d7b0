"""Tables of molecules: files, fingerprints, splits, missing labels, and training."""

import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from samo_jax.experiments.data.fingerprints import fingerprints, scaffold_groups
from samo_jax.experiments.data.molecule_tables import read_molecule_table
from samo_jax.experiments.data.splits import random_split, split_of_groups
from samo_jax.experiments.problems import registry
from samo_jax.experiments.problems.tabular_tasks import BINARY, CLASSES, explained
from samo_jax.experiments.problems.tabular_tasks import number as regression

from miniatures import write_molecules
from small_runs import main


def test_table_of_a_real_form(tmp_path):
    """As Tox21: names that are no task, gaps, values as 1 and 1.0, packed by gzip."""
    text = (
        "NR-AR,SR-p53,mol_id,smiles\n"
        "0,,TOX3021,CCOc1ccc2nc(S(N)(=O)=O)sc2c1\n"
        '1.0,0.0,TOX3020,"CCN1C(=O)NC(c2ccccc2)C1=O"\n'
        ",1,TOX3024,O=[N+]([O-])C\n\n"
    )
    plain, packed = tmp_path / "tox.csv", tmp_path / "tox.csv.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        table = read_molecule_table(path)
        assert table.smiles[1:] == ["CCN1C(=O)NC(c2ccccc2)C1=O", "O=[N+]([O-])C"]
        assert list(table.labels) == ["NR-AR", "SR-p53"]
        np.testing.assert_array_equal(table.labels["NR-AR"], [0, 1, np.nan])
        np.testing.assert_array_equal(table.labels["SR-p53"], [np.nan, 0, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smiles,a\nC,0\nC,2\n", r"csv:3: a must be 0, 1 or empty, got '2'"),
        ("smiles,a\nC,0\n\nC,maybe\n", r"csv:4: a must be 0, 1 or empty, got 'maybe'"),
        ("smiles,a\nC,0\nC\n", r"csv:3: must have 2 fields .* got 1"),
        ("smiles,a\nC,0\nC,1,1\n", r"csv:3: must have 2 fields .* got 3"),
        ("smiles,a,a\nC,0,1\n", r"must name each column once, got 'a' 2 times"),
        ("molecule,a\nC,0\n", r"must have a column 'smiles', got molecule, a"),
        ("smiles,a\n", r"must have a header and rows"),
        ("", r"must have a header and rows"),
        ("smiles,name\nC,x\n", r"must have a column of 0, 1 or nothing .* got none"),
        ('smiles,a\n"C,0\n', r"must be a table in CSV"),
    ],
)
def test_malformed(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_molecule_table(path)


def test_no_such_file_and_other_bytes(tmp_path):
    with pytest.raises(ValueError, match="is missing"):
        read_molecule_table(tmp_path / "none.csv")
    for name, content in (
        ("table.csv", b"smiles,a\n\xff\xfe,1\n"),
        ("cut.csv.gz", gzip.compress(b"smiles,a\nC,1\n" * 999)[:60]),
        ("plain.csv.gz", b"smiles,a\nC,1\n"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a table in CSV"):
            read_molecule_table(path)


def test_fingerprints_are_of_the_molecule():
    """Not of its text; and what is no molecule has none."""
    bits, readable = fingerprints(["CCO", "OCC", "c1ccccc1", "no molecule", ""])
    assert readable.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(bits[0], bits[1])
    assert (bits[0] != bits[2]).any()
    # Ethanol has six circles of at most two bonds around an atom.
    assert bits.shape == (5, 1024)
    assert bits.sum(axis=1).tolist()[:1] + bits.sum(axis=1).tolist()[3:] == [6, 0, 0]


def test_scaffolds():
    """Toluene and phenol share benzene; chains have none, and so one in common."""
    smiles = ["Cc1ccccc1", "CCO", "Oc1ccccc1", "C1CCCCC1", "CCN", "c1ccccc1"]
    assert scaffold_groups(smiles) == [[0, 2, 5], [1, 4], [3]]


def test_scaffold_split_keeps_groups_together():
    rng = np.random.default_rng(0)
    sizes = sorted(rng.integers(1, 12, 60), reverse=True)
    numbers = iter(rng.permutation(sum(sizes)).tolist())
    groups = [[next(numbers) for _ in range(size)] for size in sizes]
    parts = split_of_groups(groups)
    for group in groups:
        assert sum({*group} <= {*part.tolist()} for part in parts) == 1
    assert sorted(np.concatenate(parts)) == list(range(sum(sizes)))
    assert len(parts.train) <= 0.8 * sum(sizes) < len(parts.train) + max(sizes)


def test_random_split_is_the_same_again():
    first, again, other = random_split(97), random_split(97), random_split(97, seed=1)
    assert sorted(np.concatenate(first)) == list(range(97))
    for one, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert first.train.tolist() != other.train.tolist()


def test_loss_of_labelled_examples_alone():
    logits, labels = jnp.array([0.3, -2.0, 1.0]), jnp.array([1.0, jnp.nan, 0.0])
    value, grad = jax.value_and_grad(BINARY.loss)(logits, labels)
    expected = jnp.mean(jnp.log1p(jnp.exp(jnp.array([-0.3, 1.0]))))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert grad[1] == 0
    assert jnp.isnan(BINARY.loss(logits, jnp.full(3, jnp.nan)))


def test_metrics_over_batches_with_gaps():
    rng = np.random.default_rng(0)
    logits, classes = rng.normal(size=50), rng.integers(0, 2, 50).astype(float)
    classes[::7] = np.nan
    observed = [
        BINARY.observe(logits[s], classes[s]) for s in (slice(30), slice(30, 50))
    ]
    known = ~np.isnan(classes)
    auc = 100 * roc_auc_score(classes[known], logits[known])
    np.testing.assert_allclose(BINARY.metrics(observed)["auc"], auc)
    diverged = [BINARY.observe(np.full(50, np.nan), classes)]
    assert np.isnan(BINARY.metrics(diverged)["auc"])

    scores, labels = np.eye(3)[[0, 1, 2, 0]], np.array([0, 2, 2, np.nan])
    accuracy = CLASSES.metrics([CLASSES.observe(scores, labels)])["accuracy"]
    np.testing.assert_allclose(accuracy, 200 / 3)

    output, label = np.array([1.0, 2.0, 9.0]), np.array([2.0, 2.0, np.nan])
    of_number = regression(4.0, "m")
    assert of_number.metrics([of_number.observe(output, label)]) == {"error": 2.0}
    of_variance = explained(2.0)
    found = of_variance.metrics([of_variance.observe(output, label)])
    assert found == {"explained_variance": 75.0}


@pytest.mark.parametrize("split_by", ["random", "scaffold"])
def test_benchmark(tmp_path, split_by):
    """Tasks are the same for both splits; unreadable molecules and tasks are named."""
    path = tmp_path / "molecules.csv.gz"
    write_molecules(path)
    test, validation = (
        registry.load("moleculenet", path, split, split_by=split_by, batch_size=10)
        for split in ("test", "validation")
    )
    assert {*test.tasks} == {*validation.tasks} == {"active", "toxic"}
    train, *others = (
        part.num_examples
        for part in (test.train, test.evaluation, validation.evaluation)
    )
    assert train == validation.train.num_examples
    assert train + sum(others) == 240
    assert train / 240 == pytest.approx(0.8, abs=0.05)
    for said in ("1 of 241 molecules, which RDKit", "in a part, rare."):
        assert any(said in note for note in test.notes)
    assert np.isnan(test.train.labels["toxic"]).any()


def test_no_task_with_both_classes(tmp_path):
    path = tmp_path / "molecules.csv"
    path.write_text("smiles,a\n" + "C,1\n" * 30)
    with pytest.raises(ValueError, match="must have a task with both classes"):
        registry.load("moleculenet", path, "test")


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods",
    [
        ["mean", "fairgrad+samo"],
        ['fairgrad+multitask(gramian_of="representation", weights_every=2)'],
    ],
)
def test_trains_and_reports(tmp_path, methods):
    """What carbon and oxygen say is learnt, from the labels that there are."""
    path, out = tmp_path / "molecules.csv", tmp_path / "out"
    write_molecules(path)
    options = ["--epochs", 15, "--seeds", 1, "--width", 0.02, "--batch-size", 16]
    main("moleculenet", "--data", path, "--out", out, *options, "--methods", *methods)
    document = json.loads((out / "results.json").read_text())
    for finished in document["runs"]:
        for metrics in finished["metrics"].values():
            assert metrics["auc"] > 80
    assert "in a part, rare." in (out / "report.md").read_text()
