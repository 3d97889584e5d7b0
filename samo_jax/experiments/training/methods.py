"""Methods: a combiner, and where the tasks' gradients are taken."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import samo_jax
from samo_jax.experiments.training.grammar import (
    COMBINER_NAMES,
    F_MTL,
    SAMO,
    Call,
    MethodError,
    parse,
)

SINGLE_TASK = "single-task"
MEAN = "mean"
PLAIN = "plain"
ALL = "all"

SECOND_BATCH, LOSSES_AFTER = "second batch", "losses (also after the step)"
EXAMPLE_LOSSES = ("example_losses", "example_loss_fn")
MODALITY_VALUES = ("modality_fn", "loss_parts_fn")
_ONE_BATCH = (F_MTL, "modality_aware_sam")
# What problems that cannot give it lack, and what to do then.
_LACKING = {
    SECOND_BATCH: ("a second, independent batch", "digits"),
    LOSSES_AFTER: ("losses after the step", "digits"),
    **dict.fromkeys(
        EXAMPLE_LOSSES,
        (
            "the losses of single examples, which there are not with batch norm, with "
            "dropout, or where each task has examples of its own",
            "digits",
        ),
    ),
    **dict.fromkeys(MODALITY_VALUES, ("an input in several modalities", "modalities")),
}


class Method(NamedTuple):
    """Combiner, and where the tasks' gradients are taken.

    Attributes:
        combiner: None for single-task training.
        perturbation: None for plain training.
        settings: further arguments of `multitask`. None: its defaults.
    """

    combiner: Call | None = None
    perturbation: Call | None = None
    settings: Call | None = None

    def __str__(self) -> str:
        """The text that names it on the command line, in files and tables."""
        if self.combiner is None:
            return SINGLE_TASK
        return "+".join(str(part) for part in self if part)

    @property
    def descends_mean_loss(self) -> bool:
        """Whether the gradient of the mean loss, or the only one, is all it needs."""
        return self.combiner is None or str(self) == MEAN

    @property
    def sharpness(self) -> str:
        """The text of the perturbation, and of settings."""
        parts = self.perturbation or PLAIN, self.settings
        return "+".join(str(part) for part in parts if part)

    @property
    def has_radius(self) -> bool:
        """Whether there is a radius that the text does not set."""
        return bool(self.perturbation and "rho" not in self.perturbation.arguments)

    @property
    def needs(self) -> set[str]:
        """The arguments that `update` needs beyond `loss_fn`."""
        entries = samo_jax.COMBINERS | samo_jax.PERTURBATIONS
        names = [call.name for part in self if part for call in part.calls()]
        needs = [
            need for name in names if name in entries for need in entries[name].needs
        ]
        return {need for need in needs if need in _LACKING}


def method_of(text: str) -> Method:
    """The method of a text.

    Raises:
        MethodError: if the text is none, or that of several methods.
    """
    methods = select(text)
    if len(methods) > 1:
        raise MethodError(text, "is several methods, where one is asked for")
    return methods[0]


def select(text: str) -> tuple[Method, ...]:
    """The methods of a text: one, or with "all" one for every combiner that can.

    Raises:
        MethodError: if there is none.
    """
    if text.strip() == SINGLE_TASK:
        return (Method(),)
    if text.strip().partition("(")[0] == SAMO:
        text = f"fairgrad(alpha=2.0)+{text}"
    combiner, perturbation, settings = parse(text, (ALL,))
    method = Method(combiner, perturbation, settings)
    if combiner.name == ALL:
        every = (method._replace(combiner=Call(name)) for name in COMBINER_NAMES)
        return tuple(method for method in every if _go_together(method))
    if not _go_together(method):
        wrong = f"{combiner} asks for a second batch, which {perturbation} cannot use"
        raise MethodError(text, wrong)
    return (method,)


def _go_together(method: Method) -> bool:
    """Whether the perturbation can be had with the combiner's second batch."""
    name = method.perturbation and method.perturbation.name
    return SECOND_BATCH not in method.needs or name not in _ONE_BATCH


def unique(selections: Iterable[Iterable[Method]]) -> list[Method]:
    """The methods of all selections, each once, in order."""
    return list({str(method): method for of in selections for method in of}.values())


def check_needs(
    methods: Iterable[Method], given: Collection[str], problem: str
) -> None:
    """Raise where a problem cannot give what a method needs.

    Args:
        methods: methods to be trained with.
        given: arguments of `Method.needs` that the problem can give.
        problem: name of the problem.

    Raises:
        MethodError: that names the method and the remedy.
    """
    for method in methods:
        for need in sorted(method.needs - set(given)):
            what, instead = _LACKING[need]
            raise MethodError(
                str(method),
                f"needs {what}, and {problem} cannot give it",
                "Take another method, or a problem that can, as "
                f"`python -m samo_jax.experiments {instead}`",
            )
