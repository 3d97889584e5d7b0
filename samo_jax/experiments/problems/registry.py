"""All benchmarks by name, with their recipes; those of files are read and checked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from samo_jax.experiments.problems import (
    emotions,
    files,
    generated,
    moleculenet,
    qm9,
    school,
    table,
)
from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.problems.generated import Split

# Benchmarks of data sets that the user has.
OF_DATA: dict[str, Callable[..., Benchmark]] = {
    "cityscapes": files.cityscapes,
    "nyuv2": files.nyuv2,
    "celeba": files.celeba,
    "qm9": qm9.qm9,
    "officehome": files.officehome,
    "moleculenet": moleculenet.moleculenet,
    "school": school.school,
    "table": table.table,
    "emotions": emotions.emotions,
}
BENCHMARKS: dict[str, Callable[..., Benchmark]] = generated.BENCHMARKS | OF_DATA
RECIPES: dict[str, dict[str, Any]] = {
    **generated.RECIPES,
    **files.RECIPES,
    "qm9": qm9.RECIPE,
    "moleculenet": moleculenet.RECIPE,
    "school": school.RECIPE,
    "table": table.RECIPE,
    "emotions": emotions.RECIPE,
}
# Methods that are run by default, where they are not those of all benchmarks.
METHODS: dict[str, tuple[str, ...]] = {"emotions": emotions.METHODS}


def load(
    name: str,
    data: Path | None,
    split: Split,
    batch_size: int | None = None,
    **options: Any,
) -> Benchmark:
    """The benchmark of a name, of whose data an example has been read.

    Args:
        name: name of the benchmark, of `OF_DATA`.
        data: file or folder of its data. None: where the benchmark finds them itself.
        split: split to evaluate on.
        batch_size: size of the batches; None for the recipe's.
        **options: further arguments of the benchmark.

    Raises:
        ValueError: if files are missing or malformed, or too few for a batch.
    """
    benchmark = OF_DATA[name](data, split, **options)
    batch_size = batch_size or benchmark.batch_size
    for part, examples, least in (
        ("training", benchmark.train, batch_size),
        ("evaluation", benchmark.evaluation, 1),
    ):
        if examples.num_examples < least:
            raise ValueError(
                f"{data or name} must have {least} {part} examples, got "
                f"{examples.num_examples}: complete it, or make batches smaller"
            )
        next(examples.batches(1))
    return benchmark._replace(batch_size=batch_size, evaluation_batch_size=batch_size)
