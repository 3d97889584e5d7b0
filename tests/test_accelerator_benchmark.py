"""benchmarks/accelerator.py on a CPU, its cheapest parts at the smallest sizes."""

import json
import subprocess
import sys
from functools import partial

import accelerator
import accelerator_host
import accelerator_jax
import accelerator_models
import jax
import jax.numpy as jnp
import pytest
import step_models
from accelerator_page import page


class Here:
    """A worker in this process; without a module, as where PyTorch is missing."""

    def __init__(self, module=None):
        self.module = module

    def ask(self, function, arguments, seconds):
        assert seconds > 0
        if self.module is None:
            return {"error": "ModuleNotFoundError: No module named 'torch'"}
        return getattr(self.module, function)(**arguments)

    def stop(self):
        pass


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Of a run: a recorded step, a solver, two methods' steps of a small MLP."""
    tiny = partial(step_models.mlp, 4, [8], 16)
    monkeypatch.setattr(accelerator_models, "SIZES", {"mlp": (tiny, tiny)})
    monkeypatch.setattr(accelerator, "GOLDENS", [("samo_step_k2", "float32", None)])
    monkeypatch.setattr(accelerator, "SOLVERS", ["fairgrad"])
    monkeypatch.setattr(accelerator, "TASKS", [3])
    monkeypatch.setattr(accelerator, "METHODS", ["plain", "FairGrad"])
    monkeypatch.setattr(accelerator, "UNROLL", {"mlp": None})
    monkeypatch.setattr(accelerator, "MORE", {"mlp": [("FairGrad", 4)]})
    parts = {name: accelerator.PARTS[name] for name in ("recorded steps", "solvers")}
    parts["mlp"] = (partial(accelerator.steps, model="mlp"), 1.0)
    monkeypatch.setattr(accelerator, "PARTS", parts)
    workers = {"jax": Here(accelerator_jax), "torch": Here()}
    run = accelerator.Run(tmp_path, 10, True, workers, tmp_path / "page.md")
    accelerator.measure(run, list(parts))
    run.finish()
    lines = (tmp_path / "measurements.jsonl").read_text().splitlines()
    assert (tmp_path / "page.md").read_text() == page(run.rows)
    return [json.loads(line) for line in lines]


@pytest.mark.slow
def test_a_small_run(rows):
    """What is right on a CPU; and a page of any part of it, as of a run cut short."""

    def of(part):
        return [row for row in rows if row["part"] == part and "error" not in row]

    (golden,) = of("golden")
    assert golden["quantities"] == 21
    assert golden["missed"] == []
    (solver,) = of("solver")
    assert solver["direction_error"] < 1e-5
    assert solver["converged"] == 1
    steps = {(row["method"], row["unroll"]) for row in of("timed")}
    assert steps == {("plain", None), ("FairGrad", None), ("FairGrad", 4)}
    assert all(row["finite"] and min(row["ms"]) > 0 for row in of("timed"))
    # The solver's loop ends when its data say so; the mean gradient has none.
    loops = {row["method"]: row["program"]["loops"] for row in of("prepared")}
    assert loops["FairGrad"]
    assert not loops["plain"]

    text = page(rows)
    for cell in (
        "samo_step_k2",
        "fairgrad",
        "FairGrad, chunks of 4",
        "No module named",
    ):
        assert cell in text
    for end in range(len(rows)):
        assert page(rows[:end])


def program(function):
    """What the host may be asked for."""
    compiled = jax.jit(function).lower(jnp.linspace(0, 1, 1024)).compile()
    found = accelerator_host.in_program(compiled.as_text())
    return {kind: len(names) for kind, names in found.items()}


def test_programs_that_may_need_the_host():
    calm = {"loops": 0, "branches": 0, "callbacks": 0}

    def found(kind, is_open=False):
        return program(partial(accelerator_jax.rounds_of, kind, is_open))

    assert found("cosine") == calm
    assert found("cosine", is_open=True) == calm | {"loops": 1}
    assert found("lax.switch") == calm | {"branches": 1}
    assert found("jax.pure_callback") == calm | {"callbacks": 1}


def test_copies_and_pauses_of_a_profile():
    """Streams overlap: busy is the union, a pause what is in none."""
    events = [
        ("kernel", 0, 10),
        ("other", 5, 10),
        ("MemcpyD2H", 20, 2),
        ("kernel", 22, 8),
        ("MemcpyH2D", 40, 10),
    ]
    found = accelerator_host.summary(events, calls=2)
    assert found["to_host"] == found["from_host"] == 0.5
    assert found["operations"] == 2.5
    assert found["busy"] == pytest.approx(35 / 50)
    assert found["span_ms"] == pytest.approx(50e-6 / 2)
    assert found["longest_pause_us"] == pytest.approx(10e-3)
    assert found["longest"][0][0] == "kernel"


def test_a_worker_survives_what_hangs_and_what_fails():
    worker = accelerator.Worker("subprocess")
    try:
        hangs = worker.ask("getoutput", {"cmd": "sleep 60"}, seconds=0.2)
        assert "not done in" in hangs["error"]
        fails = worker.ask("check_output", {"args": ["./nothing"]}, seconds=60)
        assert "FileNotFoundError" in fails["error"]
        assert worker.ask("getoutput", {"cmd": "echo well"}, seconds=60) == "well"
    finally:
        worker.stop()
    missing = accelerator.Worker("no_such_module")
    try:
        assert "ModuleNotFoundError" in missing.ask("f", {}, seconds=60)["error"]
    finally:
        missing.stop()


@pytest.mark.slow
def test_the_package_runs_from_a_checkout():
    """Where it is not installed, it has no version but works."""
    hidden = (
        "import importlib.metadata as metadata\n"
        "def version(name):\n"
        "    raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "import samo_jax\n"
        "print(samo_jax.__version__, samo_jax.mgda_weights([[1.0]]))\n"
    )
    printed = subprocess.check_output([sys.executable, "-c", hidden], text=True)
    assert printed.split() == ["0+unknown", "[1.]"]
