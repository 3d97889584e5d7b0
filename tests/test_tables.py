"""The tables of methods in README and the pages say what the registries say."""

import runpy
from pathlib import Path

import pytest

tables = runpy.run_path(str(Path(__file__).parents[1] / "docs" / "tables.py"))


@pytest.mark.parametrize("path", tables["PAGES"], ids=lambda path: path.name)
def test_tables_are_up_to_date(path):
    """`python docs/tables.py` would change nothing."""
    page = path.read_text()
    assert " table: " in page
    assert tables["rewritten"](page) == page
