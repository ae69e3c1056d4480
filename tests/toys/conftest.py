"""Files of toys, and a run that is there."""

import dataclasses

import pytest

from tests.toys.small_runs import CHUNK, OPTIONS
from tests.toys.stored_files import ATTRIBUTES, N_TOYS, make_result, make_toys, write_parts
from toys import memory, storage
from toys.models import peak
from toys.run import run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "toys.h5"


@pytest.fixture
def joined(path):
    """A complete file of ragged toys."""
    write_parts(path, make_toys("ragged"), make_result())
    storage.join(path, ATTRIBUTES, N_TOYS)
    return path


@pytest.fixture(scope="module")
def study():
    """The peak with 400 events per toy: quick to fit, and with the kernels that all tests share."""
    return peak().at({"ns": 100.0, "nb": 300.0})


@pytest.fixture
def chunks_of_8(monkeypatch):
    monkeypatch.setattr(memory, "LARGEST_CHUNK", CHUNK)


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """An uninterrupted run in one chunk, with validation."""
    path = tmp_path_factory.mktemp("whole") / "toys.h5"
    report = run(study, path, dataclasses.replace(OPTIONS, validate=5))
    return path, report
