"""The final file that grows while the run lasts equals the one that is joined in the end, or is given up."""

import contextlib
import errno
import os
import threading
import weakref

import numpy as np
import pytest

from engine.data import Ragged
from engine.minos import MinosResult
from engine.result import FitResult
from toys import hdf5, joining, storage
from toys.files import Disk, StorageError, identity, parts_directory
from toys.joining import Growing
from toys.packing import Arrays
from toys.parts import Fitted
from toys.writer import Writer

N_TOYS = 11
BOUNDS = [(0, 4), (4, 9), (9, 11)]
ATTRIBUTES = {"model": "line", "seed": 3}
LENGTHS = np.array([0, 3, 1, 6, 0, 0, 0, 0, 0, 7, 0])
RNG = np.random.default_rng(2)


def ragged(d=None):
    shape = LENGTHS.sum() if d is None else (d, LENGTHS.sum())
    return Ragged(RNG.normal(size=shape), np.concatenate([[0], np.cumsum(LENGTHS)]))


TOYS = {
    "ragged": {"values": ragged(), "measured": RNG.normal(size=(N_TOYS, 2))},
    "weights": {"values": ragged(), "weights": ragged()},
    "no events": {"values": Ragged(np.empty(0), np.zeros(N_TOYS + 1, int))},
    "float32": {"y": RNG.normal(size=(N_TOYS, 6)).astype(np.float32), "measured": np.empty((N_TOYS, 0))},
    "sum": {"part0/values": ragged(2), "part1/counts": RNG.poisson(3.0, (N_TOYS, 20))},
}
SHARED = {"part3/x": np.linspace(0.0, 1.0, 6), "part3/n": np.arange(3)}


def make_result(n_toys=N_TOYS):
    rng = np.random.default_rng(0)
    flags = {name: rng.random(n_toys) < 0.5 for name in ("valid", "has_posdef_covar", "rescued")}
    return FitResult(
        values=rng.normal(size=(n_toys, 2)),
        errors=np.full((n_toys, 2), np.nan),
        covariance=rng.random((n_toys, 2, 2)),
        fval=rng.normal(size=n_toys),
        edm=rng.random(n_toys),
        status=rng.integers(0, 7, n_toys).astype(np.int8),
        nfev=rng.integers(0, 2**40, n_toys),
        at_limit=rng.random((n_toys, 2)) < 0.5,
        names=("slope", "n"),
        errordef=0.5,
        backend="numba",
        device="cpu",
        **flags,
    )


RESULT = make_result()


def write(path, toys, first, stop, told=lambda part: None, *, result=RESULT, minos=None, save_toys=True):
    rows = {name: array[first:stop] for name, array in toys.items()}
    return storage.write_part(path, first, rows, result[first:stop], ATTRIBUTES, SHARED, minos, save_toys, told)


def contents(path):
    """All arrays and attributes of a file, in the order of their names."""
    found = {}

    def visit(name, item):
        found[name] = sorted((key, np.asarray(value).tolist()) for key, value in item.attrs.items())
        if isinstance(item, hdf5.Dataset):
            found[name] += [(item.dtype.str, item.shape, item[...].tobytes())]

    with hdf5.open_hdf5(path) as file:
        file.visititems(visit)
        found["/"] = sorted((key, np.asarray(value).tolist()) for key, value in file.attrs.items())
    return found


@pytest.fixture
def path(tmp_path):
    return tmp_path / "toys.h5"


def joined(path, toys, observed=None, **options):
    """What `join` makes of the same toys."""
    other = path.with_name("joined.h5")
    for bounds in BOUNDS:
        write(other, toys, *bounds, **options)
    storage.join(other, ATTRIBUTES, N_TOYS, {"toy": np.arange(2)}, observed=observed)
    return contents(other)


def assert_given_up(growing, path):
    assert growing.given_up and not growing.complete(ATTRIBUTES)
    assert not path.exists() and not list(parts_directory(path).glob("*.tmp.*"))


def test_the_joined_file_has_rows_of_every_part(path):
    """So that the comparisons below compare with what was put in."""
    joined(path, TOYS["ragged"])
    stored = storage.load_toys(path.with_name("joined.h5"))
    np.testing.assert_array_equal(stored["values"].values, TOYS["ragged"]["values"].values)
    np.testing.assert_array_equal(stored["values"].offsets, TOYS["ragged"]["values"].offsets)
    np.testing.assert_array_equal(storage.load(path.with_name("joined.h5")).fval, RESULT.fval)


@pytest.mark.parametrize("kind", TOYS)
@pytest.mark.parametrize("there", [[], [0, 2], [1]])
def test_a_grown_file_equals_a_joined_one(path, kind, there):
    toys = TOYS[kind]
    files = [(*BOUNDS[k], write(path, toys, *BOUNDS[k])) for k in there]
    observed = Fitted(RESULT[:1])
    growing = Growing(path, range(N_TOYS), files, observed=observed)
    for k in {0, 1, 2} - set(there):
        write(path, toys, *BOUNDS[k], growing.add)
        assert not growing.given_up and not path.exists()
    assert growing.complete(ATTRIBUTES, {"toy": np.arange(2)})
    assert contents(path) == joined(path, toys, observed)
    np.testing.assert_array_equal(storage.load_observed(path).values, RESULT.values[:1])
    assert len(storage.complete_parts(path)) == 3 and len(os.listdir(parts_directory(path))) == 3
    growing.give_up()  # has its name, and keeps it
    assert path.exists()


def test_intervals_and_checksums_of_toys_that_are_not_kept(path):
    arrays = {name: RNG.random((N_TOYS, 1)) for name in ("lower", "upper")}
    flags = {name: np.ones((N_TOYS, 1), bool) for name in ("valid", "at_lower_limit", "at_upper_limit", "new_minimum")}
    nfev = np.ones((N_TOYS, 1), int)

    def intervals(first, stop):
        some = {name: array[first:stop] for name, array in (arrays | flags | {"nfev": nfev}).items()}
        return MinosResult(names=("n",), result=RESULT[first:stop], **some)

    growing = Growing(path, range(N_TOYS))
    for bounds in BOUNDS:
        write(path, TOYS["ragged"], *bounds, growing.add, minos=intervals(*bounds), save_toys=False)
    assert growing.complete(ATTRIBUTES)
    np.testing.assert_array_equal(storage.load_minos(path).lower[:, 1:], arrays["lower"])
    with pytest.raises(StorageError, match="holds the checksums of its toys alone"):
        storage.load_toys(path)
    joined(path, TOYS["ragged"])
    np.testing.assert_array_equal(
        storage.read_checksums(path), storage.read_checksums(path.with_name("joined.h5")), strict=True
    )


def test_rows_from_a_file_that_is_extended(path):
    write(path, TOYS["ragged"], 0, 4)
    storage.join(path, ATTRIBUTES, 4)
    before = path.read_bytes()
    growing = Growing(path, range(N_TOYS), [(0, 4, path)], identity(path))
    for bounds in BOUNDS[1:]:
        write(path, TOYS["ragged"], *bounds, growing.add)
    assert path.read_bytes() == before
    assert growing.complete(ATTRIBUTES, {"toy": np.arange(2)})
    assert contents(path) == joined(path, TOYS["ragged"])


@pytest.mark.parametrize("error", [AttributeError, OSError])
def test_a_system_that_cannot_be_told_to_hurry(path, monkeypatch, error):
    def unknown(*arguments):
        raise error

    if error is AttributeError:
        monkeypatch.delattr(os, "posix_fadvise")
    else:
        monkeypatch.setattr(os, "posix_fadvise", unknown)
    growing = Growing(path, range(N_TOYS))
    for bounds in BOUNDS:
        write(path, TOYS["ragged"], *bounds, growing.add)
    assert growing.complete(ATTRIBUTES) and len(storage.load(path)) == N_TOYS


# --- given up ----------------------------------------------------------------------------------------------


def test_a_part_that_is_damaged(path):
    part = write(path, TOYS["ragged"], *BOUNDS[0])
    damaged = bytearray(part.read_bytes())
    damaged[damaged.index(TOYS["ragged"]["measured"][2].tobytes())] ^= 1
    part.write_bytes(damaged)
    growing = Growing(path, range(N_TOYS), [(*BOUNDS[0], part)])
    for bounds in BOUNDS[1:]:
        write(path, TOYS["ragged"], *bounds, growing.add)
    assert_given_up(growing, path)
    with pytest.raises(StorageError, match="is damaged: delete it"):
        storage.join(path, ATTRIBUTES, N_TOYS, grown=growing.complete)


@pytest.mark.parametrize("n_written", [0, 1, 5, 20])
def test_a_disk_that_is_full(path, monkeypatch, n_written):
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 48)
    growing, whole = Growing(path, range(N_TOYS)), joined(path, TOYS["ragged"])
    room = [n_written]

    def has_room(disk):
        if disk is growing.disk:
            room[0] -= 1
        return disk is not growing.disk or room[0] >= 0

    written = Disk.write
    monkeypatch.setattr(
        Disk, "write", lambda disk, data: written(disk, data) if has_room(disk) else no_space(disk, data)
    )
    for bounds in BOUNDS:
        write(path, TOYS["ragged"], *bounds, growing.add)
    growing.complete(ATTRIBUTES)
    assert room[0] < 0
    assert_given_up(growing, path)
    monkeypatch.undo()
    storage.join(path, ATTRIBUTES, N_TOYS, {"toy": np.arange(2)}, grown=growing.complete)
    assert contents(path) == whole


def no_space(disk, data):
    disk.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return len(data)


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_file_that_cannot_get_its_name(path, monkeypatch, place):
    growing = Growing(path, range(N_TOYS))
    for bounds in BOUNDS:
        write(path, TOYS["ragged"], *bounds, growing.add)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, place, full)
        assert not growing.complete(ATTRIBUTES)
    assert_given_up(growing, path)
    assert len(storage.complete_parts(path)) == 3


def test_another_program_wrote_it(path):
    growing = Growing(path, range(N_TOYS), found=identity(path))
    for bounds in BOUNDS:
        write(path, TOYS["ragged"], *bounds, growing.add)
    path.write_bytes(b"mine")
    with pytest.raises(StorageError, match="was changed by another program meanwhile"):
        storage.join(path, ATTRIBUTES, N_TOYS, found=(), grown=growing.complete)
    assert path.read_bytes() == b"mine" and growing.given_up


def test_parts_that_do_not_follow_or_differ(path):
    growing = Growing(path, range(N_TOYS))
    for bounds in BOUNDS[:2]:
        write(path, TOYS["ragged"], *bounds, growing.add)
    assert not growing.given_up and not growing.complete(ATTRIBUTES)  # the last is missing
    assert_given_up(growing, path)
    for toys, first in ((TOYS["weights"], 4), (TOYS["ragged"], 9)):
        growing = Growing(path, range(N_TOYS))
        write(path, TOYS["ragged"], *BOUNDS[0], growing.add)
        write(path, toys, first, first + 2, growing.add)
        assert_given_up(growing, path)


def test_stopped_from_another_thread(path):
    growing = Growing(path, range(N_TOYS))
    write(path, TOYS["ragged"], *BOUNDS[0], growing.add)
    (aside,) = parts_directory(path).glob("*.tmp.*")
    stopping = threading.Thread(target=growing.stop)
    stopping.start()
    stopping.join()
    assert aside.exists()  # until the thread that writes it comes by
    write(path, TOYS["ragged"], *BOUNDS[1], growing.add)
    assert_given_up(growing, path)


def test_given_up_by_another_thread_while_it_is_opened(path, monkeypatch):
    """What is incomplete never gets the name, nor takes the place of a file that is complete."""
    for bounds in BOUNDS[:2]:
        write(path, TOYS["ragged"], *bounds)
    storage.join(path, ATTRIBUTES, 9)
    before, new_hdf5 = path.read_bytes(), hdf5.new_hdf5
    growing = Growing(path, range(N_TOYS), [(0, 4, path)], identity(path))

    @contextlib.contextmanager
    def opening(*arguments, **options):
        with new_hdf5(*arguments, **options) as opened:
            growing.stop()
            yield opened

    parts = []
    for bounds in BOUNDS[1:]:
        write(path, TOYS["ragged"], *bounds, parts.append)
    monkeypatch.setattr(hdf5, "new_hdf5", opening)
    growing.add(parts[0])
    monkeypatch.setattr(hdf5, "new_hdf5", new_hdf5)
    growing.add(parts[1])
    growing.give_up()
    assert growing.given_up and not growing.complete(ATTRIBUTES)
    assert path.read_bytes() == before and not list(parts_directory(path).glob("*.tmp.*"))


# --- the threads that write --------------------------------------------------------------------------------


def arrays_of(first, stop):
    return first, Arrays({name: array[first:stop] for name, array in TOYS["ragged"].items()}, {}), RESULT[first:stop]


def put_all(writer, bounds=BOUNDS):
    for first, stop in bounds:
        writer.put(*arrays_of(first, stop), None)
    writer.wait()


def watched(monkeypatch, before, after=lambda first: None):
    """Let the writer do something before and after it writes the part with this first toy."""
    write_part = storage.write_part

    def watched(path, first, *arguments):
        before(first)
        write_part(path, first, *arguments)
        after(first)

    monkeypatch.setattr(storage, "write_part", watched)


def test_a_disk_that_takes_long_keeps_no_other_part_waiting(path, monkeypatch):
    """The parts are written together, and added in the order of their toys whichever is there first."""
    last, seen = threading.Event(), []
    watched(
        monkeypatch,
        before=lambda first: first or seen.append(last.wait(60)),
        after=lambda first: last.set() if first == 9 else None,
    )
    with Writer(path, ATTRIBUTES, True, Growing(path, range(N_TOYS))) as writer:
        put_all(writer)
        assert writer.complete(ATTRIBUTES, None)
        assert seen == [True]
    np.testing.assert_array_equal(storage.load_toys(path)["values"].values, TOYS["ragged"]["values"].values)
    np.testing.assert_array_equal(storage.load(path).fval, RESULT.fval)


def test_a_writer_is_busy_while_it_holds_as_many_parts_as_it_may(path, monkeypatch):
    go = threading.Event()
    watched(monkeypatch, lambda first: go.wait(60))
    monkeypatch.setattr("toys.writer.AT_ONCE", 2)
    with Writer(path, ATTRIBUTES, True) as writer:
        writer.put(*arrays_of(0, 4), None)
        assert not writer.busy
        writer.put(*arrays_of(4, 9), None)
        assert writer.busy
        go.set()
        writer.wait()
        assert not writer.busy and len(storage.complete_parts(path)) == 2


def test_parts_go_before_the_growing_file(path, monkeypatch):
    """Where parts cannot be written, what has grown is removed, and they get its place."""
    refused, both = [], threading.Barrier(2)
    added, add = threading.Event(), Growing.add
    monkeypatch.setattr(Growing, "add", lambda *arguments: (add(*arguments), added.set()))

    def full(first):
        if first and len(refused) < 2:
            assert added.wait(60)
            refused.append(len(list(parts_directory(path).glob("toys.h5.tmp.*"))))
            both.wait(60)
            raise StorageError("its disk is full")
        assert not first or not list(parts_directory(path).glob("toys.h5.tmp.*"))

    watched(monkeypatch, full)
    with Writer(path, ATTRIBUTES, True, Growing(path, range(N_TOYS))) as writer:
        put_all(writer)
        assert not writer.complete(ATTRIBUTES, None)
    assert refused == [1, 1] and len(storage.complete_parts(path)) == 3


def test_ctrl_c_comes_before_a_part_that_cannot_be_written(path, monkeypatch):
    def full(*arguments):
        raise StorageError("its disk is full")

    monkeypatch.setattr(storage, "write_part", full)
    with pytest.raises(KeyboardInterrupt), Writer(path, ATTRIBUTES, True) as writer:
        writer.put(*arrays_of(*BOUNDS[0]), None)
        raise KeyboardInterrupt


def test_a_part_that_cannot_be_written_at_all(path, monkeypatch):
    def full(*arguments):
        raise StorageError("its disk is full")

    monkeypatch.setattr(storage, "write_part", full)
    growing = Growing(path, range(N_TOYS))
    with pytest.raises(StorageError, match="its disk is full"), Writer(path, ATTRIBUTES, True, growing) as writer:
        writer.put(*arrays_of(*BOUNDS[0]), None)


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_what_has_grown_is_removed_at_the_end(path, error):
    try:
        with Writer(path, ATTRIBUTES, True, Growing(path, range(N_TOYS))) as writer:
            put_all(writer, BOUNDS[:2])
            if error:
                raise error
    except KeyboardInterrupt:
        pass
    assert [part[:2] for part in storage.complete_parts(path)] == BOUNDS[:2]
    assert len(os.listdir(parts_directory(path))) == 2 and not path.exists()


@pytest.mark.parametrize("most", [1, 2])
def test_memory_is_that_of_the_parts_that_are_written_together(path, monkeypatch, most):
    growing, alive = Growing(path, range(N_TOYS)), []
    monkeypatch.setattr("toys.writer.AT_ONCE", most)
    with Writer(path, ATTRIBUTES, True, growing) as writer:
        for first, stop in BOUNDS:
            events = np.ones((stop - first, 3))
            alive.append(weakref.finalize(events, lambda: None))
            writer.put(first, Arrays({"y": events}, {}), RESULT[first:stop], None)
            del events
            assert sum(one.alive for one in alive) <= most


def test_joining_is_not_needed(path, monkeypatch):
    monkeypatch.setattr(joining, "join_files", None)
    with Writer(path, ATTRIBUTES, True, Growing(path, range(N_TOYS))) as writer:
        put_all(writer)
        storage.join(path, ATTRIBUTES, N_TOYS, grown=writer.complete)
    assert len(storage.load(path)) == N_TOYS and os.listdir(path.parent) == ["toys.h5"]
