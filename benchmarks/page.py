"""`Page`: a page of tables, on the terminal and as Markdown in a file."""

from pathlib import Path

from rich.console import Console
from rich.table import Table


class Page:
    """A page that is written anew with every section, so that none is lost."""

    def __init__(self, output: Path, introduction: str) -> None:
        """A page without sections; the file comes with the first one."""
        self.console = Console(width=110)
        self._output, self._lines = output, [introduction]

    def section(
        self, title: str, columns: list[str], rows: list[list[str]], text: str = ""
    ) -> None:
        """One more table under its title, and a text if there is one."""
        table = Table(*columns, title=title)
        self._lines += [f"## {title}", "", *([text] if text else [])]
        self._lines += [" | ".join(columns), " | ".join("---" for _ in columns)]
        for row in rows:
            table.add_row(*row)
            self._lines.append(" | ".join(row))
        self._lines.append("")
        self._output.write_text("\n".join(self._lines))
        self.console.print(table)
