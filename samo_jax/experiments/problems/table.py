"""Table in a CSV file: any columns in, any columns out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from samo_jax.experiments.data.checked_files import finite_number
from samo_jax.experiments.data.csv_files import Table, read_table
from samo_jax.experiments.data.malformed import MalformedFileError
from samo_jax.experiments.data.splits import Parts, random_split
from samo_jax.experiments.networks.tabular_net import TabularNet
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.generated import Split
from samo_jax.experiments.problems.sizes import scaled
from samo_jax.experiments.problems.tabular_tasks import (
    BINARY,
    CLASSES,
    has_both_classes,
    number,
)
from samo_jax.experiments.problems.tasks import Task

RECIPE = {
    "batch_size": 64,
    "epochs": 30,
    "learning_rate": 1e-3,
    "rho": 0.05,
    "clip_norm": None,
}
_WIDTHS, _DROPOUT = (256, 128), 0.1
_MOST_CLASSES = 100
_GAPS = ("", "na", "n/a", "nan", "null", "none")


def table(
    file: Path,
    split: Split,
    width: float = 1.0,
    inputs: Sequence[str] = (),
    tasks: Sequence[str] = (),
    classes: Sequence[str] = (),
) -> Benchmark:
    """A table of your own: columns in, columns to be predicted, with gaps; MLP.

    FILE is a table in CSV (.csv or .csv.gz) with a header. A task whose fields are all
    numbers is a regression, another one a classification, as is each that --classes
    names. Numbers are standardised, texts become one input for each of their values. A
    gap, of inputs or labels, is an empty field or NA, NaN, null, none. All is fitted on
    the training part: 80 % of the rows, beside 10 % each for validation and test.
    """
    found = read_table(file)
    if not tasks:
        raise MalformedFileError(
            f"{file}: --tasks must name the columns to be predicted, of "
            f"{', '.join(found.columns)}"
        )
    # A column without a name is an index.
    inputs = inputs or [name for name in found.columns if name and name not in tasks]
    for names in (inputs, tasks, classes):
        found.need(names, "correct --inputs, --tasks or --classes")
    if twice := {*inputs} & {*tasks}:
        raise MalformedFileError(
            f"{file}: --inputs and --tasks must not share columns, got "
            f"{', '.join(sorted(twice))}: predicting an input is no task"
        )
    if stray := {*classes} - {*tasks}:
        raise MalformedFileError(
            f"{file}: --classes must be among --tasks, got {', '.join(sorted(stray))}"
        )
    parts = random_split(len(found.lines))
    x = _inputs(found, inputs, parts.train)
    kinds, labels, outputs = {}, {}, {}
    for name in tasks:
        kinds[name], labels[name], outputs[name] = _target(
            found, name, parts, name in classes
        )

    def examples(rows: np.ndarray) -> Examples:
        return Examples(x[rows], {name: of[rows] for name, of in labels.items()})

    def net(names):
        sizes = [scaled(n, width) for n in _WIDTHS]
        return TabularNet({name: outputs[name] for name in names}, sizes, _DROPOUT)

    return Benchmark(
        kinds,
        net,
        examples(parts.train),
        examples(parts.of(split)),
        has_modes=True,
        **RECIPE,
    )


def _numbers(texts: Sequence[str]) -> np.ndarray | None:
    """The numbers that texts are, NaN for gaps; None if one is no finite number."""
    try:
        return np.array([np.nan if _is_gap(of) else finite_number(of) for of in texts])
    except ValueError:
        return None


def _is_gap(text: str) -> bool:
    return text.lower() in _GAPS


def _inputs(table: Table, names: Sequence[str], train: np.ndarray) -> np.ndarray:
    """Inputs (N, F), float32, made by what the training rows have."""
    numbers: list[np.ndarray] = []
    texts: list[list[str]] = []
    for name in names:
        values = _numbers(table.columns[name])
        if values is None:
            texts.append(table.columns[name])
            continue
        if np.isnan(values[train]).all():
            raise MalformedFileError(
                f"{table.path}: input {name} must have a number in the training part, "
                "got none: leave it out"
            )
        numbers.append(values)
    scaled_numbers = make_pipeline(StandardScaler(), SimpleImputer(add_indicator=True))
    categories = OneHotEncoder(
        handle_unknown="ignore", max_categories=_MOST_CLASSES, sparse_output=False
    )
    parts: list[Any] = [
        transform.fit(np.array(of).T[train]).transform(np.array(of).T)
        for transform, of in ((scaled_numbers, numbers), (categories, texts))
        if of
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _target(
    table: Table, name: str, parts: Parts, classes: bool
) -> tuple[Task, np.ndarray, int]:
    """A task, its labels (N,), float32, and its number of outputs."""
    texts = table.columns[name]
    labelled = np.array([not _is_gap(text) for text in texts])
    for part, rows in parts._asdict().items():
        if not labelled[rows].any():
            raise MalformedFileError(
                f"{table.path}: task {name} must have labels in each part, got none in "
                f"{part}: leave it out, or take more rows"
            )
    values = _numbers(texts)
    if values is None or classes or {*values[labelled]} <= {0.0, 1.0}:
        return _classes(table.path, name, texts, parts)
    known = values[parts.train][labelled[parts.train]]
    mean, deviation = known.mean(), known.std()
    if not deviation > 0:
        raise MalformedFileError(
            f"{table.path}: task {name} must vary in the training part, got only "
            f"{mean:g}: leave it out"
        )
    labels = ((values - mean) / deviation).astype(np.float32)
    return number(float(deviation)), labels, 1


def _classes(
    path: Path,
    name: str,
    texts: Sequence[str],
    parts: Parts,
) -> tuple[Task, np.ndarray, int]:
    """A task of classes, its labels and its number of outputs."""
    known = sorted({text for text in texts if not _is_gap(text)})
    if not 2 <= len(known) <= _MOST_CLASSES:
        wanted, got = (
            ("have two classes or more", "one")
            if len(known) < 2
            else (
                f"be numbers, or at most {_MOST_CLASSES} classes",
                f"{len(known)} texts",
            )
        )
        raise MalformedFileError(
            f"{path}: task {name} must {wanted}, got {got}, such as "
            f"{known[0]!r}: correct it, or leave it out"
        )
    numbers = {text: k for k, text in enumerate(known)}
    labels = np.array([numbers.get(text, np.nan) for text in texts], np.float32)
    if len(known) > 2:
        return CLASSES, labels, len(known)
    if not all(has_both_classes(labels[rows]) for rows in parts):
        raise MalformedFileError(
            f"{path}: task {name} must have both classes, {' and '.join(known)}, in "
            "each part: leave it out, or take more rows"
        )
    return BINARY, labels, 1
