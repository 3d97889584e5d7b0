"""Docstrings that stand alone on hover: their first lines say what a thing is.

A first line, of a docstring or of an entry of Args or Attributes, starts with a noun
("Weights of the last update") or a verb ("Raise unless", "see `sam`"); "Whether" is the
noun of a bool. It starts with no word that points at what the reader does not see: the
name beside it, the file around it, the line before.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import samo_jax

PACKAGE = Path(samo_jax.__file__).parent
# Prepositions without their noun: "Of one array", "as given to `inner`".
PREPOSITIONS = (
    "above|after|along|among|as|at|before|below|beside|between|beyond|by|for|from|if|in|"
    "inside|into|like|of|off|on|out|outside|over|per|since|than|through|to|towards|"
    "under|until|up|upon|with|within|without"
)
# Pronouns: "Those of one folder", "The same of random orders".
PRONOUNS = (
    "all of them|everything|it|its|others|such|that|the others?|the rest|the same|"
    "their|them|there|these|they|this|those"
)
# Questions: "What a solve returns", "How many tasks there are".
QUESTIONS = "how|what|when|where|which|who|whose|why"
# Possessives: "Each task's own, with a leading task axis".
POSSESSIVES = r"[\w -]+'s?( own)?(?=[,.:;]| (?:of|for|in|on|at|by|with|that)\b)"
LACKING = re.compile(
    rf"({PREPOSITIONS}|{PRONOUNS}|{QUESTIONS})\b(?![`-])|{POSSESSIVES}", re.IGNORECASE
)
# Symbols, shapes and types, which may stand before the noun: "w, shape (K,), int32, ".
PREAMBLE = re.compile(
    r"((shape \([^)]*\)|float32 \([^)]*\)|u?int\d*|bool|[A-Za-z]\d?|\w+_\w+|theta|rho|"
    r"alpha|lambda|gamma|eps|phi|xi)(, |: |\.?$))+"
)
ENTRY = re.compile(r"    (\*{0,2}\w+)(?: \([^)]*\))?: +(.*)")


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a module and of all classes and functions in it."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and (docstring := ast.get_docstring(node)):
            yield getattr(node, "name", "module"), docstring


def entries(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and first lines of the entries of Args and Attributes."""
    for section in re.split(r"\n(?=\S)", docstring):
        if section.startswith(("Args:", "Attributes:")):
            yield from (
                entry.groups()
                for entry in map(ENTRY.fullmatch, section.splitlines())
                if entry
            )


def lacks_noun(line: str) -> bool:
    """Whether a first line starts with neither a noun nor a verb."""
    preamble = PREAMBLE.match(line)
    rest = line[preamble.end() :] if preamble else line
    return not rest or LACKING.match(rest) is not None


def faults(tree: ast.Module) -> Iterator[str]:
    """First lines of a module that lack their noun."""
    for name, docstring in docstrings(tree):
        first = docstring.splitlines()[0]
        if LACKING.match(first):
            yield f"{name}: {first}"
        for entry, line in entries(docstring):
            if lacks_noun(line):
                yield f"{name}, {entry}: {line}"


def test_first_lines_have_their_noun():
    found = [
        f"{path.relative_to(PACKAGE)}: {fault}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for fault in faults(ast.parse(path.read_text()))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "Those of one folder.",
        "of the last update.",
        "Each task's own, with a leading task axis.",
        "What `famo` learns.",
        "The same of random orders.",
        "shape (K,), int32, of which each number's.",
        "p.",
        "All of them.",
    ],
)
def test_what_lacks_its_noun(line):
    assert lacks_noun(line)


@pytest.mark.parametrize(
    "line",
    [
        "The result files of one run folder.",
        "weights of the last update.",
        "shape (K,), int32, number of updates.",
        "p, the ascent direction.",
        "Whether `value` is a number.",
        "Raise unless it is a key.",
        "see `multitask`.",
        "All masks, none present first.",
        "`multitask`: the Optax gradient transformation.",
    ],
)
def test_what_has_its_noun(line):
    assert not lacks_noun(line)
