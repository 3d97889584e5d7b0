"""The machine and the versions that measured numbers depend on."""

import os
import platform
from importlib.metadata import version

import jax


def machine(*packages: str) -> str:
    """The device, Python and the packages, with their versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} CPU cores "
        f"({platform.machine()}), Python {platform.python_version()}, {versions}."
    )
