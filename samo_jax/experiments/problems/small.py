"""Small benchmarks with 2, 11 and 40 tasks that networks overfit, without clipping."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from samo_jax.experiments.data.faces import ATTRIBUTES, draw_faces
from samo_jax.experiments.networks.multitask_net import MultitaskNet
from samo_jax.experiments.problems import generated
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.generated import SEEDS, Split
from samo_jax.experiments.problems.tasks import CLASSIFICATION, Task, averaged

EPOCHS = {"digits": 20, "targets": 100, "attributes": 100}


def digits(split: Split) -> Benchmark:
    """Overlaid digits, of which two are to be told: CNN."""
    return generated.digits(split)._replace(epochs=EPOCHS["digits"], clip_norm=None)


def targets(split: Split, num_tasks: int = 11) -> Benchmark:
    """Noisy regressions of functions that share some of 30 sinusoids: MLP."""
    rng = np.random.default_rng(0)
    frequencies = 1.5 * rng.normal(size=(10, 30)) / 10**0.5
    mixing = rng.normal(size=(30, num_tasks)) * (rng.random((30, num_tasks)) < 0.3)
    mixing /= np.linalg.norm(mixing, axis=0) / 2**0.5
    names = [f"target{i:02d}" for i in range(num_tasks)]

    def sample(count: int, seed: int) -> Examples:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(count, 10))
        y = np.sin(x @ frequencies) @ mixing + 0.5 * rng.normal(size=(count, num_tasks))
        columns = zip(names, y.T.astype(np.float32), strict=True)
        return Examples(x.astype(np.float32), dict(columns))

    def task(labels: np.ndarray) -> Task:
        """Mean square; its share of the variance in percent."""

        def squares(outputs, labels):
            return jnp.square(outputs[:, 0] - labels)

        return averaged(
            lambda outputs, labels: jnp.mean(squares(outputs, labels)),
            "unexplained",
            lambda *pair: 100 * squares(*pair) / np.var(labels),
            higher_is_better=False,
            unit="%",
        )

    def net(tasks: Sequence[str]) -> MultitaskNet:
        return MultitaskNet(dict.fromkeys(tasks, 1), widths=(128, 64))

    evaluation = sample(4000, seed=SEEDS[split])
    return Benchmark(
        {name: task(labels) for name, labels in evaluation.labels.items()},
        net,
        sample(400, seed=1),
        evaluation,
        batch_size=100,
        epochs=EPOCHS["targets"],
        learning_rate=3e-3,
        rho=0.2,
        clip_norm=None,
    )


def attributes(split: Split) -> Benchmark:
    """Attributes of drawn faces, a tenth of the training labels wrong: MLP."""

    def net(tasks: Sequence[str]) -> MultitaskNet:
        return MultitaskNet(dict.fromkeys(tasks, 2), widths=(48, 32))

    return Benchmark(
        dict.fromkeys(ATTRIBUTES, CLASSIFICATION),
        net,
        Examples(*draw_faces(200, seed=1, size=10, wrong=0.1)),
        Examples(*draw_faces(2000, seed=SEEDS[split], size=10)),
        batch_size=50,
        epochs=EPOCHS["attributes"],
        learning_rate=5e-3,
        rho=0.1,
        clip_norm=None,
    )


PROBLEMS: dict[str, Callable[[Split], Benchmark]] = {
    "digits": digits,
    "targets": targets,
    "attributes": attributes,
}
