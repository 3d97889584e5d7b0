"""Tables in CSV with a header, plain or packed by gzip, as texts."""

import csv
import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from samo_jax.experiments.data.checked_files import (
    regular_file,
    short,
    without_repetition,
)
from samo_jax.experiments.data.malformed import MalformedFileError

REMEDY = "correct the file, or download it again"
_MAX_BYTES = 2**30


class Table(NamedTuple):
    """Columns of a table.

    Attributes:
        path: path of its file.
        columns: texts of each column by name, without spaces around them; empty where
            a field is.
        lines: the line of each row in the file, from 1.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def need(self, names: Iterable[str], remedy: str = REMEDY) -> None:
        """Check that the table has these columns.

        Raises:
            MalformedFileError: the first that it lacks.
        """
        for name in names:
            if name not in self.columns:
                raise MalformedFileError(
                    f"{self.path} must have a column {short(repr(name))}, got "
                    f"{short(', '.join(self.columns))}: {remedy}"
                )

    def wrong(self, row: int, name: str, wanted: str) -> MalformedFileError:
        """The error of a field that is not what is wanted."""
        field = short(repr(self.columns[name][row]))
        return MalformedFileError(
            f"{self.path}:{self.lines[row]}: {short(name)} must be {wanted}, got "
            f"{field}: {REMEDY}"
        )


def read_rows(path: Path, kind: str, **dialect: Any) -> list[tuple[int, list[str]]]:
    """Line, from 1, and fields of each row of a file whose name may end in ".gz".

    Args:
        path: path of the file.
        kind: format that the file should have, for the error.
        **dialect: format, see `csv.reader`.

    Raises:
        MalformedFileError: the file is missing, or of another format.
    """
    regular_file(path, _MAX_BYTES, REMEDY)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, **dialect)
            return [(reader.line_num, row) for row in reader if any(row)]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise MalformedFileError(
            f"{path} must be a table in {kind} and UTF-8 ({short(error)}): {REMEDY}"
        ) from error


def read_table(path: Path) -> Table:
    """The columns of a file whose name may end in ".gz".

    Raises:
        MalformedFileError: the file is missing, or no table: without rows, with two
            columns of one name, or a row of another length than the header.
    """
    rows = read_rows(path, "CSV", strict=True)
    if len(rows) < 2:
        raise MalformedFileError(f"{path} must have a header and rows: {REMEDY}")
    (_, header), *rows = rows
    for line, row in rows:
        if len(row) != len(header):
            raise MalformedFileError(
                f"{path}:{line}: must have {len(header)} fields as the header has, got "
                f"{len(row)}: {REMEDY}"
            )
    header = [name.strip() for name in header]
    without_repetition(path, "column", header, REMEDY)
    fields = zip(*(row for _, row in rows), strict=True)
    columns = {
        name: [field.strip() for field in column]
        for name, column in zip(header, fields, strict=True)
    }
    return Table(path, columns, [line for line, _ in rows])
