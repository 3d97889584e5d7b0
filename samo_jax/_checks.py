"""Checks of arguments, whichever function takes them."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path
from jax.typing import ArrayLike

from samo_jax._tree import PyTree

# By library: how parameters are taken out of its models, and put into them again.
_MODELS = {
    "flax.nnx": (
        "`graphdef, params, rest = nnx.split(model, nnx.Param, ...)`",
        "nnx.merge(graphdef, params, rest, copy=True)",
    ),
    "equinox": (
        "`params, static = eqx.partition(model, eqx.is_inexact_array)`",
        "eqx.combine(params, static)",
    ),
}


def check_function(name: str, value: Any, argument: str, remedy: str) -> None:
    """Raise unless it can be called with one argument."""
    try:
        inspect.signature(value).bind(argument)
    except TypeError as error:
        got = f"{value!r}: {error}" if callable(value) else f"{type(value)}"
        raise ValueError(
            f"`{name}` must be a function of {argument} alone, got {got}. {remedy}"
        ) from None
    except ValueError:
        return  # A builtin, which does not say.


def check_key(key: Any) -> None:
    """Raise unless it is one PRNG key (typed, or a legacy array) or an int."""
    remedy = "Pass a typed key, `key=jax.random.key(0)`, or an int."
    if key is None:
        raise ValueError(
            f"`key` is required: this method draws random numbers; got None. {remedy}"
        )
    if hasattr(key, "dtype") and hasattr(key, "shape"):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        legacy = key.dtype == jnp.uint32 and key.shape in ((2,), (4,))
        valid = legacy or (typed and key.shape == ())
    else:
        valid = isinstance(key, Integral) and not isinstance(key, bool)
    if not valid:
        raise ValueError(f"`key` must be one PRNG key or an int, got {key!r}. {remedy}")


def as_key(key: jax.Array | int | None) -> jax.Array:
    """The key of an int, or a copy: donating a state must not delete the user's key."""
    check_key(key)
    if isinstance(key, Integral):
        return jax.random.key(int(key))
    return jnp.array(key)


def check_floats(name: str, tree: PyTree, remedy: str) -> None:
    """Raise unless all leaves are floating-point arrays, in dtypes that JAX has on."""
    for path, leaf in tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", type(leaf))
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(dtype, jnp.floating)):
            raise ValueError(
                f"`{name}` must be floating-point arrays, got leaf '{keystr(path)}' of "
                f"type {dtype}. {remedy}"
            )
        if jax.dtypes.canonicalize_dtype(dtype) != dtype:
            raise ValueError(
                f"`{name}` must have dtypes that JAX has switched on, got leaf "
                f"'{keystr(path)}' of type {dtype}. Convert them once, "
                f"`jax.tree.map(jnp.asarray, {name})`, or switch on x64."
            )


def check_params(params: PyTree) -> None:
    """Raise unless the parameters are floating-point arrays."""
    library = _library(params)
    split = f" {_MODELS[library][0]}." if library else ""
    check_floats("params", params, f"Keep other state out of the parameters.{split}")


@contextmanager
def explained(params: PyTree) -> Iterator[None]:
    """Errors of a loss function that does not make the model of the parameters."""
    try:
        yield
    except Exception as error:
        fault = _model_fault(error)
        library = None if fault is None else _library(params)
        if library is None:
            raise
        split, merge = _MODELS[library]
        raise ValueError(
            f"`loss_fn` must {fault}, got {error}. Write {split} and "
            f"`loss_fn = lambda params: losses({merge})`."
        ) from error


def _model_fault(error: Exception) -> str | None:
    """The right use of the model that the loss function missed, if it did."""
    if type(error).__name__ == "TraceContextError":
        return "not write to a model outside of it"
    no_model = (
        "'State'",
        "in State",
        "'NoneType' object is not callable",
        "Incorrect number of leaves",
    )
    if any(text in str(error) for text in no_model):
        return "make the model of its parameters first"
    return None


def _library(params: PyTree) -> str | None:
    """The library whose models the parameters are or hold."""

    def named(node):
        modules = [cls.__module__ for cls in type(node).__mro__]
        return [lib for lib in _MODELS if any(m.startswith(lib) for m in modules)]

    nodes = jax.tree.leaves(params, is_leaf=lambda node: bool(named(node)))
    return next((library for node in nodes for library in named(node)), None)


def check_like(
    name: str, tree: PyTree, like: str, reference: PyTree, remedy: str
) -> None:
    """Raise unless `tree` has the structure and shapes of the reference, `like`."""
    structures = [jax.tree.structure(x) for x in (tree, reference)]
    found, wanted = map(_shapes, (tree, reference))
    if found == wanted and structures[0] == structures[1]:
        return
    differing = [p for p in wanted | found if found.get(p) != wanted.get(p)]
    if differing:
        path = differing[0]
        got = (
            f"{_shape_or_nothing(found, path)} at '{path}' instead of "
            f"{_shape_or_nothing(wanted, path)}"
        )
    else:
        got = f"{structures[0]}, not {structures[1]}"
    raise ValueError(f"`{name}` must have the shapes of `{like}`, got {got}. {remedy}")


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {keystr(p): jnp.shape(leaf) for p, leaf in tree_leaves_with_path(tree)}


def _shape_or_nothing(shapes: dict[str, tuple[int, ...]], path: str) -> str:
    return f"shape {shapes[path]}" if path in shapes else "nothing"


Vector: TypeAlias = ArrayLike | Sequence[float]
# A mapping is a pytree in the structure of the losses.
TaskValues: TypeAlias = Vector | Mapping[str, Any]
ScalarOrSchedule: TypeAlias = ArrayLike | Callable[[jax.Array], ArrayLike]

# By type, where these go that are taken for a radius.
_NO_RADIUS = {
    "Perturbation": "Use `samo_jax.multitask(combiner, perturbation)`",
    "Direction": "Pass it as `direction` or `local`",
}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` can be checked now: not a tracer, array or schedule."""
    return isinstance(value, Real)


def resolve(name: str, value: ScalarOrSchedule, step: jax.Array) -> ArrayLike:
    """The value of a float or a schedule at `step`."""
    if not callable(value):
        return value
    remedy = "Call the schedule's factory, such as `optax.linear_schedule(0, 1, 100)`."
    check_function(name, value, "the step", remedy)
    at_step = value(step)
    check_scalar(name, at_step, remedy)
    return at_step


def is_scalar(value: Any) -> bool:
    """Whether it is a number, or a real scalar array or tracer."""
    return is_number(value) or (
        getattr(value, "shape", None) == ()
        and (
            jnp.issubdtype(value.dtype, jnp.floating)
            or jnp.issubdtype(value.dtype, jnp.integer)
        )
    )


def check_scalar(name: str, value: Any, remedy: str) -> None:
    """Raise unless it is a number, a scalar array or tracer, or a schedule."""
    if not (is_scalar(value) or callable(value)):
        raise ValueError(
            f"`{name}` must be one real number or a schedule that returns one, got "
            f"{value!r}. {remedy}"
        )


def check_nonnegative(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is non-negative and finite."""
    check_scalar(name, value, remedy)
    if is_number(value) and not 0 <= value < float("inf"):
        raise ValueError(
            f"`{name}` must be non-negative and finite, got {value}. {remedy}"
        )


def check_positive(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is positive and finite."""
    check_scalar(name, value, remedy)
    if is_number(value) and not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be positive and finite, got {value}. {remedy}")


def check_share(name: str, value: Any, remedy: str) -> None:
    """Raise unless a number is in [0, 1]."""
    check_scalar(name, value, remedy)
    if is_number(value) and not 0 <= value <= 1:
        raise ValueError(f"`{name}` must be in [0, 1], got {value}. {remedy}")


def check_decay(decay: Any) -> None:
    """Raise unless `decay` is a share of the past in [0, 1)."""
    remedy = "0 keeps no history."
    check_scalar("decay", decay, remedy)
    if is_number(decay) and not 0 <= decay < 1:
        raise ValueError(f"`decay` must be in [0, 1), got {decay}. {remedy}")


def check_count(name: str, value: Any, remedy: str, *, least: int = 1) -> None:
    """Raise unless it is a positive int, or one that is not negative."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least:
        sign = "positive" if least else "non-negative"
        raise ValueError(f"`{name}` must be a {sign} int, got {value!r}. {remedy}")


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")


def check_rho(rho: Any) -> None:
    """Raise unless `rho` is a radius."""
    kind = type(rho).__name__
    if kind in _NO_RADIUS:
        raise ValueError(
            "`rho` must be one real number or a schedule that returns one, got a "
            f"{kind}. {_NO_RADIUS[kind]}."
        )
    check_nonnegative("rho", rho, "0 switches the perturbation off.")


def check_alpha(alpha: Any, otherwise: str = "") -> None:
    """Raise unless `alpha` is a share of the global gradient."""
    check_share("alpha", alpha, f"It is the share of the global gradient{otherwise}.")


def check_mu(mu: Any) -> None:
    """Raise unless `mu` is a step of a central difference."""
    check_positive("mu", mu, "The paper uses 0.01.")


def as_numbers(name: str, values: Any) -> np.ndarray:
    """A number or a sequence of them as an array; raise if it is neither."""
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError):
        raise ValueError(
            f"`{name}` must be a sequence of numbers, one per task, got {values!r}. "
            "Give its entries in the order of the losses."
        ) from None


def check_offset(offset: TaskValues) -> None:
    """Raise unless it is one finite number, or one per task."""
    if isinstance(offset, jax.core.Tracer):
        return
    values = as_numbers("offset", offset)
    if values.ndim > 1 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"`offset` must be one finite number or one per task, got {offset!r}. It "
            "is what the losses never fall below."
        )


def check_preference(preference: TaskValues | None, *, positive: bool = False) -> None:
    """Raise unless the preference is a direction in the (open) non-negative orthant."""
    if preference is None or isinstance(preference, jax.core.Tracer):
        return
    values = as_numbers("preference", preference)
    if positive and not np.all(values > 0):
        raise ValueError(
            f"`preference` must be positive and finite, got {preference}. A task that "
            "nobody prefers is left out of the losses, or gets a small number."
        )
    if not (np.all(np.isfinite(values)) and np.all(values >= 0) and np.any(values > 0)):
        raise ValueError(
            "`preference` must be finite and non-negative with a positive entry, got "
            f"{preference}. None prefers no task."
        )
