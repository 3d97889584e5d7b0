"""Every notebook runs, and says what its plain-text twin says."""

import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
all_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@all_notebooks
def test_twins(path):
    cells, twin_cells = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(twin).cells]
        for twin in (path, path.with_suffix(".py"))
    )
    assert cells == twin_cells


@all_notebooks
def test_runs(path, tmp_path):
    output = tmp_path / "executed.ipynb"
    command = Path(sys.executable).with_name("jupyter-execute")
    result = subprocess.run(
        [command, "--timeout=300", f"--output={output}", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "image/png" in output.read_text()
