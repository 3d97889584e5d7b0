"""The methods of CONTRIBUTING.md work as they stand there."""

import ast
import doctest
import re
import textwrap
from pathlib import Path

import pytest

import samo_jax

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
MODULES = [
    textwrap.dedent(block)
    for block in re.findall(r"^ *```python\n(.*?)```", PAGE.read_text(), re.M | re.S)
    if block.lstrip().startswith('"""')
]


def name_of(module):
    """The name that the module's docstring begins with."""
    return ast.get_docstring(ast.parse(module)).split("`")[1]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_the_example_of_its_docstring_runs(module, monkeypatch):
    name, namespace = name_of(module), {}
    exec(module, namespace)
    monkeypatch.setattr(samo_jax, name, namespace[name], raising=False)
    (found,) = doctest.DocTestFinder().find(namespace[name], name, globs={})
    assert len(found.examples) > 2
    assert doctest.DocTestRunner().run(found).failed == 0


def test_there_are_a_combiner_and_a_perturbation():
    assert len(MODULES) == 2
