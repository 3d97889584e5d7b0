"""The versions that are tested are those that are declared."""

import re
import tomllib
from pathlib import Path

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
