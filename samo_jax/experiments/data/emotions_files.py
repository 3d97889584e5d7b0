"""GoEmotions in its published files: sentences, each with one or more emotions.

Demszky et al. 2020, https://arxiv.org/abs/2005.00547: comments of Reddit. A row has a
sentence, the numbers of its emotions with commas between, and an identifier.
"""

import csv
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from samo_jax.experiments.data.checked_files import short
from samo_jax.experiments.data.csv_files import REMEDY, read_rows
from samo_jax.experiments.data.malformed import MalformedFileError

EMOTIONS = (
    *("admiration", "amusement", "anger", "annoyance", "approval", "caring"),
    *("confusion", "curiosity", "desire", "disappointment", "disapproval", "disgust"),
    *("embarrassment", "excitement", "fear", "gratitude", "grief", "joy", "love"),
    *("nervousness", "optimism", "pride", "realization", "relief", "remorse"),
    *("sadness", "surprise", "neutral"),
)
# The authors' groups, in their order.
SENTIMENTS = MappingProxyType(
    {
        "positive": "amusement excitement joy love desire optimism caring pride "
        "admiration gratitude relief approval",
        "negative": "fear nervousness remorse embarrassment disappointment sadness "
        "grief disgust anger annoyance disapproval",
        "ambiguous": "realization surprise curiosity confusion",
        "neutral": "neutral",
    }
)
EKMAN = MappingProxyType(
    {
        "anger": "anger annoyance disapproval",
        "disgust": "disgust",
        "fear": "fear nervousness",
        "joy": "joy amusement approval excitement gratitude love optimism relief pride "
        "admiration desire caring",
        "sadness": "sadness disappointment embarrassment grief remorse",
        "surprise": "surprise realization confusion curiosity",
        "neutral": "neutral",
    }
)
PARTS = ("train", "dev", "test")


class Sentences(NamedTuple):
    """Sentences and their emotions.

    Attributes:
        texts: N sentences.
        labels: 1 for each emotion of a sentence, else 0, shape (N, 28).
    """

    texts: list[str]
    labels: np.ndarray


def read_emotions(folder: Path) -> dict[str, Sentences]:
    """The parts "train", "dev" and "test".

    Args:
        folder: folder with a file of each part, whose name ends in train.tsv, say, or
            train.tsv.gz. A first row without numbers is a header.

    Raises:
        MalformedFileError: a file is missing, is there twice, or has another format.
    """
    return {part: _read(_file(folder, part)) for part in PARTS}


def group(labels: np.ndarray, groups: MappingProxyType[str, str]) -> np.ndarray:
    """Whether a sentence has an emotion of each group, shape (N, groups)."""
    return np.stack(
        [
            labels[:, [EMOTIONS.index(name) for name in names.split()]].max(axis=1)
            for names in groups.values()
        ],
        axis=1,
    )


def _file(folder: Path, part: str) -> Path:
    found = sorted([*folder.glob(f"*{part}.tsv"), *folder.glob(f"*{part}.tsv.gz")])
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.name for path in found) or "none"
    raise MalformedFileError(
        f"{folder} must have one file {part}.tsv or {part}.tsv.gz, got "
        f"{short(names)}: download GoEmotions' files, or take others away"
    )


def _read(path: Path) -> Sentences:
    rows = read_rows(path, "TSV", delimiter="\t", quoting=csv.QUOTE_NONE)
    if rows and not any(of.isdecimal() for of in "".join(rows[0][1][1:2])):
        del rows[0]
    if not rows:
        raise MalformedFileError(f"{path} must have rows: {REMEDY}")
    labels = np.zeros((len(rows), len(EMOTIONS)), np.float32)
    for number, (line, row) in enumerate(rows):
        if len(row) != 3:
            raise MalformedFileError(
                f"{path}:{line}: must have 3 fields, got {len(row)}: {REMEDY}"
            )
        emotions = row[1].split(",")
        if not all(of.isdecimal() and int(of) < len(EMOTIONS) for of in emotions):
            raise MalformedFileError(
                f"{path}:{line}: emotions must be numbers from 0 to "
                f"{len(EMOTIONS) - 1}, got {short(repr(row[1]))}: {REMEDY}"
            )
        labels[number, [int(of) for of in emotions]] = 1
    return Sentences([row[0] for _, row in rows], labels)
