"""The documentation builds without a warning and describes every public name once."""

import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import samo_jax
from samo_jax.experiments.__main__ import main

DOCS = Path(__file__).parents[1] / "docs"
FAULTS = {
    ".. autofunction:: samo_jax.no_such_method": "no attribute 'no_such_method'",
    2 * ".. autofunction:: samo_jax.mgda\n\n": "duplicate object description",
    "`samo_jax.mgba`": "py:obj reference target not found: samo_jax.mgba",
}


def build(source, folder):
    """In a process of its own: what Sphinx warns of is not pytest's."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "-b", "html"]
    return subprocess.run(
        [*command, source, folder], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    built = build(DOCS, folder)
    assert built.returncode == 0, built.stderr
    return folder


def documented(site):
    """The Python names of the inventory, compressed after four lines of header."""
    compressed = (site / "objects.inv").read_bytes().split(b"\n", 4)[-1]
    lines = zlib.decompress(compressed).decode().splitlines()
    return [line.split()[0] for line in lines if " py:" in line]


@pytest.mark.slow
def test_every_public_name_is_described_once(site):
    """A second description would be a warning."""
    public = {f"samo_jax.{name}" for name in samo_jax.__all__} - {
        "samo_jax.__version__"
    }
    names = documented(site)
    assert len(public) > 90
    assert {name for name in names if name.count(".") == 1} == public
    assert len(names) == len(set(names))
    assert not [name for name in names if "._" in name]


@pytest.mark.slow
def test_every_experiment_has_its_help(site, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    (\w+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    page = (site / "reference" / "experiments.html").read_text()
    assert "toy" in commands
    assert set(re.findall(r"samo_jax\.experiments (\w+) \[-h\]", page)) == set(commands)


@pytest.mark.slow
def test_faults_are_found(tmp_path):
    shutil.copy(DOCS / "conf.py", tmp_path)
    (tmp_path / "index.rst").write_text("\n\n".join(["Faults\n======", *FAULTS]))
    built = build(tmp_path, tmp_path / "site")
    assert built.returncode == 1
    for warning in FAULTS.values():
        assert warning in built.stderr
