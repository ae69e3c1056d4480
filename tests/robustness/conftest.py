"""What every bad input must end with: a result whose toys have a status, or one clear sentence."""

import pytest

from tests.scripts.command_line import script as load_script


@pytest.fixture(scope="session")
def script():
    return load_script


@pytest.fixture(scope="session")
def fuzz():
    return load_script("fuzz")
