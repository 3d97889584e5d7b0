"""Methods: their grammar, and every one in the experiments' training step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samo_jax
from samo_jax.experiments.problems.benchmark import Examples
from samo_jax.experiments.training.built import built_methods
from samo_jax.experiments.training.extra_arguments import extra_args
from samo_jax.experiments.training.grammar import (
    COMBINER_NAMES,
    PERTURBATION_NAMES,
    MethodError,
)
from samo_jax.experiments.training.methods import check_needs, method_of, select
from samo_jax.experiments.training.optimizers import (
    Setup,
    make_optimizer,
    make_transformation,
)
from samo_jax.experiments.training.train_step import make_train_step

from small_runs import normalised_benchmark, small_digits
from three_heads import assert_finite, types

TASKS = ("left", "right")
SHAPES = {"Dense_0": (3, 4), "left": (4,), "right": (4,)}
SETUP = Setup(2, 7, 0, jax.random.key(0), {"rho": 0.2, "alpha": 0.3})


def batch(seed):
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(5, 3)).astype(np.float32)
    labels = {task: rng.normal(size=5).astype(np.float32) for task in TASKS}
    return Examples(inputs, labels)


def losses(params, batch, _state, _train=True):
    hidden = jnp.tanh(batch.inputs @ params["Dense_0"])
    return {
        task: jnp.mean(jnp.square(hidden @ params[task] - batch.labels[task]))
        for task in TASKS
    }, {}


@pytest.fixture(scope="module")
def initial_params():
    rng = np.random.default_rng(0)
    return {
        name: jnp.asarray(rng.normal(size=shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module")
def benchmark():
    """Of which the optimisers take tasks, radius and learning rate."""
    return small_digits("test")


def restore(tree):
    """Through NumPy arrays and back, as a checkpoint would."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), tree)


RUN = [f"{combiner}+global_sam" for combiner in COMBINER_NAMES]
RUN += ["fairgrad+samo", "moco+samo", "cagrad+efficient_sam", "famo+f_mtl"]


@pytest.mark.slow
@pytest.mark.parametrize("text", RUN)
def test_trains_under_jit_and_resumes(text, initial_params, benchmark):
    method = method_of(text)
    tx = make_optimizer(method, benchmark, 0)
    train_step = make_train_step(losses, tx, extra_args(method))

    def step(i, carry):
        return train_step(*carry, batch(i), batch(100 + i), batch(max(i - 1, 0)))[:2]

    carry = (initial_params, tx.init(initial_params))
    before = types(carry)
    for i in range(3):
        carry = step(i, carry)
        assert types(carry) == before
    assert_finite(carry)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), carry[0], initial_params)
    assert all(jax.tree.leaves(moved))

    resumed, continued = step(3, restore(carry)), step(3, carry)
    jax.tree.map(np.testing.assert_array_equal, resumed, continued)
    assert train_step._cache_size() == 1


@pytest.mark.parametrize("perturbation", PERTURBATION_NAMES)
def test_every_perturbation_is_traced(perturbation, initial_params, benchmark):
    method = method_of(f"mgda+{perturbation}")
    if perturbation == "modality_aware_sam":
        with pytest.raises(MethodError, match="needs an input in several modalities"):
            check_needs([method], (), "digits")
        return
    tx = make_optimizer(method, benchmark, 0)
    step = make_train_step(losses, tx, extra_args(method))
    state, of = tx.init(initial_params), batch(0)
    params, *_ = jax.eval_shape(step, initial_params, state, of, of, of)
    assert types(params) == types(initial_params)


def made(text):
    return repr(make_transformation(method_of(text), SETUP))


@pytest.mark.parametrize(
    ("text", "combiner", "perturbation"),
    [
        ("fairgrad", "fairgrad(alpha=2.0)", None),
        ("fairgrad(0.5)", "fairgrad(alpha=0.5)", None),
        (
            "smoothed(fairgrad)",
            "smoothed(weighting=samo_jax.fairgrad(alpha=2.0))",
            None,
        ),
        ("dwa", "dwa(window=7)", None),
        ("samo", "fairgrad(alpha=2.0)", "joint_sam(rho=0.2, alpha=0.3)"),
        ("mean+samo(rho=0.1)", "mean()", "joint_sam(rho=0.1, alpha=0.3)"),
        (
            'cagrad(c=0.7)+joint_sam(local=probe(sign="random"))',
            "cagrad(c=0.7)",
            "joint_sam(rho=0.2, alpha=0.3, local=samo_jax.probe(sign='random'))",
        ),
        ("mean+memory_sam", "mean()", "memory_sam(rho=0.2, alpha=0.3)"),
        # Its alpha is no share of the global gradient.
        ("mean+monge_sam", "mean()", "monge_sam(rho=0.2)"),
        ("mgda('l2') + sam", "mgda(normalization='l2')", "sam(rho=0.2)"),
    ],
)
def test_texts_say_what_is_made(text, combiner, perturbation):
    perturbed = f", perturbation=samo_jax.{perturbation}" if perturbation else ""
    expected = f"samo_jax.multitask(combiner=samo_jax.{combiner}{perturbed}"
    assert made(text) == f"{expected}, num_tasks=2, key=0)"


def test_f_mtl_is_a_perturbation_in_texts():
    expected = "combiner=samo_jax.mgda(), rho=0.2, adaptive=True, num_tasks=2"
    assert made("mgda+f_mtl(adaptive=True)") == f"samo_jax.f_mtl({expected})"


def test_settings_are_arguments_of_multitask():
    expected = "combiner=samo_jax.mgda(), perturbation=samo_jax.sam(rho=0.2)"
    expected += ", num_tasks=2, key=0, gramian_of='representation', weights_every=5"
    settings = "multitask(gramian_of='representation', weights_every=5)"
    assert made(f"mgda+sam+{settings}") == f"samo_jax.multitask({expected})"
    with pytest.raises(MethodError, match=r"f_mtl takes .* itself\. Write fairgrad"):
        select(f"mgda+f_mtl+{settings}")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("adam", "there is no combiner 'adam', the nearest is"),
        ("fairgrad+global", "no perturbation 'global', the nearest is global_sam"),
        ("mgda-l2", "there is no combiner 'mgda-l2', the nearest is mgda"),
        ("fairgrad+f-mtl", "no perturbation 'f-mtl', the nearest is f_mtl"),
        ("smoothed(mgba)", "direction 'mgba', the nearest is mgda"),
        ("mean+sam(roh=1)", "no argument of sam 'roh', the nearest is rho"),
        ("mean+sam(0.1, rho=2)", "sam gets 'rho' twice"),
        ("mean+sam(1, 2, 3, 4, 5)", "sam takes 4 arguments, got 5"),
        ("mean+f_mtl(num_tasks=2)", "no argument of f_mtl 'num_tasks'"),
        ("mgda+multitask(key=2)", "no argument of multitask 'key', the nearest is"),
        ("mgda+multitask+sam", "no perturbation 'multitask', the nearest is"),
        ("mean+sam(rho=lambda x: x)", "is no Python literal and no call"),
        ("mean+sam(*[1])", "'*[1]' is no Python literal and no call"),
        ("mean+sam(rho=__import__('os'))", "direction '__import__'"),
        ("modo+f_mtl", "modo asks for a second batch, which f_mtl cannot use"),
        ("mean+sam+sam", "must be COMBINER or COMBINER+PERTURBATION"),
        ("mean(", "must be COMBINER or COMBINER+PERTURBATION"),
        ("", "must be COMBINER or COMBINER+PERTURBATION"),
        ("(" * 150, "must be COMBINER or COMBINER+PERTURBATION"),
        ("'\\d'", "must be COMBINER or COMBINER+PERTURBATION"),
        ("a/b", "must have at most 200 printable bytes, and no slash"),
        ("mean\0", "must have at most 200 printable bytes, and no slash"),
        ("é" * 101, "must have at most 200 printable bytes, and no slash"),
    ],
)
def test_wrong_texts_say_what_is_wrong(text, wrong):
    with pytest.raises(MethodError) as raised:
        select(text)
    message = str(raised.value)
    assert wrong in message
    assert message.endswith(
        ". For example: mean, fairgrad(alpha=2.0)+joint_sam(rho=0.1)"
    )
    assert message.isprintable()


def test_texts_are_their_own_normal_form():
    texts = ["single-task", "samo", "all", "all+samo", "all+f_mtl(rho=0.1)"]
    texts += ["cagrad(c=0.4) + adaptive_sam(eta=0.0, rho=0.1)", "smoothed(mgda)"]
    texts += [
        "mgda + multitask(weights_every=5)",
        "mgda+sam+multitask(gramian_block=2)",
    ]
    for text in texts:
        for method in select(text):
            assert select(str(method)) == (method,)
    assert [str(of) for of in select("all")] == list(samo_jax.COMBINERS)
    every, some = (
        {of.combiner.name for of in select(text)} for text in ("all", "all+f_mtl")
    )
    assert every - some == {"modo", "sdmgrad"}


@pytest.mark.slow
def test_efficient_sam_gets_the_losses_of_examples(initial_params, benchmark):
    """With all parameters and examples it is SAM."""
    stepped = []
    for text in ("mgda+sam", "mgda+efficient_sam(beta=1.0, gamma=1.0)"):
        method = method_of(text)
        tx = make_optimizer(method, benchmark, 0)
        step = make_train_step(losses, tx, extra_args(method))
        of = batch(0)
        stepped.append(step(initial_params, tx.init(initial_params), of, of, of)[0])
    chex.assert_trees_all_close(*stepped, rtol=1e-5, atol=1e-7)


def test_what_a_problem_cannot_give_is_said_before_it_runs():
    """Batch norm makes examples depend on each other; a digit has one modality."""
    for text, wrong in (
        ("mean+efficient_sam", "needs the losses of single examples"),
        ("mean+modality_aware_sam", "needs an input in several modalities, and x can"),
        ("constant(weights=[1.0, 2.0, 3.0])", "weights"),
        ("cagrad(c=-1.0)", "`c` must be"),
        ("mean+joint_sam(mu=0.1, local=probe)", "`mu` is the step of the default"),
        ("mean+sam(mask=last_layer(1))", "last_layer takes no arguments"),
    ):
        with pytest.raises((SystemExit, MethodError)) as end:
            built_methods([text], normalised_benchmark(), "x")
        assert f"{text}'" in str(end.value)
        assert wrong in str(end.value)
