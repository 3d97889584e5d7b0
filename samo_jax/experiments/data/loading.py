"""Batches of a data source that reads its examples one by one."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import grain
import numpy as np
from grain.sources import RandomAccessDataSource

Source: TypeAlias = Sequence[Any] | RandomAccessDataSource[Any]
Augment: TypeAlias = Callable[[Any, np.random.Generator], Any]


def shuffled_batches(
    source: Source,
    batch_size: int,
    *,
    seed: int,
    augment: Augment | None = None,
    threads: int = 4,
) -> Iterator[Any]:
    """Batches for ever, every epoch in another order, read ahead by threads.

    The order and the augmentation are the same for a seed, whatever the threads. Where
    an epoch does not end with a full batch, the batch goes on with the next one.

    Args:
        source: the examples, such as `DenseFiles` or `LabelledImages`.
        batch_size: size of the batches, at most the number of examples.
        seed: seed of the order and the augmentation.
        augment: `augment(example, rng)`, such as `scale_crop_flip`.
        threads: number of threads that read ahead.

    Raises:
        ValueError: if there are fewer examples than `batch_size`.

    Examples:
        >>> batches = shuffled_batches(range(4), 2, seed=0)
        >>> sorted(np.concatenate([next(batches), next(batches)]).tolist())
        [0, 1, 2, 3]
    """
    if not 0 < batch_size <= len(source):
        raise ValueError(
            f"`batch_size` must be positive and at most the number of examples, "
            f"{len(source)}, got {batch_size}. Take smaller batches."
        )
    dataset = grain.MapDataset.source(source).seed(seed).shuffle()
    # Each epoch has a seed of its own.
    dataset = dataset.repeat(reseed_each_epoch=True)
    if augment is not None:
        dataset = dataset.random_map(augment)
    return _read_ahead(dataset, batch_size, threads)


def ordered_batches(
    source: Source, batch_size: int, *, threads: int = 4
) -> Iterator[Any]:
    """Batches of all examples, once and in order, read ahead by threads.

    The last one has what is left.

    >>> [batch.tolist() for batch in ordered_batches(range(5), 2)]
    [[0, 1], [2, 3], [4]]
    """
    return _read_ahead(grain.MapDataset.source(source), batch_size, threads)


def _read_ahead(
    dataset: grain.MapDataset, batch_size: int, threads: int
) -> Iterator[Any]:
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    examples = dataset.to_iter_dataset(options)
    return iter(examples.batch(batch_size))
