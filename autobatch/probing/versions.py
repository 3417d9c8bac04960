"""Versions of what a measurement depends on."""

from __future__ import annotations

import platform
from importlib import metadata

_PACKAGES = ("autobatch", "torch", "torchtune", "torchao", "bitsandbytes")


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that are installed, without importing them."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
