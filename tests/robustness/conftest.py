"""What every bad input must end with: a result whose toys have a status, or one clear sentence."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).absolute().parents[2] / "scripts"


def load_script(name):
    """A script as a module."""
    path = list(sys.path)
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


@pytest.fixture(scope="session")
def script():
    return load_script


@pytest.fixture(scope="session")
def fuzz():
    return load_script("fuzz")
