"""Methods built before anything runs, and named by what was built."""

import re
from collections.abc import Iterable
from functools import partial
from typing import Any

import jax

from samo_jax.experiments.problems.benchmark import Benchmark
from samo_jax.experiments.training.grammar import MethodError
from samo_jax.experiments.training.methods import (
    EXAMPLE_LOSSES,
    LOSSES_AFTER,
    SECOND_BATCH,
    Method,
    check_needs,
    method_of,
)
from samo_jax.experiments.training.optimizers import Setup, make_transformation


def built_methods(
    texts: Iterable[str], benchmark: Benchmark, name: str
) -> dict[str, str]:
    """The calls of the methods' transformations on a benchmark, by text.

    Args:
        texts: texts of the methods.
        benchmark: benchmark to be trained on.
        name: name of the benchmark.

    Raises:
        SystemExit: in one line, if one of them cannot be trained with.
    """
    methods = {text: method_of(text) for text in texts}
    given = {SECOND_BATCH, LOSSES_AFTER}
    if not (benchmark.has_modes or benchmark.by_task):
        given |= {*EXAMPLE_LOSSES}
    net, one = benchmark.net(tuple(benchmark.tasks)), next(benchmark.train.batches(1))
    init = partial(net.init, **{"train": False} if benchmark.has_modes else {})
    params = jax.eval_shape(init, jax.random.key(0), one.inputs)["params"]
    setup = Setup(
        len(benchmark.tasks),
        benchmark.steps_per_epoch,
        0,
        jax.random.key(0),
        {"rho": benchmark.rho, "alpha": benchmark.alpha},
    )
    try:
        check_needs(methods.values(), given, name)
        return {text: call_of(of, setup, params) for text, of in methods.items()}
    except MethodError as error:
        raise SystemExit(f"--methods: {error}") from None


def call_of(method: Method, setup: Setup, params: Any) -> str:
    """The `repr` of a method's transformation, in one line.

    Args:
        method: method to be made.
        setup: setup, without labels of heads, which would be in the `repr`.
        params: shapes of the parameters.

    Raises:
        MethodError: if the method cannot be made for them.
    """
    try:
        made = make_transformation(method, setup)
        jax.eval_shape(made.init, params)
    except (ValueError, TypeError) as error:
        wrong = " ".join(str(error).split()).rstrip(".")
        raise MethodError(str(method), wrong) from None
    if method.descends_mean_loss:
        return "optax.identity()"
    return " ".join(re.sub(r"<function (\S+) at \w+>", r"\1", repr(made)).split())
