"""The papers' benchmarks on miniature files, end to end and shallow."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import f1_score

from samo_jax.experiments.__main__ import main
from samo_jax.experiments.data.dense_files import CITYSCAPES, NYU_V2
from samo_jax.experiments.networks import celeba_net, resnet, segnet
from samo_jax.experiments.networks.multi_input import MultiInput
from samo_jax.experiments.problems import files, optimizers, registry
from samo_jax.experiments.problems.on_disk import OnDisk, PerTask
from samo_jax.experiments.problems.tasks import DETECTION
from samo_jax.experiments.reports import scores
from samo_jax.experiments.training.columns import columns
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.optimizers import make_optimizer
from samo_jax.experiments.training.runs import Run
from samo_jax.experiments.training.train_step import (
    apply_net,
    make_train_step,
    task_losses,
)

from miniatures import write_celeba, write_dense, write_office, write_qm9
from small_runs import Normalised, normalised_benchmark, trainer
from three_heads import without_keys
from tiers import mostly_slow

WRITE = {
    "cityscapes": partial(write_dense, layout=CITYSCAPES),
    "nyuv2": partial(write_dense, layout=NYU_V2),
    "celeba": write_celeba,
    "qm9": write_qm9,
    "officehome": write_office,
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Networks of few layers, and random numbers that compile faster."""
    monkeypatch.setattr(segnet, "CHANNELS", (64,))
    monkeypatch.setattr(segnet, "CONVOLUTIONS", (1,))
    monkeypatch.setattr(celeba_net, "_STAGES", ((1,), (2,)))
    monkeypatch.setattr(resnet, "_BLOCKS", (1,))
    with jax.default_prng_impl("rbg"):
        yield


def run(*args):
    return main([str(arg) for arg in args])


def refused(*args):
    """The message that the command ends with."""
    with pytest.raises(SystemExit) as exited:
        run(*args)
    return exited.value.code


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cityscapes", ["--batch-size", 2, "--methods", "mean"]),
        ("nyuv2", ["--network", "segnet", "--methods", "mean"]),
        ("celeba", ["--batch-size", 1, "--methods", "mean+samo"]),
        ("qm9", ["--batch-size", 4, "--methods", "mean"]),
        ("officehome", ["--batch-size", 2, "--methods", "mean"]),
    ],
)
def test_trains_and_reports(tmp_path, name, args):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    WRITE[name](data)
    options = ["--epochs", 2, "--seeds", 1, "--width", 0.03, *args]
    assert run(name, "--data", data, "--out", out, *options) == 0
    document = json.loads((out / "results.json").read_text())
    assert document["config"]["rho"] == registry.RECIPES[name]["rho"]
    assert document["config"]["alpha"] == registry.RECIPES[name]["alpha"]
    for finished in document["runs"]:
        metrics = finished["metrics"]
        assert np.all(np.isfinite([v for of in metrics.values() for v in of.values()]))
        first, second = finished["loss_curve"]
        assert np.isfinite(second)
        assert first != second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "what"),
    [
        ("cityscapes", "train/depth/1.npy", "is not a NumPy array of numbers"),
        ("celeba", "img_align_celeba/000003.jpg", "is not an image"),
    ],
)
def test_malformed_file_in_training(tmp_path, name, file, what):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    WRITE[name](data)
    (data / file).write_bytes((data / file).read_bytes()[:200])
    options = ["--width", 0.03, "--batch-size", 2, "--methods", "mean"]
    message = refused(name, "--data", data, "--out", out, *options)
    assert message.startswith(f"Stopped: {data / file} {what}")
    assert message.endswith(f"experiments {name} --resume {out}")


@pytest.fixture(scope="module")
def normalised():
    return normalised_benchmark()


@pytest.mark.slow
def test_clean_pass_alone_changes_batch_statistics(normalised):
    """They are by hand, and SAMO's those of plain training; so are dropout's keys."""
    batch = normalised.train
    stepped = {}
    for method in ("mean", "fairgrad+samo"):
        one = trainer(normalised, method)
        params, opt_state, state = one.start(0)
        args = params, opt_state, batch, batch, batch, state
        stepped[method] = one.train_step(*args)
    (plain, *_, plain_state), (samo, *_, samo_state) = stepped.values()
    jax.tree.map(
        np.testing.assert_array_equal, *map(without_keys, (plain_state, samo_state))
    )
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), plain, samo)))
    assert plain_state.key != state.key

    features = batch.inputs @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    statistics = plain_state.collections["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], 0.1 * features.mean(0), rtol=1e-5)
    expected = 0.9 + 0.1 * features.var(0)
    np.testing.assert_allclose(statistics["var"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    "method", mostly_slow(["mean+global_sam", "mean+samo"], but={"mean+samo"})
)
def test_probes_alone_are_in_evaluation_mode(normalised, method):
    modes = []

    def losses(params, batch, state, train=True):
        modes.append(train)
        return task_losses(normalised, one.net, params, batch, state, train)

    one = trainer(normalised, method)
    step = make_train_step(losses, make_optimizer(method_of(method), normalised, 0))
    (params, opt_state, state), batch = one.start(0), normalised.train
    jax.eval_shape(step, params, opt_state, batch, batch, batch, state)
    looked_at_once = 1  # for its tasks
    assert (modes.count(False) > looked_at_once) == (method == "mean+samo")


def test_evaluation_uses_running_averages(normalised):
    """Of each example alone, and without dropout."""
    one = trainer(normalised, "mean")
    params, _, state = one.start(0)
    moved = jax.tree.map(lambda leaf: leaf + 0.5, state.collections)
    state = state._replace(collections=moved)
    inputs = normalised.train.inputs

    def outputs(inputs):
        return apply_net(normalised, one.net, params, inputs, state, train=False)

    together, kept = outputs(inputs)
    assert kept is moved
    alone = np.concatenate([outputs(inputs[i : i + 1])[0]["left"] for i in range(8)])
    np.testing.assert_allclose(together["left"], alone, rtol=1e-5, atol=1e-6)
    right = 100 * np.mean(
        together["left"].argmax(-1) == normalised.train.labels["left"]
    )
    np.testing.assert_allclose(one.evaluate(params, state)["left"]["accuracy"], right)


@pytest.mark.slow
def test_training_with_batch_statistics_learns_and_repeats(normalised):
    one = trainer(normalised._replace(epochs=40), "mean")
    first, again, other = (one.train(seed, 40, lambda: None)[1] for seed in (0, 0, 1))
    assert first.loss_curve[-1] < 0.8 * first.loss_curve[0]
    assert first.loss_curve == again.loss_curve
    assert first.loss_curve != other.loss_curve


@pytest.mark.slow
def test_each_task_is_normalised_by_itself():
    """As the network applied to one task's inputs after the other's."""
    inputs = {
        "left": np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32),
        "right": np.random.default_rng(1).normal(3, 2, size=(4, 3)).astype(np.float32),
    }
    net, alone = MultiInput(Normalised()), Normalised()
    variables = net.init(jax.random.key(0), inputs, train=False)
    params, stats = variables["params"], variables["batch_stats"]
    assert set(params) == {"Dense_0", "BatchNorm_0", "left", "right"}

    def apply(net, inputs, stats):
        return net.apply(
            {"params": params, "batch_stats": stats},
            inputs,
            train=True,
            rngs={"dropout": jax.random.key(1)},
            mutable=["batch_stats"],
        )

    _, updated = apply(net, inputs, stats)
    for x in inputs.values():
        stats = apply(alone, x, stats)[1]["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], stats)
    outputs = net.apply(variables, {"right": inputs["right"]}, train=False)
    expected = alone.apply(variables, inputs["right"], train=False)["right"]
    np.testing.assert_array_equal(outputs["right"], expected)
    assert set(outputs) == {"right"}


class Numbers:
    """Example i is i; its labels are 10 i and 20 i."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return np.array(index), {"a": np.array(10 * index), "b": np.array(20 * index)}


def test_on_disk_epochs():
    data = OnDisk(Numbers(7), ("a", "b")).only(["b"])
    rng = np.random.default_rng(0)
    epochs = [list(data.batches(3, rng)) for _ in range(2)]
    for batches in epochs:
        seen = np.concatenate([batch.inputs for batch in batches])
        assert len(batches) == 2
        assert len(set(seen)) == 6
        for batch in batches:
            np.testing.assert_array_equal(batch.labels["b"], 20 * batch.inputs)
            assert set(batch.labels) == {"b"}
    first, second = (np.concatenate([b.inputs for b in batches]) for batches in epochs)
    assert first.tolist() != second.tolist()
    again = np.concatenate(
        [batch.inputs for batch in data.batches(3, np.random.default_rng(0))]
    )
    np.testing.assert_array_equal(again, first)
    assert [b.inputs.tolist() for b in data.batches(3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_augmentation_is_for_training():
    def negative(example, rng):
        inputs, labels = example
        return -inputs - rng.random(), labels

    data = OnDisk(Numbers(4), ["a"], negative)
    [batch] = data.batches(4, np.random.default_rng(0))
    assert np.all(batch.inputs <= 0)
    assert len(set(batch.inputs % 1)) == 4
    [batch] = data.batches(4)
    assert batch.inputs.tolist() == [0, 1, 2, 3]


def test_per_task_epochs():
    """As long as the longest; the shorter starts again."""
    parts = {"a": OnDisk(Numbers(3), ["a"]), "b": OnDisk(Numbers(7), ["b"])}
    data = PerTask(parts)
    batches = list(data.batches(2, np.random.default_rng(0)))
    assert len(batches) == 7 // 2
    for task, examples in (("a", 3), ("b", 7)):
        seen = np.concatenate([batch.inputs[task] for batch in batches])
        labels = np.concatenate([batch.labels[task] for batch in batches])
        np.testing.assert_array_equal(labels, {"a": 10, "b": 20}[task] * seen)
        assert len(set(seen)) == min(examples, 6)
    every = [(*batch.inputs, *batch.labels) for batch in data.batches(2)]
    assert every == [("a", "a")] * 2 + [("b", "b")] * 4
    assert data.only(["a"]).num_examples == 3


def test_validation_holds_out_training_images(tmp_path):
    write_dense(tmp_path, CITYSCAPES)
    test, validation = (
        registry.load("cityscapes", tmp_path, split, 1)
        for split in ("test", "validation")
    )
    assert test.train.num_examples == 3
    assert test.evaluation.num_examples == 2
    train = [batch.inputs for batch in test.train.batches(1)]
    [held_out] = [batch.inputs for batch in validation.evaluation.batches(1)]
    rest = [batch.inputs for batch in validation.train.batches(1)]
    np.testing.assert_array_equal([held_out, *rest], train)


@pytest.mark.parametrize("name", WRITE)
def test_wrong_folder_gets_one_line(tmp_path, name):
    out = tmp_path / "out"
    message = refused(name, "--data", tmp_path, "--out", out)
    assert message.startswith(f"--data: {tmp_path}")
    assert "\n" not in message
    if name != "qm9":  # which comes with a package
        assert "--data: the folder" in refused(name)
    assert not out.exists()


def test_wrong_layout_and_too_few_examples(tmp_path):
    """The first example tells."""
    write_dense(tmp_path, CITYSCAPES._replace(size=(64, 96)))
    args = ["cityscapes", "--data", tmp_path, "--out", tmp_path / "out"]
    assert "has shape (64, 96, 3), expected (128, 256, 3)" in refused(
        *args, "--batch-size", 1
    )
    write_dense(tmp_path, CITYSCAPES)
    assert "must have 8 training examples, got 3" in refused(*args)


def test_help_says_what_the_folder_holds(capsys):
    with pytest.raises(SystemExit):
        run("nyuv2", "--help")
    text = capsys.readouterr().out
    assert "0.npy" in text
    assert "segnet" in text


@pytest.mark.parametrize("seed", range(3))
def test_f1(seed):
    rng = np.random.default_rng(seed)
    logits, labels = rng.normal(size=20), rng.integers(2, size=20)
    parts = [DETECTION.observe(logits[i], labels[i]) for i in (slice(8), slice(8, 20))]
    expected = 100 * f1_score(labels, logits > 0)
    np.testing.assert_allclose(DETECTION.metrics(parts)["f1"], expected)
    nothing = DETECTION.observe(-np.ones(3), np.zeros(3))
    assert DETECTION.metrics([nothing]) == {"f1": 0}


def steps_of(optimizer, values):
    """Sizes of Adam's steps along a constant gradient, for losses like these."""
    tx = optax.with_extra_args_support(optimizer(1e-3, 2, 100))

    @jax.jit
    def scan(values):
        def step(state, value):
            updates, state = tx.update(jnp.ones(()), state, jnp.zeros(()), value=value)
            return state, -updates

        return jax.lax.scan(step, tx.init(jnp.zeros(())), values)[1]

    return np.asarray(scan(jnp.asarray(values)))


def test_halved_learning_rate():
    sizes = steps_of(optimizers.adam_halved(3), np.ones(14))
    expected = np.repeat([1e-3, 5e-4, 2.5e-4], [6, 6, 2])
    np.testing.assert_allclose(sizes, expected, rtol=1e-3)


def test_learning_rate_on_plateau():
    """Two steps an epoch; three epochs improve, six do not."""
    losses = np.repeat([3.0, 2.0, 1.0, *[1.0] * 6], 2)
    sizes = steps_of(optimizers.adam_on_plateau, losses)
    np.testing.assert_allclose(sizes[:-1], 1e-3, rtol=1e-3)
    np.testing.assert_allclose(sizes[-1], 7e-4, rtol=1e-3)
    least = steps_of(optimizers.adam_on_plateau, np.ones(200))[-1]
    np.testing.assert_allclose(least, 1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    "tasks", [files.CITYSCAPES_TASKS, files.NYU_V2_TASKS], ids=["cityscapes", "nyuv2"]
)
def test_delta_m_against_published_results(tasks):
    """Its own reference gives zero; a tenth worse everywhere gives ten percent."""
    finals = {}
    for method, factor in (("same", 0.0), ("worse", 0.1)):
        metrics = {
            name: {
                metric: task.single_task[metric]
                * (1 - factor if higher else 1 + factor)
                for metric, higher in task.higher_is_better.items()
            }
            for name, task in tasks.items()
        }
        finals[method] = {0: Run(metrics, [(1, metrics)], [1.0], 0.1)}
    chosen = columns(tasks)
    assert scores.baseline(chosen, finals) == scores.PUBLISHED
    deltas = scores.delta_m(chosen, finals)
    np.testing.assert_allclose(deltas["same"], 0, atol=1e-4)
    np.testing.assert_allclose(deltas["worse"], 10, rtol=1e-4)
