"""Training that is cut short goes on as if nothing had happened."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from samo_jax.experiments.training.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    Checkpoints,
    Clock,
)
from samo_jax.experiments.training.grammar import COMBINER_NAMES, EXAMPLE
from samo_jax.experiments.training.runs import read_record

import small_runs

RUN = ["--methods", "famo", "single-task", "--epochs", 6, "--seeds", 1]
RUN += ["--checkpoint-every", 0]
EVALUATIONS = 3 * 6


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Of an uninterrupted run; the last checkpoints, too."""
    folder = tmp_path_factory.mktemp("whole")
    assert small_runs.main("digits", *RUN, "--out", folder) == 0
    return folder


def results(folder):
    """But for times."""
    document = json.loads((folder / "results.json").read_text())
    for run in document["runs"]:
        assert run.pop("seconds_per_step") > 0
    return document


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(args, folder, after):
    """A process that has ended by SIGKILL, a moment after so many lines."""
    child = subprocess.Popen(
        [sys.executable, small_runs.__file__, "digits", *map(str, args)],
        # As this process has it: other machine code rounds otherwise.
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
        stdout=subprocess.DEVNULL,
    )
    try:
        count, moment = after
        deadline = time.monotonic() + 120
        while lines(folder) < count and child.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(moment)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL


def final_arrays(folder):
    """Those of the last checkpoints, by their paths."""
    items = ocp.args.Composite(arrays=ocp.args.StandardRestore())
    found = {}
    for path in (folder / CHECKPOINTS).glob("*/*/*/6"):
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            arrays = checkpointer.restore(path, args=items).arrays
        found[str(path.relative_to(folder))] = arrays
    return found


@pytest.mark.slow
def test_killed_at_random_moments(whole, tmp_path):
    """What remains is bit by bit that of the uninterrupted run."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "run"
    args = [*RUN, "--out", folder]
    for count in np.sort(rng.integers(2, EVALUATIONS - 1, 2)):
        killed(args, folder, (count, rng.uniform(0, 0.2)))
        assert lines(folder) < EVALUATIONS
        args = ["--resume", folder, "--checkpoint-every", 0]
    assert small_runs.main("digits", *args) == 0
    assert results(folder) == results(whole)
    name = "metrics.jsonl"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    expected = final_arrays(whole)
    assert len(expected) == 3
    last = "checkpoints/single-task/seed0/1/6"
    jax.tree.map(
        np.testing.assert_array_equal, final_arrays(folder)[last], expected[last]
    )


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_is_lengthened(whole, tmp_path, finished):
    """To what it would be from the start."""
    folder = tmp_path / "run"
    shorter = [*RUN, "--epochs", 4, "--out", folder]
    if finished:
        assert small_runs.main("digits", *shorter) == 0
    else:
        killed(shorter, folder, (3, 0.05))
    args = ["--resume", folder, "--epochs", 6, "--checkpoint-every", 0]
    assert small_runs.main("digits", *args) == 0
    assert results(folder) == results(whole)
    for name in ("metrics.jsonl", "config.json"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    for path, arrays in final_arrays(whole).items():
        jax.tree.map(np.testing.assert_array_equal, final_arrays(folder)[path], arrays)


def test_lengthening_needs_checkpoints_and_the_same_evaluations(tmp_path):
    args = ["--methods", "mean", "--seeds", 1, "--no-keep-checkpoints"]
    folder = tmp_path / "run"
    assert small_runs.main("digits", *args, "--epochs", 1, "--out", folder) == 0
    before = (folder / "results.json").read_bytes()
    assert not (folder / CHECKPOINTS).exists()
    with pytest.raises(SystemExit, match="--epochs: 'mean', seed 0, has no checkpoint"):
        small_runs.main("digits", "--resume", folder, "--epochs", 2)
    with pytest.raises(SystemExit, match="drop the options beside --resume"):
        small_runs.main("digits", "--resume", folder, "--epochs", 2, "--seeds", 2)
    config = json.loads((folder / "config.json").read_text())
    assert config["epochs"] == 1
    (folder / "config.json").write_text(json.dumps(config | {"epochs": 25}))
    message = "a run of 50 has .* than its first 25: the next that fits is 60"
    with pytest.raises(SystemExit, match=message):
        small_runs.main("digits", "--resume", folder, "--epochs", 50)
    assert (folder / "results.json").read_bytes() == before


def interrupted(trainer, checkpoint, epoch):
    """Training to an epoch whose checkpoint is not written."""
    epochs = iter(range(1, epoch))
    with pytest.raises(StopIteration):
        trainer.train(0, 5, lambda: next(epochs), checkpoint=checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["famo+samo", "modo", "mgda+multitask(weights_every=3)"]
)
def test_states_go_on(tmp_path, method):
    """Batch statistics, dropout, draws, independent batches, last and kept weights."""
    benchmark = small_runs.normalised_benchmark()._replace(batch_size=4)
    trainer = small_runs.trainer(benchmark, method)
    expected_params, expected = trainer.train(0, 5, lambda: None)
    checkpoint = Checkpoint(tmp_path / "there", Clock(0))
    interrupted(trainer, checkpoint, 3)
    interrupted(trainer, checkpoint, 5)
    heard = []
    params, run = trainer.train(0, 5, lambda: None, heard.append, checkpoint)
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)
    same = {"seconds_per_step": 0}
    assert run._replace(**same) == expected._replace(**same)
    assert [of["epoch"] for of in heard] == [1, 2, 3, 4, 5]


ARRAYS = {
    "params": {
        "a.b/c": jnp.arange(6.0).reshape(2, 3),
        "half": jnp.ones(2, jnp.bfloat16),
    },
    "key": jax.random.key(3),
    "rbg": jax.random.key(3, impl="rbg"),
    "empty": jnp.zeros((0, 2)),
    "batch": (np.arange(3), None, np.float64(0.1) * np.ones(2)),
}
RECORD = {"seed": 2**127 + 1, "losses": [0.1, float("inf")], "none": None}


def load(checkpoint, arrays=ARRAYS):
    return checkpoint.load(lambda: arrays)


def bits(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def assert_same(loaded):
    arrays, record = loaded
    assert record == RECORD

    def check(one, other):
        assert one.dtype == other.dtype
        assert np.array_equal(*map(bits, (one, other)))

    jax.tree.map(check, arrays, ARRAYS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    checkpoint = Checkpoint(folder, Clock(0))
    assert load(checkpoint) is None
    checkpoint.save(1, ARRAYS, {})
    checkpoint.save(3, ARRAYS, RECORD)
    return folder


def test_what_is_loaded_is_what_was_saved(saved):
    assert_same(load(Checkpoint(saved, Clock(0))))
    assert [path.name for path in saved.iterdir()] == ["3"]


def damages():
    """Functions of a file."""
    yield lambda path: path.unlink()
    yield lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def flip(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    yield flip


def test_a_damaged_checkpoint_is_not_taken(saved, tmp_path):
    """Whatever file it is that is damaged, and how."""
    files = [path.relative_to(saved) for path in saved.rglob("*") if path.is_file()]
    messages = []
    for damage in damages():
        for name in files:
            folder = tmp_path / "copy"
            shutil.copytree(saved, folder)
            damage(folder / name)
            try:
                loaded = load(Checkpoint(folder, Clock(0)))
            except SystemExit as end:
                messages.append(str(end))
            else:  # not every file matters
                assert_same(loaded)
            shutil.rmtree(folder)
    assert len(messages) >= 3 * 4  # manifest, metadata, data, document
    for message in messages:
        assert message.startswith(f"--resume: {folder / '3'} cannot be read (")
        assert message.count("\n") == 0


def test_a_half_written_checkpoint_is_ignored(saved, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    unfinished = folder / "4.orbax-checkpoint-tmp"
    shutil.copytree(folder / "3", unfinished)
    checkpoint = Checkpoint(folder, Clock(0))
    assert_same(load(checkpoint))
    checkpoint.save(4, ARRAYS, RECORD)
    assert [path.name for path in folder.iterdir()] == ["4"]


def test_a_checkpoint_of_another_network_is_not_taken(saved):
    other = ARRAYS | {"params": {"a.b/c": jnp.zeros((3, 2))}}
    with pytest.raises(SystemExit, match="it is of another network or optimiser"):
        load(Checkpoint(saved, Clock(0)), other)


def past(**others):
    state = np.random.default_rng(0).bit_generator.state
    metrics = {"left": {"accuracy": 1.0}}
    evaluation = {"epoch": 1, "loss": {"left": 1.0}, "metrics": metrics}
    evaluation |= {"agreement": None}
    past = {"losses": [1.0], "seconds": [[0.1]], "evaluations": [evaluation]} | others
    return {"rngs": [state, state], "past": past}


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"rngs": [], "past": 1},
        past() | {"rngs": [{}, {}]},
        past() | {"rngs": past()["rngs"][:1]},
        past() | {"more": 1},
        past(losses=[]),
        past(losses=["x"]),
        past(losses=[1.0] * 3, seconds=[[0.1] * 3]),
        past(seconds=[[]]),
        past(seconds=[[], [0.1]]),
        past(evaluations=[]),
        past(evaluations=[{}]),
    ],
    ids=lambda record: str(record)[-40:],
)
def test_a_record_of_no_training_is_not_taken(tmp_path, record):
    """Whoever has written it, and it is whole."""
    checkpoint = Checkpoint(tmp_path, Clock(0))
    read = partial(read_record, epochs=2)
    assert read(past())[0].losses == [1.0]
    checkpoint.save(1, {"a": np.ones(1)}, record)
    with pytest.raises(SystemExit, match=r"cannot be read \(.*\): delete it") as end:
        checkpoint.load(lambda: {"a": np.ones(1)}, read)
    assert str(end.value).isprintable()


def test_nothing_but_arrays_and_json(saved):
    """No file that loading would execute."""
    for path in saved.rglob("*"):
        if path.is_file():
            assert not path.read_bytes().startswith((b"\x80\x04", b"\x80\x05", b"PK"))


def test_methods_are_names_of_files(tmp_path):
    [paths] = {
        Checkpoints(tmp_path, 0)._run(method, 0).parts[:-2]
        for method in (*COMBINER_NAMES, EXAMPLE)
    }
    assert paths == (tmp_path / CHECKPOINTS).parts


@contextmanager
def full_disk(size):
    """Writing more than some bytes into a file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing(tmp_path, capfd):
    checkpoint = Checkpoint(tmp_path, Clock(0))
    checkpoint.save(1, ARRAYS, RECORD)
    noise = np.random.default_rng(0).normal(size=10_000)
    with full_disk(20_000), pytest.raises(OSError, match="File too large"):
        checkpoint.save(2, {"noise": noise}, {})
    assert capfd.readouterr().err == ""
    assert_same(load(checkpoint))
    checkpoint.save(2, {"noise": noise}, {})
    assert load(checkpoint, {"noise": noise}) is not None


@pytest.mark.slow
def test_a_full_disk_stops_a_run_in_one_line(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("here")
    args = ["--methods", "mean", "--epochs", 2, "--seeds", 1, "--checkpoint-every", 0]
    message = rf"File too large: '{tmp_path}/here/.*--resume {folder}$"
    with full_disk(5_000), pytest.raises(SystemExit, match=message) as end:
        small_runs.main("digits", *args, "--out", folder)
    assert str(end.value).count("\n") == 0
    assert "Traceback" not in capfd.readouterr().err
    assert lines(folder) == 1
    assert small_runs.main("digits", "--resume", folder, "--no-keep-checkpoints") == 0
    assert lines(folder) == 2
    assert not (folder / CHECKPOINTS).exists()


def test_a_folder_that_cannot_be_written(tmp_path):
    """No user, root included, makes a folder below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"--out: .* Not a directory: "):
        small_runs.main("digits", "--out", tmp_path / "file" / "run")
