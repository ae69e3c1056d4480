"""The machine in words, and what is installed."""

import importlib.metadata
import os
import platform
from pathlib import Path

__all__ = ["PACKAGES", "cpu_name", "load_average", "versions"]

PACKAGES = (
    "batchfit", "numpy", "numba", "llvmlite", "jax", "jaxlib", "optax", "scipy", "iminuit", "numba-stats", "pyhf",
    "everwillow", "nextstat",
)  # fmt: skip


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    """Of Python and of the packages; None for those that are missing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def load_average() -> float | None:
    """Of the last minute, where the system tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
