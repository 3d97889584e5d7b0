"""Every notebook runs, says what its plain-text twin says, and shows its results."""

import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
all_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

MAX_BYTES = 700_000
# Less time to compile; and a kernel that draws into the notebook, not into files.
ENVIRONMENT = os.environ | {"QUICK": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
ENVIRONMENT.pop("MPLBACKEND")


@all_notebooks
def test_twins(path):
    cells, twin_cells = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(twin).cells]
        for twin in (path, path.with_suffix(".py"))
    )
    assert cells == twin_cells


@all_notebooks
def test_committed_outputs(path):
    code = [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))  # run once, from top to bottom
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert all(output.get("name") != "stderr" for output in outputs)
    assert any("image/png" in output.get("data", ()) for output in outputs)
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.slow
@all_notebooks
def test_runs(path, tmp_path):
    output = tmp_path / "executed.ipynb"
    command = Path(sys.executable).with_name("jupyter-execute")
    result = subprocess.run(
        [command, "--timeout=300", f"--output={output}", path],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    pictures = output.read_text().count("image/png")
    assert pictures == path.read_text().count("image/png")
