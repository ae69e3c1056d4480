"""A run on a Dask cluster of three processes is the run of this process, whatever happens to the workers."""

import dataclasses
import os
import signal

import numpy as np
import pytest

from toys import cluster, storage
from toys.cluster import Cluster, Recipe, connect
from toys.files import StorageError
from toys.finding import find_study
from toys.observed import InputError
from toys.options import Options
from toys.run import run

distributed = pytest.importorskip("distributed")

N_TOYS, CHUNK, N_CHUNKS = 2416, 32, 76  # of which the last is half a chunk
OPTIONS = Options(n_toys=N_TOYS, seed=5, backend="numba", device="cpu", validate=5, chunk=CHUNK)

MODEL = """
import os
import numpy as np
from engine import LeastSquares
from toys import Study

X = np.linspace(0.0, 1.0, 5)


def line(x, a, b):
    return a + b * x


class Sampler:
    names = ("a", "b")

    def __call__(self, key, theta):
        raise AssertionError("`generate` is there")

    def generate(self, theta, *, n_toys, seed, first, backend):
        if first == 640 and WRONG:
            raise RuntimeError("my own mistake")
        noise = [np.random.default_rng((seed, first + k)).normal(size=5) for k in range(n_toys)]
        return X, line(X, *theta) + np.array(noise), np.ones(5)


study = Study(LeastSquares(line), Sampler(), {"a": 1.0, "b": 2.0}, name="line")
WRONG = False
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "line.py"
    path.write_text(MODEL)
    return str(path)


@pytest.fixture(scope="module")
def study(model):
    """At another truth than that of the file, as after a fit of data."""
    return find_study(model)[0].at({"b": 3.0})


@pytest.fixture(scope="module")
def options():
    return dataclasses.replace(OPTIONS, source=MODEL)


@pytest.fixture(scope="module")
def workers(model, study):
    with connect("local:3", model, MODEL, study, device="cpu") as connected:
        yield connected


@pytest.fixture(scope="module")
def whole(study, options, tmp_path_factory):
    """The run of this process."""
    path = tmp_path_factory.mktemp("whole") / "toys.h5"
    run(study, path, options)
    return path


def assert_same_file(left, right):
    for field, array in vars(storage.load(left)).items():
        np.testing.assert_array_equal(array, getattr(storage.load(right), field), err_msg=field)
    np.testing.assert_array_equal(storage.load_toys(left)["y"], storage.load_toys(right)["y"])
    np.testing.assert_array_equal(storage.load_shared(left)["x"], storage.load_shared(right)["x"])
    for name, array in storage.read_validation(left).items():
        np.testing.assert_array_equal(array, storage.read_validation(right)[name], err_msg=name)
    attributes, others = storage.read_attributes(left), storage.read_attributes(right)
    assert {key for key in attributes if attributes[key] != others[key]} <= {"created"}


# --- with workers ------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed(workers, study, options, whole, tmp_path):
    before = set(workers.client.run(os.getpid).values())
    done = []

    def kill_one(n):
        done.append(n)
        if sum(done) > N_TOYS // 4 and len(killed) == 0:
            busy = next(worker for worker, tasks in workers.client.processing().items() if tasks)
            killed.append(workers.client.run(os.getpid, workers=[busy])[busy])
            os.kill(killed[0], signal.SIGKILL)

    killed = []
    out = tmp_path / "toys.h5"
    run(study, out, dataclasses.replace(options, validate=0), advance=kill_one, workers=workers)
    assert sum(done) == N_TOYS + 2 and len(done) == N_CHUNKS + 3  # compilation, what was there before, chunks, joining
    assert killed[0] in before
    workers.client.wait_for_workers(3, timeout=60)
    after = set(workers.client.run(os.getpid).values())
    assert len(after) == 3 and killed[0] not in after
    assert [file.name for file in tmp_path.iterdir()] == ["toys.h5"]
    for field, array in vars(storage.load(out)).items():
        np.testing.assert_array_equal(array, getattr(storage.load(whole), field), err_msg=field)
    np.testing.assert_array_equal(storage.load_toys(out)["y"], storage.load_toys(whole)["y"])


def test_interrupted_run_is_continued_with_what_is_missing(workers, study, options, whole, tmp_path):
    out, done = tmp_path / "toys.h5", []

    def interrupt(n):
        done.append(n)
        if sum(done) > 10 * CHUNK:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, out, options, advance=interrupt, workers=workers)
    assert not out.exists()
    n_there = sum(stop - first for first, stop, _ in storage.complete_parts(out))
    assert n_there >= 10 * CHUNK - CHUNK // 2
    report = run(study, out, dataclasses.replace(options, resume=True), workers=workers)
    # tasks that ran during the interruption may have written theirs, too
    assert n_there <= report.n_resumed < N_TOYS
    assert_same_file(out, whole)


def test_mistake_in_the_model_of_a_worker(workers, options, tmp_path):
    path, source = tmp_path / "wrong.py", MODEL.replace("WRONG = False", "WRONG = True")
    path.write_text(source)
    study = find_study(str(path))[0]
    wrong = Cluster(workers.client, Recipe.of(str(path), source, study))
    out = tmp_path / "toys.h5"
    with pytest.raises(RuntimeError, match="my own mistake"):
        run(study, out, dataclasses.replace(options, source=source), workers=wrong)
    assert all(stop <= 640 or first > 640 for first, stop, _ in storage.complete_parts(out))
    path.write_text(source + "\n")
    again = Cluster(workers.client, Recipe.of(str(path), MODEL, study))
    with pytest.raises(InputError, match=r"wrong.py on .* is not that of this run: let all workers see the same"):
        run(study, tmp_path / "others.h5", options, workers=again)


def test_a_worker_has_the_values_of_the_run(model, study):
    held = dataclasses.replace(study.at({"a": 2.0}, {"a": 1.5, "b": 4.0}), fixed=("b",))
    there = cluster._study(Recipe.of(model, MODEL, held))
    assert (there.truth, there.start, there.fixed) == (held.truth, held.start, ("b",))


def test_workers_must_see_the_output(workers, study, options, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_reads", lambda path, token: False)
    with pytest.raises(
        InputError, match=rf"worker tls://.* does not see {tmp_path}: .* all workers share \(3 of 3 do not"
    ):
        run(study, tmp_path / "toys.h5", options, workers=workers)
    assert list(tmp_path.iterdir()) == []
    assert not cluster._reads(tmp_path / "none", "token")


def test_nobody_else_runs_code_on_the_workers(workers):
    """Who can speak to a scheduler can run code as its user: it takes certificates that are in its memory only."""
    address = workers.client.scheduler.address
    assert address.startswith("tls://127.0.0.1:")
    with pytest.raises((OSError, TypeError)):
        distributed.Client(address.replace("tls", "tcp"), timeout=0.5)


# --- without -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["local", "local:0", "local:-1", "local:two", "host:8786", "", "http://host:1"])
def test_address(study, address):
    with (
        pytest.raises(InputError, match=r"a cluster is local:4, .*, or tcp://scheduler:8786, got '"),
        connect(address, "line.py", MODEL, study),
    ):
        pass


def test_no_scheduler(study, monkeypatch):
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 0.2)
    with (
        pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127.0.0.1:1: start one with 'dask sch"),
        connect("tcp://127.0.0.1:1", "line.py", MODEL, study),
    ):
        pass


def test_dask_is_an_extra(study, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with (
        pytest.raises(InputError, match=r"a cluster needs Dask: pip install 'batchfit\[cluster\]'"),
        connect("local:2", "line.py", MODEL, study),
    ):
        pass


def test_one_worker_for_each_gpu(study, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert cluster._gpus() == ["3", "5"]
    with (
        pytest.raises(InputError, match="local:3 asks for more workers than there are GPUs: pass local:2, or --device"),
        connect("local:3", "line.py", MODEL, study),
    ):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cluster._gpus() == []


class Failing:
    """A client whose tasks fail as Dask says it."""

    def __init__(self, error):
        self.error = error

    def run(self, *arguments):
        return {}

    def submit(self, *arguments, **options):
        raise self.error


FAILURES = [
    (lambda: distributed.scheduler.KilledWorker("toys 0 to 31, 12ab", None, 3), "toys 0 to 31 ended the workers that"),
    (lambda: distributed.client.FutureCancelledError("toys 0 to 31", "x"), "the connection to the Dask scheduler is"),
    (lambda: distributed.comm.CommClosedError("in tcp"), "the connection to the Dask scheduler is lost: start"),
    (lambda: ModuleNotFoundError("no", name="toys"), "a worker has no package 'toys': install batchfit for all"),
    (lambda: StorageError("its disk is full"), "its disk is full"),
]


@pytest.mark.parametrize("error, words", FAILURES)
def test_failures_of_dask_in_one_sentence(study, options, tmp_path, error, words):
    with pytest.raises((InputError, StorageError), match=f"^{words}"):
        run(study, tmp_path / "toys.h5", options, workers=Cluster(Failing(error()), Recipe.of("line", "", study)))
    with pytest.raises((InputError, StorageError), match=f"^{words}"):
        Cluster(Failing(error()), Recipe.of("line", "", study)).fit(tmp_path / "toys.h5", options, None, {}, [range(9)])
    assert list(tmp_path.iterdir()) == []
