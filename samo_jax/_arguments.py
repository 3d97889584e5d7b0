"""What arguments must be, whichever function takes them."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from samo_jax._tree import PyTree

# By library: how parameters are taken out of its models, and put into them again.
_MODELS = {
    "flax.nnx": (
        "`graphdef, params, rest = nnx.split(model, nnx.Param, ...)`",
        "`nnx.merge(graphdef, params, rest)`",
    ),
    "equinox": (
        "`params, static = eqx.partition(model, eqx.is_inexact_array)`",
        "`eqx.combine(params, static)`",
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
    """Errors of a loss function that takes the parameters for the model itself."""
    try:
        yield
    except (TypeError, AttributeError) as error:
        library = _library(params)
        no_model = ("'State'", "in State", "'NoneType' object is not callable")
        if library is None or not any(text in str(error) for text in no_model):
            raise
        raise ValueError(
            f"`loss_fn` must make the model of its parameters first, got {error}. "
            f"{_MODELS[library][1]} makes it."
        ) from error


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
