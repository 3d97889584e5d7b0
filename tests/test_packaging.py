"""What is handed out: the source distribution, and the core without extras."""

import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from hatchling.build import build_sdist

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_source_distribution_has_every_file(tmp_path, monkeypatch):
    """So README's test command runs in it as in a checkout."""
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    git = ["git", "ls-files", "--cached", "-z"]
    listed = subprocess.run(git, check=True, capture_output=True, text=True).stdout
    files = {file for file in listed.split("\0") if (ROOT / file).is_file()}
    assert {"conftest.py", "tests/conftest.py", "pyproject.toml"} < files
    assert files - names == set()


def test_the_citation_has_the_version_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {project['version']}\n" in citation


@pytest.mark.parametrize(
    "missing", ["rich", "matplotlib,filelock,flax,grain,markdown_it,orbax,rich,sklearn"]
)
def test_the_core_alone_says_what_to_install(missing):
    script = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(sys.argv.pop().split(',')))\n"
        "runpy.run_module('samo_jax.experiments', run_name='__main__')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, missing],
        capture_output=True,
        text=True,
        check=False,
    )
    first = missing.partition(",")[0]
    message = f"{first} is missing: pip install 'samo_jax[experiments]'\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", message)
