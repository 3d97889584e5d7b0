"""Optimisers of the papers' benchmarks, with their schedules of learning rates."""

import optax


def adam_halved(every: int, weight_decay: float = 0.0):
    """Adam, its learning rate halved every so many epochs; L2 as in PyTorch's Adam."""

    def optimizer(learning_rate, steps_per_epoch):
        schedule = optax.exponential_decay(
            learning_rate, every * steps_per_epoch, 0.5, staircase=True
        )
        return optax.chain(
            optax.add_decayed_weights(weight_decay), optax.adam(schedule)
        )

    return optimizer


def adam_on_plateau(learning_rate: float, steps_per_epoch: int):
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
