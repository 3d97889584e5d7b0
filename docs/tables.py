"""Tables and lists of methods in README and the pages: `python docs/tables.py`.

They stand between `<!-- table: NAME -->` and `<!-- end -->` (in the reference between
`.. table: NAME` and `.. end`), and come from the three registries. A test says whether
they are up to date.
"""

import inspect
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import samo_jax

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("combiners.md", "sharpness.md")),
    *(
        ROOT / "docs/reference" / name
        for name in ("combiners.rst", "perturbations.rst")
    ),
]


def combiners() -> str:
    """The table of all combiners: what each does, costs, promises and needs."""
    rows = [
        [entry.call, entry.about, entry.cost, _promises(entry), ", ".join(entry.needs)]
        for entry in samo_jax.COMBINERS.values()
    ]
    head = [
        "method",
        "what it does, and when to choose it",
        "cost",
        "promises",
        "needs",
    ]
    return _table(head, rows)


def perturbations() -> str:
    """The table of all sharpness methods: where each looks, and what it costs."""
    entries = [*samo_jax.PERTURBATIONS.values(), *samo_jax.TRANSFORMATIONS.values()]
    rows = [
        [way.call, way.about, way.passes, way.copies, way.remembers, way.choose]
        for entry in entries
        for way in (entry, *entry.variants)
    ]
    head = ["method", "looks along", "passes", "copies", "state", "choose it when"]
    return _table(head, rows)


def needs() -> str:
    """The table of combiners by what they need."""
    return "\n".join(
        ["| needs | combiners |", "| --- | --- |"]
        + [
            f"| {need} | {', '.join(f'`{name}`' for name in names)} |"
            for need, names in _by_needs().items()
        ]
    )


def combiner_functions() -> str:
    """The reference of all combiners, by what they need."""
    return "\n\n".join(
        f"{need.capitalize()}\n{'-' * len(need)}\n\n{_functions(names)}"
        for need, names in _by_needs().items()
    )


def perturbation_functions() -> str:
    """The reference of all perturbations."""
    return _functions(samo_jax.PERTURBATIONS)


def methods() -> str:
    """The sentence that names all sharpness methods."""
    perturbations = _names(samo_jax.PERTURBATIONS)
    transformations = _names(samo_jax.TRANSFORMATIONS)
    return textwrap.fill(
        f"Perturbations are {perturbations}; {transformations} are transformations of "
        "their own.",
        92,
    )


TABLES = {
    "combiners": combiners,
    "perturbations": perturbations,
    "needs": needs,
    "methods": methods,
    "combiner_functions": combiner_functions,
    "perturbation_functions": perturbation_functions,
}


def rewritten(page: str) -> str:
    """The text of a page, with the tables as the registries have them."""
    return re.sub(
        r"((?:<!--|\.\.) table: (\w+)(?: -->)?\n).*?((?:<!--|\.\.) end)",
        lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def _by_needs() -> dict[str, list[str]]:
    """The names of all combiners, by what they need."""
    groups: dict[str, list[str]] = {}
    for name, entry in samo_jax.COMBINERS.items():
        groups.setdefault(_need(entry), []).append(name)
    return groups


def _functions(names: Iterable[str]) -> str:
    """Sphinx's directives for some functions."""
    return "\n".join(f".. autofunction:: {name}" for name in names)


def _promises(entry: Any) -> str:
    """The letters of a combiner's promises, with their conditions."""
    letters = [f"{p} ({c})" if c else p for p, c in entry.promises.items()]
    return (", " if any(entry.promises.values()) else " ").join(letters)


def _need(entry: Any) -> str:
    """The row of a combiner in the table by needs."""
    if "weighting" in inspect.signature(entry.factory).parameters:
        return "another weighting"
    found = {
        "gradients": entry.family == "gradients",
        "those of a second batch": "second batch" in entry.needs,
        "Gramian": entry.family == "gramian",
        "losses": entry.family != "gradients" and _needs_losses(entry),
        "a key": "key" in entry.needs,
    }
    return ", ".join(need for need, needed in found.items() if needed) or "nothing"


def _needs_losses(entry: Any) -> bool:
    """Whether a combiner needs losses, whatever its arguments."""
    return not {"losses", "losses (also after the step)"}.isdisjoint(entry.needs)


def _names(registry: Any) -> str:
    """The names of a registry as part of a sentence."""
    *others, last = [f"`{name}`" for name in registry]
    return f"{', '.join(others)} and {last}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, whose first column is code."""
    lines = [head, ["---"] * len(head), *([f"`{call}`", *row] for call, *row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(rewritten(path.read_text()))
