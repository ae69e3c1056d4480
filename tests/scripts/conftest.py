"""Where the scripts are run, and a run that is there."""

import pytest

from tests.scripts.command_line import SMALL, call, run_toys


@pytest.fixture
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # a setting of this whole process
    monkeypatch.setattr("toys.xla_cache.use_compilation_cache", lambda: None)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A finished run of 20 toys: (path, bytes)."""
    path = tmp_path_factory.mktemp("finished") / "toys.h5"
    code, _, err = call(run_toys.main, *SMALL, "--out", path)
    assert (code, err) == (0, "")
    return path, path.read_bytes()
