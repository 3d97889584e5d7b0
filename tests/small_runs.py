"""Short runs: `digits` with few examples and a small network; a benchmark in memory."""

import sys

import flax.linen as nn
import numpy as np
import pytest

from samo_jax.experiments import __main__
from samo_jax.experiments.networks.multitask_net import MultitaskNet
from samo_jax.experiments.problems import registry
from samo_jax.experiments.problems.benchmark import Benchmark, Examples
from samo_jax.experiments.problems.generated import digits
from samo_jax.experiments.problems.tasks import CLASSIFICATION
from samo_jax.experiments.training.methods import method_of
from samo_jax.experiments.training.trainer import Trainer


def small_digits(split):
    benchmark = digits(split)
    return benchmark._replace(
        net=lambda tasks: MultitaskNet(dict.fromkeys(tasks, 10), widths=(16,)),
        train=benchmark.train.take(slice(300)),
        evaluation=benchmark.evaluation.take(slice(100)),
    )


def main(*args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["experiments", *map(str, args)])
        patch.setitem(registry.BENCHMARKS, "digits", small_digits)
        return __main__.main()


def last_line(capsys, *args):
    """What a command says that ends the process with an error: one line."""
    with pytest.raises(SystemExit) as ended:
        __main__.main(list(args))
    assert ended.value.code
    printed = capsys.readouterr().err or f"{ended.value.code}\n"
    assert printed.count("\n") == 1
    return printed


class Normalised(nn.Module):
    """A dense layer, batch norm, dropout and heads."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
        x = nn.Dropout(0.5, deterministic=not train)(nn.relu(x))
        return {task: nn.Dense(2, name=task)(x) for task in ("left", "right")}


def normalised_benchmark():
    """A benchmark in memory whose network has batch statistics and dropout."""
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, size=(8, 4)).astype(np.float32)
    data = Examples(x, {"left": np.int32(x[:, 0] > 1), "right": np.int32(x[:, 1] > 1)})
    tasks = dict.fromkeys(data.labels, CLASSIFICATION)
    return Benchmark(
        tasks, lambda _: Normalised(), data, data, 8, 1, 1e-2, 0.1, has_modes=True
    )


def trainer(benchmark, text):
    return Trainer(benchmark, method_of(text))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
