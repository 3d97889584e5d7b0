"""The training loop: an ordinary Flax loop with `loss_fn=` passed to the optimiser."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import samo_jax
from samo_jax.experiments.data import Pairs
from samo_jax.experiments.methods import Step
from samo_jax.experiments.model import MultitaskNet, two_digit_net


class Run(NamedTuple):
    """What one training run produced.

    Attributes:
        accuracy: final evaluation accuracy of each task, in [0, 1].
        accuracy_curve: about ten `(epoch, mean evaluation accuracy over tasks)`.
        loss_curve: mean training loss over tasks and batches, of each epoch.
        seconds_per_step: median over the epochs after the first, which compiles.
    """

    accuracy: dict[str, float]
    accuracy_curve: list[tuple[int, float]]
    loss_curve: list[float]
    seconds_per_step: float


def task_losses(model, params, batch: Pairs):
    """Cross-entropy of each task."""
    logits = model.apply({"params": params}, batch.images)
    return {
        task: optax.softmax_cross_entropy_with_integer_labels(
            logits[task], batch.labels[task]
        ).mean()
        for task in model.tasks
    }


def make_train_step(
    model: MultitaskNet,
    tx: optax.GradientTransformationExtraArgs,
    extra_args: Callable[[Step], dict[str, Any]],
):
    """One jitted step; the same for every method.

    Most use `batch` alone; XLA then drops `second`, an independent batch, and `last`,
    that of the step before.
    """

    def losses_on(batch):
        return lambda params: task_losses(model, params, batch)

    @jax.jit
    def train_step(params, opt_state, batch, second, last):
        loss_fn = losses_on(batch)
        losses, grads = samo_jax.mean_value_and_grad(loss_fn)(params)
        extra = extra_args(Step(params, losses, losses_on(second), losses_on(last)))
        updates, opt_state = tx.update(
            grads, opt_state, params, loss_fn=loss_fn, **extra
        )
        return optax.apply_updates(params, updates), opt_state, losses

    return train_step


class Trainer:
    """Trains one network with one method; compiled once, run with any seed."""

    def __init__(
        self,
        tasks: Sequence[str],
        make_tx: Callable[[int], optax.GradientTransformationExtraArgs],
        extra_args: Callable[[Step], dict[str, Any]],
        data: tuple[Pairs, Pairs],
        batch_size: int,
    ):
        """Hold what all seeds share.

        Args:
            tasks: task names.
            make_tx: optimiser from seed.
            extra_args: what its `update` takes beyond `loss_fn`.
            data: training and evaluation pairs.
            batch_size: of training.
        """
        self.model = two_digit_net(tasks)
        self.make_tx = make_tx
        self.train, self.evaluation = data
        self.batch_size = batch_size
        self.train_step = make_train_step(self.model, make_tx(0), extra_args)

    def run(self, seed: int, epochs: int, on_epoch: Callable[[], None]) -> Run:
        """Train from scratch; the seed sets initialisation, batch order and probes."""
        images = self.train.images[:1]
        params = self.model.init(jax.random.key(seed), images)["params"]
        opt_state = self.make_tx(seed).init(params)
        rng, second_rng = map(np.random.default_rng, (seed, [seed, 1]))
        last = None
        seconds, loss_curve, accuracy_curve, accuracy = [], [], [], {}
        for epoch in range(1, epochs + 1):
            history = []
            start = time.perf_counter()
            epoch_batches = zip(
                self._batches(rng), self._batches(second_rng), strict=True
            )
            for batch, second in epoch_batches:
                params, opt_state, losses = self.train_step(
                    params, opt_state, batch, second, last or batch
                )
                history.append(losses)
                last = batch
            history = jax.block_until_ready(history)
            seconds.append((time.perf_counter() - start) / len(history))
            loss_curve.append(float(np.mean(jax.tree.leaves(history))))
            if epoch % max(epochs // 10, 1) == 0 or epoch == epochs:
                accuracy = self._evaluate(params)
                accuracy_curve.append((epoch, float(np.mean(list(accuracy.values())))))
            on_epoch()
        # The first epoch compiles.
        median = float(np.median(seconds[1:] or seconds))
        return Run(accuracy, accuracy_curve, loss_curve, median)

    def _batches(self, rng: np.random.Generator) -> Iterator[Pairs]:
        images, labels = self.train
        order = rng.permutation(len(images))
        for index in np.split(order, len(order) // self.batch_size):
            yield Pairs(images[index], {task: labels[task][index] for task in labels})

    def _evaluate(self, params) -> dict[str, float]:
        images, labels = self.evaluation
        logits = _predict(self.model, params, images)
        return {
            task: float(np.mean(np.argmax(logits[task], axis=-1) == labels[task]))
            for task in self.model.tasks
        }


@jax.jit(static_argnums=0)
def _predict(model, params, images):
    return model.apply({"params": params}, images)
