"""Command lines: the arguments and the terminal that all studies share."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from textwrap import fill, indent

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from samo_jax.experiments.training.folders import path
from samo_jax.experiments.training.grammar import (
    COMBINER_NAMES,
    EXAMPLE,
    PERTURBATION_NAMES,
    MethodError,
)
from samo_jax.experiments.training.methods import ALL, SINGLE_TASK, select, unique
from samo_jax.experiments.training.schema import shown


def _listed(names: Sequence[str]) -> str:
    return indent(fill(", ".join(names), 78, break_on_hyphens=False), "  ")


GRAMMAR = f"""\
A METHOD is COMBINER or COMBINER+PERTURBATION, each NAME or NAME(key=value, ...) with
Python literals or other such calls as values, or {SINGLE_TASK}; samo is the paper's.
+multitask(key=value, ...) after it gives further arguments of samo_jax.multitask.
COMBINER is {ALL}, for every one that can, or of

{_listed(COMBINER_NAMES)}

PERTURBATION is (samo: short for joint_sam) of

{_listed(PERTURBATION_NAMES)}

Defaults are the library's but for fairgrad(alpha=2.0), cagrad(c=0.4), moco(decay=0.0),
db_mtl_momentum(decay=0.5) and dwa, whose window is an epoch. For example:

  --methods {SINGLE_TASK} mean+memory_sam {ALL}+samo '{EXAMPLE}'
  --methods 'mgda(normalization="l2")' 'mean+joint_sam(local=probe(shared=True))'
  --methods 'fairgrad+global_sam+multitask(weights_every=10)'
"""


def positive_int(text: str, most: int = 10**6) -> int:
    """Command-line type of a positive integer."""
    if not text.isdecimal() or not text.strip("0"):
        raise argparse.ArgumentTypeError(
            f"must be a positive integer, got {shown(text)}"
        )
    if len(text) > 18 or int(text) > most:
        raise argparse.ArgumentTypeError(f"must be at most {most}, got {shown(text)}")
    return int(text)


def seed(text: str) -> int:
    """Command-line type of the seed of random numbers."""
    return int(_number(text, "an integer in [0, 2**32)", 0, 2**32 - 1, int))


def _number(
    text: str,
    requirement: str,
    low: float,
    high: float,
    parse: Callable[[str], float] = float,
) -> float:
    try:
        value = parse(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {requirement}, got {shown(text)}")
    return value


def radius(text: str) -> float:
    """Command-line type of a radius."""
    return _number(text, "a finite non-negative number", 0.0, 1e30)


def seconds(text: str) -> float:
    """Command-line type of a number of seconds."""
    return _number(text, "a non-negative number of seconds", 0.0, float("inf"))


def patience(text: str) -> float:
    """Command-line type of a number of seconds to wait."""
    return _number(text, "a number of seconds in [1, 1e6]", 1.0, 1e6)


def factor(text: str) -> float:
    """Command-line type of a factor of sizes."""
    return _number(text, "a number in [0.001, 100]", 1e-3, 100)


def share(text: str) -> float:
    """Command-line type of a share."""
    return _number(text, "a number in [0, 1]", 0.0, 1.0)


class _SetMethods(argparse.Action):
    """Action of `--methods`: the texts of the methods, each once."""

    def __call__(self, _parser, namespace, values, _option=None):  # pyrefly: ignore
        """Set them."""
        setattr(namespace, self.dest, list(map(str, unique(values))))


def methods(text: str) -> tuple:
    """Command-line type of a method's text, which may be several methods."""
    try:
        return select(text)
    except MethodError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_methods_argument(
    parser: argparse.ArgumentParser,
    default: Sequence[str],
    parse: Callable[[str], tuple] = methods,
) -> None:
    """Declare `--methods`, whose value is a list of texts, and explain the grammar."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = GRAMMAR
    parser.add_argument(
        "--methods",
        nargs="+",
        type=parse,
        action=_SetMethods,
        default=list(default),
        metavar="METHOD",
        help=f"see below (default: {shlex.join(default) or 'those of the study'})",
    )


def add_count_argument(
    parser: argparse.ArgumentParser,
    option: str,
    default: int,
    what: str,
    most: int = 1000,
) -> None:
    """Declare a positive number."""
    parser.add_argument(
        option,
        type=partial(positive_int, most=most),
        default=default,
        help=f"{what} (default: {default})",
    )


def add_out_argument(parser: argparse.ArgumentParser, name: str) -> None:
    """Declare `--out`, which `results_folder` takes."""
    parser.add_argument(
        "--out",
        type=path,
        help=f"folder for results (default: runs/{name}-DATE-TIME)",
    )


def make_console(width: int, quiet: bool = False) -> Console:
    """Console that prints on a terminal, or in some width into a file.

    Names of methods, tasks and folders are text: nothing in them is markup.
    """
    return Console(
        width=None if sys.stdout.isatty() else width,
        quiet=quiet,
        markup=False,
        emoji=False,
    )


def epochs_progress(console: Console, width: int) -> Progress:
    """A bar that counts epochs, with room for descriptions of some width."""
    return Progress(
        TextColumn(f"{{task.description:<{min(width, 60)}}}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
