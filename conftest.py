"""The Python blocks of README and of each page of docs run as one test."""

from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/guide/*.md", "docs/start/*.md"],
).pytest()

GUIDE = Path(__file__).parent / "docs" / "guide"


def pytest_collection_modifyitems(items):
    """Whole trainings, of which each page of the guide is one, are slow."""
    for item in items:
        if item.path.is_relative_to(GUIDE):
            item.add_marker(pytest.mark.slow)
