"""Files of toys, and a run that is there."""

import pytest

from tests.toys.stored_files import ATTRIBUTES, N_TOYS, make_result, make_toys, write_parts
from toys import storage


@pytest.fixture
def path(tmp_path):
    return tmp_path / "toys.h5"


@pytest.fixture
def joined(path):
    """A complete file of ragged toys."""
    write_parts(path, make_toys("ragged"), make_result())
    storage.join(path, ATTRIBUTES, N_TOYS)
    return path
