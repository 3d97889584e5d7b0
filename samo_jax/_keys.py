"""`raw_key`: PRNG keys in states, as arrays that every library can save."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from samo_jax._checks import as_key


def raw_key(key: jax.Array | int) -> jax.Array:
    """The data of a key, uint32, for a state: a copy, which may be donated."""
    key = as_key(key)
    return jnp.array(jax.random.key_data(key)) if _is_typed(key) else key


def typed_key(data: jax.Array | None, key: jax.Array | int) -> jax.Array:
    """The key of the data in a state, which `raw_key` made of a key like `key`."""
    if data is None or data.dtype != jnp.uint32:
        raise ValueError(
            "`state` must hold PRNG keys as uint32 data, got "
            f"{getattr(data, 'dtype', data)}. Convert typed keys, of a checkpoint by "
            "an older version, once: `jax.random.key_data(key)`."
        )
    impl = jax.random.key_impl(key) if _is_typed(key) else None
    return jax.random.wrap_key_data(cast(jax.Array, data), impl=impl)


def _is_typed(key: Any) -> bool:
    dtype = getattr(key, "dtype", type(key))
    return jnp.issubdtype(dtype, jax.dtypes.prng_key)
