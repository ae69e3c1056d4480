import os

from kernels.threads import cores


def test_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert cores() == 3


def test_cores_where_the_system_does_not_tell_which(monkeypatch):
    """As macOS."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == os.cpu_count()
