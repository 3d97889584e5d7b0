"""The grammar of methods: `COMBINER[+PERTURBATION][+multitask(key=value)]`.

Combiner and perturbation are NAME or NAME(key=value), as in
`fairgrad(alpha=2.0)+joint_sam(local=probe(shared=True))+multitask(weights_every=10)`:
values are Python literals, or calls of combiners, perturbations and directions. Nothing
is made here.
"""

import ast
import inspect
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple

import samo_jax
from samo_jax.experiments.networks.multitask_net import last_layer
from samo_jax.experiments.problems.halves import encoder_labels
from samo_jax.experiments.training.schema import shown

EXAMPLE = "fairgrad(alpha=2.0)+joint_sam(rho=0.1)"
EXAMPLE_SETTINGS = "fairgrad+f_mtl(direction='global', weights_every=10)"
_LONGEST = 200  # a method names a folder


class MethodError(ValueError):
    """Error of a method's text: what is wrong, the nearest name, and an example."""

    def __init__(self, text: str, wrong: str, remedy: str = ""):
        """Say it in one line.

        Args:
            text: text of the method.
            wrong: description of the fault.
            remedy: a sentence; empty: an example of a method.
        """
        super().__init__(
            f"{shown(text)}: {wrong}. {remedy or f'For example: mean, {EXAMPLE}'}"
        )


class Call(NamedTuple):
    """Name with arguments, as a method's text has it.

    Attributes:
        name: name of a combiner, a perturbation, or what may be their argument.
        arguments: arguments by name: Python literals and calls.
    """

    name: str
    arguments: Mapping[str, Any] = MappingProxyType({})

    def __str__(self) -> str:
        """The text that is parsed to it."""
        if not self.arguments:
            return self.name
        shown = (
            f"{name}={value if isinstance(value, Call) else repr(value)}"
            for name, value in self.arguments.items()
        )
        return f"{self.name}({', '.join(shown)})"

    def calls(self) -> Iterator["Call"]:
        """Every call in a call: itself, and the calls in its arguments."""
        yield self
        for value in self.arguments.values():
            if isinstance(value, Call):
                yield from value.calls()


_COMBINERS = {name: entry.factory for name, entry in samo_jax.COMBINERS.items()}
_PERTURBATIONS = {name: entry.factory for name, entry in samo_jax.PERTURBATIONS.items()}
SAMO = "samo"  # short for joint_sam
F_MTL = "f_mtl"
MULTITASK = "multitask"
VALUES = MappingProxyType({"last_layer": last_layer, "encoder_labels": encoder_labels})
FACTORIES: Mapping[str, Callable[..., Any]] = {
    **_COMBINERS,
    **_PERTURBATIONS,
    SAMO: samo_jax.joint_sam,
    F_MTL: samo_jax.f_mtl,
    MULTITASK: samo_jax.multitask,
    "probe": samo_jax.probe,
}
COMBINER_NAMES = tuple(_COMBINERS)
PERTURBATION_NAMES = (*_PERTURBATIONS, F_MTL, SAMO)
_ARGUMENT_NAMES = (*COMBINER_NAMES, *_PERTURBATIONS, "probe", *VALUES)
# What the problem says, or other parts of the text.
_HIDDEN = (
    *("combiner", "perturbation", "num_tasks", "key"),
    *("param_labels", "unroll", "axis_name", "diagnostics"),
)


def parse(
    text: str, others: Collection[str] = ()
) -> tuple[Call, Call | None, Call | None]:
    """The combiner, the perturbation and the settings of a method's text.

    Args:
        text: see above.
        others: names that may stand in the combiner's place, without arguments.

    Raises:
        MethodError: if it is no such text.

    Examples:
        >>> print(*parse('mgda("l2") + samo'))
        mgda(normalization='l2') samo None
    """
    combiners = (*COMBINER_NAMES, *others)
    fits = len(text.encode(errors="replace")) <= _LONGEST and text.isprintable()
    if not fits or "/" in text:
        raise MethodError(
            text, f"must have at most {_LONGEST} printable bytes, and no slash"
        )
    try:
        with warnings.catch_warnings(action="ignore"):
            node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise MethodError(text, _no_method(text, combiners)) from None
    parts: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts.append(node.right)
        node = node.left
    combiner = _call(text, node, "combiner", combiners)
    settings = perturbation = None
    if parts and _is_settings(parts[0]):
        settings = _call(text, parts.pop(0), "settings", (MULTITASK,))
    if parts:
        part = parts.pop(0)
        perturbation = _call(text, part, "perturbation", PERTURBATION_NAMES)
    if parts:
        raise MethodError(text, _no_method(text, combiners))
    if settings and perturbation and perturbation.name == F_MTL:
        wrong = f"{F_MTL} takes the arguments of {MULTITASK} itself"
        raise MethodError(text, wrong, f"Write {EXAMPLE_SETTINGS}")
    return combiner, perturbation, settings


def parameters(name: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a factory that a text may set, by name."""
    found = inspect.signature(FACTORIES[name]).parameters
    hidden = _HIDDEN if name in (F_MTL, MULTITASK) else ()
    return {key: of for key, of in found.items() if key not in hidden}


def _is_settings(node: ast.expr) -> bool:
    function = node.func if isinstance(node, ast.Call) else node
    return isinstance(function, ast.Name) and function.id == MULTITASK


def _call(text: str, node: ast.expr, kind: str, names: Collection[str]) -> Call:
    """The call at a node, of one of some names."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise MethodError(text, _no_method(text))
    name = call.func.id
    if name not in names:
        raise MethodError(text, _unknown(kind, name, names))
    known = list(parameters(name)) if name in FACTORIES else []
    count = len(call.args) + len(call.keywords)
    if count > len(known):
        wrong = f"{name} takes {len(known) or 'no'} arguments, got {count}"
        raise MethodError(text, wrong)
    arguments = dict(zip(known, call.args, strict=False))
    for keyword in call.keywords:
        key = str(keyword.arg)
        if key not in known:
            wrong = _unknown(f"argument of {name}", key, known)
            raise MethodError(text, wrong)
        if key in arguments:
            raise MethodError(text, f"{name} gets {key!r} twice")
        arguments[key] = keyword.value
    given = [key for key in known if key in arguments]
    return Call(name, {key: _value(text, arguments[key]) for key in given})


def _value(text: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Name | ast.Call):
        return _call(text, node, "combiner, perturbation or direction", _ARGUMENT_NAMES)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        wrong = f"{shown(ast.unparse(node))} is no Python literal and no call"
        raise MethodError(text, wrong) from None


def _unknown(kind: str, name: str, names: Collection[str]) -> str:
    [nearest] = get_close_matches(name, names, n=1, cutoff=0.0)
    return f"there is no {kind} {shown(name)}, the nearest is {nearest}"


def _no_method(text: str, combiners: Collection[str] = COMBINER_NAMES) -> str:
    """The error of a text that is no sum of calls, such as "mgda-l2"."""
    words = re.match(r"\s*([\w.-]*)(?:\(.*\))?\s*\+?\s*([\w.-]*)", text)
    kinds = ("combiner", combiners), ("perturbation", PERTURBATION_NAMES)
    for word, (kind, names) in zip(
        words.groups() if words else (), kinds, strict=False
    ):
        if word and word not in names:
            return _unknown(kind, word, names)
    return "must be COMBINER or COMBINER+PERTURBATION, each NAME(key=value, ...)"
