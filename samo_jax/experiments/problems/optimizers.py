"""Optimisers of the papers' benchmarks, with their schedules of learning rates."""

import jax
import optax


def adamw_linear(learning_rate: float, steps_per_epoch: int, epochs: int):
    """AdamW as for BERT: a tenth of the steps is warm-up, then linear decay.

    Weight decay is 0.01, of matrices alone.
    """
    steps = steps_per_epoch * epochs
    warmup = steps // 10 + 1
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(learning_rate / warmup, learning_rate, warmup - 1),
            optax.linear_schedule(learning_rate, 0.0, steps - warmup + 1),
        ],
        [warmup - 1],
    )

    def is_matrix(params):
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    return optax.adamw(schedule, weight_decay=0.01, mask=is_matrix)


def adam_halved(every: int, weight_decay: float = 0.0):
    """Adam, its learning rate halved every so many epochs; L2 as in PyTorch's Adam."""

    def optimizer(learning_rate, steps_per_epoch, _):
        schedule = optax.exponential_decay(
            learning_rate, every * steps_per_epoch, 0.5, staircase=True
        )
        return optax.chain(
            optax.add_decayed_weights(weight_decay), optax.adam(schedule)
        )

    return optimizer


def adam_on_plateau(learning_rate: float, steps_per_epoch: int, _: int):
    """Adam, slower by 0.7 after six epochs without progress, down to 1e-5.

    PyTorch's scheduler, which has a `patience` of five, waits for the sixth.
    """
    return optax.chain(
        optax.adam(learning_rate),
        optax.contrib.reduce_on_plateau(
            0.7,
            patience=6,
            accumulation_size=steps_per_epoch,
            min_scale=1e-5 / learning_rate,
        ),
    )
