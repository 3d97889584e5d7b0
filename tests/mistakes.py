"""The tables of docs/mistakes.md: what users do, and the error that they get."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "mistakes.md"


def _rows():
    found = re.findall(r"^\| (.+?) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    return {mistake: error for mistake, error in found if error not in {"---", "Error"}}


ROWS = _rows()


def assert_told(mistake, message):
    """The error is the page's, where `…` stands for anything."""
    told = ".*".join(map(re.escape, ROWS[mistake].split("…")))
    assert re.fullmatch(told, " ".join(message.split())), message
