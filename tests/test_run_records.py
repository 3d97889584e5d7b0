"""What a run of a benchmark takes and leaves behind."""

import base64
import json
import shlex
import shutil
import struct
import sys
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto.event_pb2 import Event

import samo_jax
from samo_jax.experiments.reports import benchmark_page
from samo_jax.experiments.reports.training_plot import curves, plot_training
from samo_jax.experiments.studies.benchmark import BenchmarkCommand
from samo_jax.experiments.training.agreement import make_diagnose
from samo_jax.experiments.training.configuration import FileParser, settings
from samo_jax.experiments.training.records import Records
from samo_jax.experiments.training.results import load
from samo_jax.experiments.training.runs import Run

from small_runs import main, small_digits

METHODS = ["single-task", "mean", "fairgrad"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    args = ["--methods", *METHODS, "--epochs", 2, "--seeds", 2, "--tensorboard"]
    assert main("digits", *args, "--rho", 0.1, "--out", folder) == 0
    return folder


def parse(*args):
    parser = FileParser(prog="digits")
    BenchmarkCommand("digits").add_arguments(parser)
    return settings(parser.parse_args(list(map(str, args))))


def read(path):
    return json.loads(path.read_text())


def lines(folder):
    return list(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))


def test_config_repeats_the_run(folder):
    config = read(folder / "config.json")
    assert config["methods"] == METHODS
    assert config["rho"] == 0.1
    assert config["alpha"] == 0.5
    assert parse("--config", folder / "config.json") == config
    command = benchmark_page.command(config)
    assert f"{command}\n" in (folder / "report.md").read_text()
    *python, name = shlex.split(command)[:4]
    assert (python, name) == (["python", "-m", "samo_jax.experiments"], "digits")
    assert parse(*shlex.split(command)[4:]) == config


def test_the_command_line_overrides_the_file(tmp_path):
    path = tmp_path / "settings.toml"
    path.write_text('methods = ["mean", "mgda"]\nseeds = 5\nrho = 0.3\n')
    parsed = parse("--seeds", 3, "--config", path, "--alpha", 0.1)
    assert parsed == parse("--methods", "mean", "mgda", "--rho", 0.3, "--alpha", 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"radius": 1}', "'radius': is no setting; there are benchmark, methods, "),
        ('{"rho": -1}', "'rho': argument --rho: must be a finite non-negative number"),
        ('{"seeds": "x"}', "'seeds': argument --seeds: must be a positive integer"),
        ('{"seeds": true}', "'seeds': argument --seeds: expected one argument"),
        ('{"methods": ["mean", "adam"]}', "--methods: 'adam': there is no combiner"),
        ('{"benchmark": "scenes"}', "invalid choice: 'scenes' (choose from"),
        ('{"rho": 1', "must be a JSON file, or a .toml file: Expecting ',' delimiter"),
        ("[1]", "must hold settings by name, got a list"),
        (None, "No such file or directory"),
    ],
)
def test_wrong_files_get_one_line(tmp_path, capsys, text, message):
    path = tmp_path / "settings.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as end:
        parse("--config", path)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert message in error
    assert error.count("\n") == 1


def test_a_line_an_evaluation(folder):
    found = {}
    for line in lines(folder):
        found.setdefault((line["method"], line["seed"]), []).append(line)
    _, results = load(folder, Run)
    assert set(found) == {(m, s) for m in METHODS for s in (0, 1)}
    for method in METHODS[1:]:
        for seed, run in results[method].items():
            of = found[method, seed]
            for field, curve in (
                ("metrics", run.metrics_curve),
                ("agreement", run.agreement_curve),
            ):
                assert [(line["epoch"], line[field]) for line in of] == curve
            losses = [np.mean(list(line["loss"].values())) for line in of]
            np.testing.assert_allclose(losses, run.loss_curve, rtol=1e-6)
            assert set(of[0]["loss"]) == {"left", "right"}
    alone = found["single-task", 0]
    assert [set(line["metrics"]) for line in alone] == [{"left"}] * 2 + [{"right"}] * 2
    assert all(line["agreement"] is None for line in alone)
    assert results["single-task"][0].agreement_curve == []
    agreement = results["fairgrad"][0].agreement_curve[0][1]
    assert -1 <= agreement["cosine"] <= 1
    assert set(agreement["weights"]) == {"left", "right"}
    assert results["mean"][0].agreement_curve[0][1]["weights"] is None


def test_an_interrupt_loses_no_line(tmp_path):
    records = Records(tmp_path, {}, [], {})
    evaluation = {"epoch": 1, "loss": {}, "metrics": {}, "agreement": None}

    def interrupted():
        with records.training("mean", 0) as write:
            write(evaluation)
            assert lines(tmp_path) == [{"method": "mean", "seed": 0, **evaluation}]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(lines(tmp_path)) == 1


def test_tensorboard(folder):
    """The events, read by their record format, are the lines."""
    [path] = (folder / "tensorboard/fairgrad/seed1").iterdir()
    data, scalars = path.read_bytes(), {}
    while data:
        # Length (8 bytes), its checksum (4), the event, its checksum (4).
        [length] = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            scalars[value.tag, event.step] = value.simple_value
    expected = {}
    for line in lines(folder):
        if (line["method"], line["seed"]) == ("fairgrad", 1):
            epoch, agreement = line["epoch"], line["agreement"]
            for task in ("left", "right"):
                expected[f"loss/{task}", epoch] = line["loss"][task]
                expected[f"accuracy/{task}", epoch] = line["metrics"][task]["accuracy"]
                expected[f"weight/{task}", epoch] = agreement["weights"][task]
            expected["gradients/cosine", epoch] = agreement["cosine"]
            expected["gradients/conflicts", epoch] = agreement["conflicts"]
    assert set(scalars) == set(expected)
    for key, value in expected.items():
        assert scalars[key] == np.float32(value)


def test_tensorboard_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(SystemExit, match=r"pip install 'samo_jax\[tensorboard\]'"):
        main("digits", "--tensorboard", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_resumed_as_uninterrupted(folder, tmp_path):
    resumed = tmp_path / "run"
    shutil.copytree(folder, resumed)
    # Interrupted in the second seed of "mean".
    document = read(folder / "results.json")
    document["runs"] = [
        run
        for run in document["runs"]
        if (run["method"], run["seed"]) not in [("mean", 1), ("fairgrad", 1)]
    ]
    (resumed / "results.json").write_text(json.dumps(document))
    whole = (folder / "metrics.jsonl").read_text()
    done, _, _ = whole.partition('{"method": "mean", "seed": 1')
    torn = whole[: len(done) + 300]
    assert torn.count("\n") > done.count("\n")
    (resumed / "metrics.jsonl").write_text(torn)

    assert main("digits", "--resume", resumed) == 0
    assert (resumed / "metrics.jsonl").read_text() == whole

    def without_time(folder):
        document = read(folder / "results.json")
        for run in document["runs"]:
            if run["seed"] == 1:
                assert run.pop("seconds_per_step") > 0
        return document

    assert without_time(resumed) == without_time(folder)
    [events] = (resumed / "tensorboard/mean/seed1").iterdir()
    assert events.stat().st_size > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--seeds", "3"], r"config.json has seeds 2, not 3: drop the options"),
        (["--out", "there"], "--out: drop it"),
    ],
)
def test_resume_changes_no_setting(folder, args, message):
    with pytest.raises(SystemExit, match=message):
        main("digits", "--resume", folder, *args)


def test_resume_needs_a_run(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main("digits", "--resume", tmp_path)
    assert f"{tmp_path} is no folder of a run" in capsys.readouterr().err


@pytest.mark.slow
def test_agreement():
    """Against NumPy; heads do not count."""
    params = {"trunk": jnp.array([1.0, -2.0, 0.5]), "b": jnp.array(1.0)}

    def losses(params, x):
        a, b, c = x @ params["trunk"]
        return {"c": c**2, "a": jnp.sin(a), "b": b * params["b"]}

    x = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0], [1.0, 1.0, 1.0]])
    tasks = ("c", "a", "b")
    tx = samo_jax.multitask(samo_jax.constant([0.2, 0.3, 0.5]), num_tasks=3)
    state = tx.init(params)
    loss_fn = lambda p: losses(p, x)  # noqa: E731
    _, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
    _, state = tx.update(grads, state, params, loss_fn=loss_fn)
    diagnose = make_diagnose(lambda params, x, _: (losses(params, x), {}), x, tasks)
    found = diagnose(params, (state, optax.EmptyState()), None)

    a, _, c = np.array(x @ params["trunk"])
    rows = np.array([2 * c * x[2], np.cos(a) * x[0], x[1]])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (rows @ rows.T)[np.triu_indices(3, 1)]
    np.testing.assert_allclose(found["cosine"], cosines.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["conflicts"], np.mean(cosines < 0), rtol=1e-6)
    assert found["weights"] == pytest.approx({"a": 0.2, "b": 0.3, "c": 0.5})
    assert diagnose(params, (), None)["weights"] is None
    json.dumps(found)


def diagnosed(num_tasks, weights=True):
    rng = np.random.default_rng(0)
    curve = []
    for epoch in (2, 4):
        of = {f"task{i:02}": float(rng.normal()) for i in range(num_tasks)}
        agreement = {"cosine": 0.1 * epoch, "conflicts": 0.5}
        curve.append([epoch, agreement | {"weights": of if weights else None}])
    return Run({}, [], [], 0.1, curve)


def test_curves():
    one, two = diagnosed(3), diagnosed(3)
    two.agreement_curve[0][1]["weights"] = {
        "task00": 1.0,
        "task01": 3.0,
        "task02": -4.0,
    }
    of = curves([one, two])
    np.testing.assert_array_equal(of.epochs, [2, 4])
    np.testing.assert_allclose(of.cosine, [0.2, 0.4])
    first = np.array(list(one.agreement_curve[0][1]["weights"].values()))
    expected = (first / np.abs(first).sum() + np.array([1, 3, -4]) / 8) / 2
    np.testing.assert_allclose([share[0] for share in of.weights.values()], expected)


@pytest.mark.slow
def test_plot_of_many_tasks(tmp_path):
    results = {f"method{i}": {0: diagnosed(40)} for i in range(5)}
    results |= {"mean": {0: diagnosed(40, weights=False)}}
    path = tmp_path / "training.png"
    assert plot_training(results, path)
    assert path.stat().st_size > 10_000
    path.unlink()
    assert not plot_training({"single-task": {0: Run({}, [], [], 0.1)}}, path)
    assert not path.exists()


class Page(HTMLParser):
    """Pictures, cells, and the cells by row."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.rows = [], []
        self.in_cell = False
        self.feed(text)

    @property
    def cells(self):
        return [cell for row in self.rows for cell in row]

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.in_cell = self.in_cell or tag in ("td", "th")
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def test_report_stands_alone(folder):
    page = Page((folder / "report.html").read_text())
    prefix = "data:image/png;base64,"
    names = ["summary.png", "training.png"]
    for name, picture in zip(names, page.pictures, strict=True):
        assert picture.startswith(prefix)
        data = base64.b64decode(picture.removeprefix(prefix))
        assert data == (folder / name).read_bytes()
    _, results = load(folder, Run)
    rows = benchmark_page.summarize(results, small_digits("test").tasks)
    assert page.cells == [cell for row in rows for cell in row]
    text = (folder / "report.md").read_text()
    assert all(f"| {method} |" in text for method in METHODS)
    assert f"jax {jax.__version__}" in text
