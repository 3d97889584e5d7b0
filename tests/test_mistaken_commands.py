"""Wrong command lines, and the one line that they get: of docs/mistakes.md."""

import pytest

import small_runs
from mistakes import ROWS, assert_told

COMMANDS = [row for row in ROWS if row.startswith("`")]


def test_the_page_has_commands():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_one_line_that_ends_the_process(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = command.strip("`").split()
    assert_told(command, small_runs.last_line(capsys, *arguments))
    assert not list(tmp_path.iterdir())
