"""Benchmarks that need no files, by name, with their recipes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

from samo_jax.experiments.data.digits import TASKS, multi_digits
from samo_jax.experiments.data.faces import ATTRIBUTES, draw_faces
from samo_jax.experiments.data.molecules import random_molecules, standardised
from samo_jax.experiments.data.rooms import CLASSES
from samo_jax.experiments.data.scenes import draw_scenes
from samo_jax.experiments.networks.encoder_decoder import EncoderDecoder
from samo_jax.experiments.networks.message_passing import MessagePassingNet
from samo_jax.experiments.networks.multitask_net import MultitaskNet, two_digit_net
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.dense_tasks import DEPTH, NORMALS, SEGMENTATION
from samo_jax.experiments.problems.tasks import (
    CLASSIFICATION,
    RECONSTRUCTION,
    regression,
)

Split: TypeAlias = Literal["test", "validation"]

SEEDS: dict[Split, int] = {"test": 2, "validation": 3}  # of evaluation examples
_CHANNELS = {"segmentation": len(CLASSES), "depth": 1, "normals": 3}


_DIGITS = {"batch_size": 100, "epochs": 30, "learning_rate": 1e-3, "rho": 0.2}
_SCENES = {"batch_size": 8, "epochs": 15, "learning_rate": 1e-3, "rho": 0.05}
_FACES = {"batch_size": 50, "epochs": 20, "learning_rate": 3e-3, "rho": 0.1}
_MOLECULES = {"batch_size": 100, "epochs": 20, "learning_rate": 2e-3, "rho": 0.01}
RECIPES: dict[str, dict[str, Any]] = {
    "digits": _DIGITS,
    "digits3": _DIGITS,
    "scenes": _SCENES,
    "scenes2": _SCENES,
    "attributes": _FACES,
    "molecules": _MOLECULES,
}


def digits(split: Split) -> Benchmark:
    """Two overlaid handwritten digits."""
    train, evaluation = (Examples(*pairs) for pairs in multi_digits(split))
    return Benchmark(
        dict.fromkeys(TASKS, CLASSIFICATION),
        two_digit_net,
        train,
        evaluation,
        **RECIPES["digits"],
    )


def digits3(split: Split) -> Benchmark:
    """Two digits, with reconstruction of the picture as a third task."""
    benchmark = digits(split)

    def with_pictures(examples):
        pictures = {"reconstruction": examples.inputs}
        return examples._replace(labels=examples.labels | pictures)

    return benchmark._replace(
        tasks=benchmark.tasks | {"reconstruction": RECONSTRUCTION},
        train=with_pictures(benchmark.train),
        evaluation=with_pictures(benchmark.evaluation),
    )


def scenes(split: Split, size: tuple[int, int] = (48, 64)) -> Benchmark:
    """Rendered rooms: segmentation, depth and surface normals, as in NYU-v2."""

    def net(tasks: Sequence[str]) -> EncoderDecoder:
        return EncoderDecoder({task: _CHANNELS[task] for task in tasks})

    return Benchmark(
        {"segmentation": SEGMENTATION, "depth": DEPTH, "normals": NORMALS},
        net,
        Examples(*draw_scenes(256, seed=1, size=size)),
        Examples(*draw_scenes(128, seed=SEEDS[split], size=size)),
        **RECIPES["scenes"],
    )


def scenes2(split: Split) -> Benchmark:
    """Rendered rooms: segmentation and depth, as in Cityscapes."""
    return scenes(split).only(["segmentation", "depth"])


def attributes(split: Split) -> Benchmark:
    """Drawn faces with 40 attributes, as in CelebA."""

    def net(tasks: Sequence[str]) -> MultitaskNet:
        return MultitaskNet(dict.fromkeys(tasks, 2), ((8, 2), (16, 2)), (64,))

    return Benchmark(
        dict.fromkeys(ATTRIBUTES, CLASSIFICATION),
        net,
        Examples(*draw_faces(1000, seed=1, wrong=0.1)),
        Examples(*draw_faces(2000, seed=SEEDS[split])),
        **RECIPES["attributes"],
    )


def molecules(split: Split) -> Benchmark:
    """Drawn molecules with 11 properties of very different scale, as in QM9."""
    data = random_molecules()
    evaluation = data.test if split == "test" else data.validation

    def examples(part):
        inputs, labels = part
        return Examples(inputs, standardised(labels, data.mean, data.deviation))

    def net(tasks: Sequence[str]) -> MessagePassingNet:
        return MessagePassingNet(tuple(tasks), 32, 16, elements=(6, 7, 8, 9))

    return Benchmark(
        {target: regression(data.deviation[target]) for target in data.mean},
        net,
        examples(data.train),
        examples(evaluation),
        **RECIPES["molecules"],
    )


BENCHMARKS: dict[str, Callable[[Split], Benchmark]] = {
    "digits": digits,
    "digits3": digits3,
    "scenes": scenes,
    "scenes2": scenes2,
    "attributes": attributes,
    "molecules": molecules,
}
