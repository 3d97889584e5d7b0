"""Fixtures shared by all tests."""

import os

import jax
import jaxlib.version
import pytest

# Half of the time of compilation is in the emitters of fused operations. XLA ends the
# process at a flag that it does not know: only for versions that are known to have it.
if jaxlib.version.__version_info__ < (0, 11):
    of_the_user = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {of_the_user}"

# Before matplotlib, which not all environments have: pictures go into files.
os.environ["MPLBACKEND"] = "Agg"

# Helpers' assertions explain themselves, too.
pytest.register_assert_rewrite("properties", "sharpness", "three_heads")

# tests/test_sharding.py needs eight devices.
jax.config.update("jax_num_cpu_devices", 8)

# XLA's programs stay the same, the machine code made from them is optimised less.
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True, scope="module")
def _few_programs():
    """Thousands of compiled programs are more than a process can map."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    """A seeded PRNG key."""
    return jax.random.key(0)


@pytest.fixture
def x64():
    """float64 enabled for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def strict():
    """Strict dtype promotion and no implicit rank promotion."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
