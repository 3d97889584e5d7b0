"""The modalities experiment: does Modality-Aware SAM help the weaker modality?"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from rich.progress import track

import samo_jax
from samo_jax.experiments.command import (
    add_count_argument,
    add_out_argument,
    make_console,
)
from samo_jax.experiments.configuration import (
    add_file_arguments,
    resumable,
    settings,
)
from samo_jax.experiments.data.halves import (
    MODALITIES,
    Halves,
    HalvesNet,
    encoder_labels,
    half_digits,
    masked,
)
from samo_jax.experiments.tables import (
    load,
    markdown_table,
    save,
    spread,
    terminal_table,
)

DESCRIPTION = """\
Recognise handwritten digits from two modalities, their upper halves and their noisy
lower halves, and then from either alone. Compares plain training, the same with a loss
for each modality ("unimodal"), SAM, and Modality-Aware SAM in its batch, sample,
modality and encoder forms, each with the radius that is best on validation pictures, on
the same data and initialisations."""

RHOS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
_BATCH_SIZE = 100
_BOTH = np.array([True, True])
_PRESENT = {"both": _BOTH} | dict(zip(MODALITIES, np.eye(2, dtype=bool), strict=True))
_PLAIN, _UNIMODAL, _SAM = "plain", "unimodal", "sam"

modality_aware = partial(samo_jax.modality_aware_sam, num_modalities=2)
METHODS: dict[str, Callable[[Any], samo_jax.Perturbation | None]] = {
    _PLAIN: lambda _: None,
    _UNIMODAL: lambda _: None,
    _SAM: samo_jax.sam,
    "batch": lambda rho: modality_aware(rho, decay=0.9),
    "sample": lambda rho: modality_aware(rho, decompose="sample"),
    "modality": lambda rho: modality_aware(rho, decompose="modality", decay=0.9),
    "encoder": lambda rho: modality_aware(rho, encoders=encoder_labels, decay=0.9),
}


class Run(NamedTuple):
    """Results of one network, of the best radius.

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


Results = dict[str, dict[int, Any]]  # by method, by seed: a Run


class Batch(NamedTuple):
    """The losses and values of one batch, as functions of the parameters.

    Attributes:
        net: the network.
        halves: halves of the pictures, shape (B, 2, 32).
        digits: labels, shape (B,).
    """

    net: HalvesNet
    halves: jax.Array
    digits: jax.Array

    def logits(self, params: Any, present: ArrayLike = _BOTH) -> jax.Array:
        """Shape (B, 10)."""
        halves = masked(self.halves, present)
        return jnp.asarray(self.net.apply({"params": params}, halves))

    def losses(self, params: Any, present: ArrayLike = _BOTH) -> jax.Array:
        """Shape (B,)."""
        return _cross_entropy(self.logits(params, present), self.digits)

    def loss(self, params: Any) -> jax.Array:
        """The mean loss."""
        return jnp.mean(self.losses(params))

    def accuracy(self, params: Any, present: ArrayLike = _BOTH) -> jax.Array:
        """The share of digits that are recognised."""
        return jnp.mean(self.logits(params, present).argmax(axis=-1) == self.digits)

    def modality_losses(self, params: Any) -> jax.Array:
        """The loss of each modality's share of the logits, shape (2,)."""
        shares = samo_jax.shapley_values(partial(self.logits, params), 2)
        return jnp.mean(jax.vmap(_cross_entropy, (0, None))(shares, self.digits), 1)

    def joint_loss(self, params: Any) -> jax.Array:
        """The mean loss, plus that of each modality: the "unimodal" method's."""
        return self.loss(params) + jnp.sum(self.modality_losses(params))

    def extra_args(self, method: str) -> dict[str, Any]:
        """The arguments that `modality_aware_sam` asks for."""
        if method == "sample":
            return {
                "modality_fn": lambda params, present: -self.losses(params, present),
                "loss_parts_fn": self.losses,
            }
        return {"modality_fn": self.accuracy, "loss_parts_fn": self.modality_losses}


_cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def train(
    method: str, net: HalvesNet, data: Halves, epochs: int, rho: Any, seed: Any
) -> Any:
    """The parameters after training, a pure function of the radius and the seed."""
    perturbation = METHODS[method](rho)
    tx = optax.chain(
        optax.with_extra_args_support(optax.identity())
        if perturbation is None
        else samo_jax.single_task(perturbation),
        optax.adam(1e-3),
    )
    halves, digits = map(jnp.asarray, data)

    def train_step(carry, index):
        params, opt_state = carry
        batch = Batch(net, halves[index], digits[index])
        loss_fn = batch.joint_loss if method == _UNIMODAL else batch.loss
        grads = jax.grad(loss_fn)(params)
        updates, opt_state = tx.update(
            grads, opt_state, params, loss_fn=loss_fn, **batch.extra_args(method)
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


def train_all(method: str, args: argparse.Namespace) -> dict[int, Run]:
    """Every radius and seed at once; of each seed, the run of the best radius."""
    net = HalvesNet(args.fusion)
    data, *evaluation = half_digits()
    rhos = (0.0,) if METHODS[method](0.0) is None else RHOS

    def accuracies(rho, seed):
        params = train(method, net, data, args.epochs, rho, seed)
        return [
            {
                name: Batch(net, *map(jnp.asarray, split)).accuracy(params, present)
                for name, present in _PRESENT.items()
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
        seed: Run(of_seed(test, seed), of_seed(validation, seed), rhos[best], by_rho)
        for seed in range(args.seeds)
    }


def _fault(run: Run) -> str | None:
    """The fault in a run that a file says to have finished."""
    for accuracy in (run.accuracy, run.validation_accuracy):
        if accuracy.keys() != _PRESENT.keys():
            return f"its accuracies are not those with {', '.join(_PRESENT)}"
    return None


def summarize(results: Results) -> list[list[str]]:
    """The table's cells, header first, a row a method."""

    def accuracy(method, name):
        return 100 * np.array([run.accuracy[name] for run in results[method].values()])

    weak = MODALITIES[-1]
    table = [["method", "rho", *(f"{name} %" for name in _PRESENT), f"{weak} - SAM"]]
    for method, runs in results.items():
        columns = [accuracy(method, name) for name in _PRESENT]
        columns.append(accuracy(method, weak) - accuracy(_SAM, weak))
        table.append(
            [method, f"{runs[0].rho:g}", *(spread(column, 1) for column in columns)]
        )
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
    add_count_argument(parser, "--seeds", 5, "number of seeds")
    add_count_argument(parser, "--epochs", 60, "epochs per run", most=10**5)
    add_file_arguments(parser)
    add_out_argument(parser, "modalities")


def run(args: argparse.Namespace) -> int:
    """Train with every method; return the exit status."""
    console = make_console(120)
    methods = [name for name in METHODS if args.fusion == "late" or name != "encoder"]
    with resumable(args, "modalities") as folder:
        _, results = load(folder, Run, methods, args.seeds, lambda _, run: _fault(run))
        new = [
            method for method in methods if len(results.get(method, {})) < args.seeds
        ]
        for method in track(new, "methods", console=console):
            results[method] = train_all(method, args)
            save(folder, settings(args), results)

    rows = summarize(results)
    caption = (
        f"Test accuracy with both halves and with either alone, {args.fusion} fusion, "
        f"{args.epochs} epochs, mean ± standard deviation over seeds ({args.seeds}). "
        f"rho: of {len(RHOS)}, the best by the three's mean on validation pictures. "
        "Last column: difference to SAM, seed by seed."
    )
    (folder / "table.md").write_text(f"{markdown_table(rows)}\n{caption}\n")
    console.print(terminal_table(rows, caption))
    console.print(f"Saved table.md and results.json in {folder}")
    return 0
