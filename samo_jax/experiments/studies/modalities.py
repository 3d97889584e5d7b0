"""The study of modalities: does Modality-Aware SAM help the weaker modality?"""

import argparse
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from samo_jax.experiments.command import (
    add_count_argument,
    add_methods_argument,
    add_out_argument,
    make_console,
    methods,
)
from samo_jax.experiments.data.halves import MODALITIES, Halves, half_digits
from samo_jax.experiments.networks.halves_net import HalvesNet
from samo_jax.experiments.problems.halves import PRESENT, Batch
from samo_jax.experiments.reports.machine import machine
from samo_jax.experiments.reports.pages import built_block, write_page
from samo_jax.experiments.reports.tables import (
    counted,
    literal,
    markdown_table,
    spread,
    terminal_table,
)
from samo_jax.experiments.training.built import call_of
from samo_jax.experiments.training.configuration import (
    add_file_arguments,
    resumable,
    settings,
)
from samo_jax.experiments.training.grammar import MethodError
from samo_jax.experiments.training.methods import (
    EXAMPLE_LOSSES,
    MEAN,
    MODALITY_VALUES,
    Method,
    check_needs,
    method_of,
)
from samo_jax.experiments.training.optimizers import Setup, make_transformation
from samo_jax.experiments.training.results import Built, check_built, load, save

DESCRIPTION = """\
Recognise handwritten digits from two modalities, their upper halves and their noisy
lower halves, and then from either alone. Compares plain training, the same with a loss
for each modality ("unimodal", which may stand among the methods), SAM, and
Modality-Aware SAM in its batch, sample, modality and encoder forms, each with the
radius that is best on validation pictures, on the same data and initialisations."""

RHOS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
_BATCH_SIZE, _STEPS_PER_EPOCH = 100, 9
UNIMODAL, SAM = "unimodal", "mean+sam"
_ENCODERS = "encoder_labels"
# The methods, and their names in the table.
LABELS = MappingProxyType(
    {
        MEAN: "plain",
        UNIMODAL: UNIMODAL,
        SAM: "SAM",
        "mean+modality_aware_sam(decay=0.9)": "batch",
        "mean+modality_aware_sam(decompose='sample')": "sample",
        "mean+modality_aware_sam(decompose='modality', decay=0.9)": "modality",
        f"mean+modality_aware_sam(encoders={_ENCODERS}, decay=0.9)": "encoder",
    }
)


class Recognition(NamedTuple):
    """Recognition of digits by one network, of the best radius.

    Attributes:
        accuracy: accuracy on test pictures, with both halves and either alone.
        validation_accuracy: accuracy on validation pictures.
        rho: the radius.
        validation_scores: mean validation accuracy of each radius over the three and
            over seeds, by which the best is chosen.
    """

    accuracy: dict[str, float]
    validation_accuracy: dict[str, float]
    rho: float
    validation_scores: dict[str, float]


Recognitions = dict[str, dict[int, Recognition]]  # by method, by seed


def train(
    text: str, net: HalvesNet, data: Halves, epochs: int, rho: Any, seed: Any
) -> Any:
    """The parameters after training, a pure function of the radius and the seed."""
    method = _method(text)
    tx = optax.chain(make_transformation(method, _setup(rho)), optax.adam(1e-3))
    halves, digits = map(jnp.asarray, data)

    def train_step(carry, index):
        params, opt_state = carry
        batch = Batch(net, halves[index], digits[index])
        loss_fn = batch.joint_loss if text == UNIMODAL else batch.loss
        grads = jax.grad(loss_fn)(params)
        updates, opt_state = tx.update(
            grads,
            opt_state,
            params,
            loss_fn=loss_fn,
            **_extra_args(method, batch, params),
        )
        return (optax.apply_updates(params, updates), opt_state), None

    def train_epoch(carry, key):
        order = jax.random.permutation(key, len(digits))
        return jax.lax.scan(train_step, carry, order.reshape(-1, _BATCH_SIZE))

    init_key, order_key = jax.random.split(jax.random.key(seed))
    params = net.init(init_key, halves[:1])["params"]
    carry = params, tx.init(params)
    keys = jax.random.split(order_key, epochs)
    return jax.lax.scan(train_epoch, carry, keys)[0][0]


def train_all(text: str, args: argparse.Namespace) -> dict[int, Recognition]:
    """Every radius and seed at once; of each seed, the network of the best radius."""
    net = HalvesNet(args.fusion, MODALITIES)
    data, *evaluation = half_digits()
    rhos = RHOS if _method(text).has_radius else (0.0,)

    def accuracies(rho, seed):
        params = train(text, net, data, args.epochs, rho, seed)
        return [
            {
                name: Batch(net, *map(jnp.asarray, split)).accuracy(params, present)
                for name, present in PRESENT.items()
            }
            for split in evaluation
        ]

    over_seeds = jax.vmap(accuracies, (None, 0))
    validation, test = jax.jit(jax.vmap(over_seeds, (0, None)))(
        jnp.array(rhos), jnp.arange(args.seeds)
    )
    scores = np.mean(list(validation.values()), axis=(0, 2))
    best = int(np.argmax(scores))

    def of_seed(accuracy, seed):
        return {name: float(values[best, seed]) for name, values in accuracy.items()}

    by_rho = {f"{rho:g}": float(s) for rho, s in zip(rhos, scores, strict=True)}
    return {
        seed: Recognition(
            of_seed(test, seed), of_seed(validation, seed), rhos[best], by_rho
        )
        for seed in range(args.seeds)
    }


def summarize(results: Recognitions) -> list[list[str]]:
    """Cells of the table, header first, a row a method."""

    def accuracy(text, name):
        found = [recognition.accuracy[name] for recognition in results[text].values()]
        return 100 * np.array(found)

    weak = MODALITIES[-1]
    table = [["method", "rho", *(f"{name} [%]" for name in PRESENT), f"{weak} - SAM"]]
    for text, of_seeds in results.items():
        cells = [spread(accuracy(text, name), 1) for name in PRESENT]
        less = (
            spread(accuracy(text, weak) - accuracy(SAM, weak), 1)
            if SAM in results
            else "-"
        )
        table.append([LABELS.get(text, text), f"{of_seeds[0].rho:g}", *cells, less])
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--fusion",
        choices=["late", "early"],
        default="late",
        help="an encoder for each modality, or one for both, which has no encoder form "
        "(default: late)",
    )
    add_methods_argument(parser, list(LABELS), _methods)
    add_count_argument(parser, "--seeds", 5, "number of seeds")
    add_count_argument(parser, "--epochs", 60, "epochs per run", most=10**5)
    add_file_arguments(parser)
    add_out_argument(parser, "modalities")


def run(args: argparse.Namespace) -> int:
    """Train with every method; return the exit status."""
    console = make_console(120)
    late = args.fusion == "late"
    texts = [text for text in args.methods if late or _ENCODERS not in text]
    _built(texts, args.fusion, {})
    with resumable(args, "modalities") as folder:
        saved, results = load(
            folder, Recognition, texts, args.seeds, lambda _, of: _fault(of), Built
        )
        if saved:
            check_built(folder, saved.built, _built(texts, args.fusion, results))
        new = [text for text in texts if len(results.get(text, {})) < args.seeds]
        for text in track(new, "methods", console=console):
            results[text] = train_all(text, args)
            made = {"built": _built(texts, args.fusion, results)}
            save(folder, settings(args) | made, results)

    built = _built(texts, args.fusion, results)
    rows = summarize(results)
    over = "mean ± standard deviation over " if args.seeds > 1 else ""
    caption = (
        f"Test accuracy with both halves and with either alone, {args.fusion} fusion, "
        f"{counted(args.epochs, 'epoch')}, {over}{counted(args.seeds, 'seed')}. "
        f"rho: of {len(RHOS)}, the best by the three's mean on validation pictures. "
        "Last column: difference to SAM, seed by seed."
    )
    parts = [markdown_table(rows), literal(caption), built_block(built)]
    parts += [f"On {machine('samo_jax', 'jax', 'optax', 'flax')}"]
    write_page(folder, "Two modalities", "\n\n".join(parts) + "\n", ())
    console.print(terminal_table(rows, caption))
    console.print(f"Saved report.html, report.md and results.json in {folder}")
    return 0


def _methods(text: str) -> tuple:
    return (UNIMODAL,) if text == UNIMODAL else methods(text)


def _method(text: str) -> Method:
    """The method of a text; the losses alone make "unimodal" another than the mean."""
    return method_of(MEAN if text == UNIMODAL else text)


def _setup(rho: Any) -> Setup:
    arguments = {"rho": rho, "num_modalities": len(MODALITIES)}
    return Setup(1, _STEPS_PER_EPOCH, 0, jax.random.key(0), arguments)


def _built(texts: list[str], fusion: Any, results: Recognitions) -> dict[str, str]:
    """The calls of the methods, with the best radii where they are known."""
    net = HalvesNet(fusion, MODALITIES)
    example = jnp.zeros((1, len(MODALITIES), 32))
    params = jax.eval_shape(net.init, jax.random.key(0), example)["params"]
    rhos = {text: of_seeds[0].rho for text, of_seeds in results.items()}
    try:
        check_needs(
            map(_method, texts), {*MODALITY_VALUES, *EXAMPLE_LOSSES}, "modalities"
        )
        return {
            text: call_of(_method(text), _setup(rhos.get(text, RHOS[0])), params)
            for text in texts
        }
    except MethodError as error:
        raise SystemExit(f"--methods: {error}") from None


def _extra_args(method: Method, batch: Batch, params: Any) -> dict[str, Any]:
    """The arguments of the perturbation's `update` beyond `loss_fn`."""
    if not method.perturbation:
        return {}
    of_examples: Mapping[str, Any] = {
        "example_losses": batch.losses(params),
        "example_loss_fn": batch.example_losses,
    }
    if method.perturbation.arguments.get("decompose") == "sample":
        return {
            **of_examples,
            "modality_fn": lambda params, present: -batch.losses(params, present),
            "loss_parts_fn": batch.losses,
        }
    return {
        **of_examples,
        "modality_fn": batch.accuracy,
        "loss_parts_fn": batch.modality_losses,
    }


def _fault(recognition: Recognition) -> str | None:
    """The fault of a network in a file, None if there is none."""
    for accuracy in (recognition.accuracy, recognition.validation_accuracy):
        if accuracy.keys() != PRESENT.keys():
            return f"its accuracies are not those with {', '.join(PRESENT)}"
    return None
