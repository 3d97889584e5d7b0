"""Fixtures shared by all tests."""

import os

# Before the backend starts. tests/test_sharding.py needs eight devices; compilation
# takes nearly all the time, half of it in the emitters of fused operations.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_cpu_use_fusion_emitters=false"
)

# Before matplotlib, which not all environments have: pictures go into files.
os.environ["MPLBACKEND"] = "Agg"

import jax
import pytest

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
