"""The versions that are tested are those that are declared."""

import os
import re
import runpy
import tomllib
from pathlib import Path

import jax
import jaxlib.version
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["experiments"], *extras["test"]]
    for requirement in map(Requirement, declared):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                yield requirement.name, Version(bound.version)


def test_the_oldest_versions_are_the_lower_bounds():
    pins = re.findall(r"^(\w+)==(\S+)$", (ROOT / ".ci/oldest.txt").read_text(), re.M)
    declared = dict(lower_bounds())
    assert {"jax", "jaxlib", "optax", "flax"} <= dict(pins).keys()
    assert {name: Version(pin) for name, pin in pins} == {
        name: declared[name] for name, _ in pins
    }


@pytest.mark.parametrize(
    ("version", "ours"),
    [
        ((0, 8, 0), ["--xla_cpu_use_fusion_emitters=false"]),
        ((0, 10, 2), ["--xla_cpu_use_fusion_emitters=false"]),
        ((0, 12, 0), []),
        ((1, 0, 0), []),
    ],
)
def test_xla_gets_only_flags_that_it_has_and_the_users_last(monkeypatch, version, ours):
    """XLA ends the process at a flag that it does not know; the last one counts."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_of_the_user=1")
    monkeypatch.setattr(jaxlib.version, "__version_info__", version)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    runpy.run_path(str(ROOT / "tests/conftest.py"))
    assert os.environ["XLA_FLAGS"].split() == [*ours, "--xla_of_the_user=1"]
