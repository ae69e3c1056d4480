"""A run on a Dask cluster: a task throws, fits and writes one chunk of toys, and the scheduler replaces what dies.

A worker is sent the name of the model and the values of the run, and loads the code of the model itself. Toy k depends
on (seed, k) alone, and a part is written aside and renamed into place: a task that runs twice, because its worker died
or was thought dead, leaves its part once. Results do not travel: the workers and the process that joins the parts share
a disk.

The only module that imports distributed.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import re
import secrets
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kernels.threads import cores
from toys.files import parts_directory, writing
from toys.finding import find_study
from toys.fitting import Compiled, compile_study
from toys.models import STUDIES
from toys.observed import InputError
from toys.options import Options
from toys.run import fit_parts
from toys.study import Study
from toys.xla_cache import use_compilation_cache

__all__ = ["Cluster", "connect"]

INSTALL = "a cluster needs Dask: pip install 'batchfit[cluster]'"
#: Chunks that the scheduler knows of at once: enough for it to see how many workers it could use.
MOST_QUEUED = 1000
CONNECT_SECONDS = 20
WORKERS_SECONDS = 120


class Recipe(NamedTuple):
    """How a worker gets the study: the model, what its source must hash to, and the values of the run."""

    model: str
    digest: str
    truth: tuple[tuple[str, float], ...]
    start: tuple[tuple[str, float], ...]
    fixed: tuple[str, ...]

    @classmethod
    def of(cls, model: str, source: str, study: Study) -> "Recipe":
        model = model if model in STUDIES else str(Path(model).absolute())  # workers may be in another directory
        return cls(model, _digest(source), tuple(study.truth.items()), tuple(study.start.items()), tuple(study.fixed))


# --- in a worker -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _study(recipe: Recipe) -> Study:
    use_compilation_cache()
    study, source = find_study(recipe.model)
    if _digest(source) != recipe.digest:
        raise InputError(
            f"the model {recipe.model} on {socket.gethostname()} is not that of this run: let all workers see the same "
            "files, and start them again after a change of batchfit"
        )
    return dataclasses.replace(study.at(dict(recipe.truth), dict(recipe.start)), fixed=recipe.fixed)


def _compile(recipe: Recipe, options: Options) -> Compiled:
    return compile_study(_study(recipe), dataclasses.replace(options, validate=0))  # who asked validates


def _fit(
    recipe: Recipe, out: Path, options: Options, compiled: Compiled, attributes: Mapping[str, Any], toys: range
) -> None:
    """Write a range of toys as a part."""
    fit_parts(_study(recipe), out, options, compiled, attributes, [toys])


def dask_setup(worker: Any) -> None:
    """Called by Dask at the start of a worker here: Ctrl-C is for the process of the run, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _reads(path: Path, token: str) -> bool:
    try:
        return path.read_text(encoding="utf-8") == token
    except OSError:
        return False


def _digest(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()


# --- in the process of the run -----------------------------------------------------------------------------


class Cluster:
    """Workers of a run (`toys.run.Workers`).

    Parameters
    ----------
    client : distributed.Client
    recipe : Recipe
    """

    def __init__(self, client: Any, recipe: Recipe) -> None:
        self.client, self.recipe = client, recipe

    def compile(self, out: Path, options: Options) -> Compiled:
        """What the first toy tells, on a worker: this process may have no accelerator, or must leave it to the workers.

        Raises InputError if a worker does not see the directory of the output.
        """
        with self._clear_errors():
            self._check_directory(out.absolute())
            return self.client.submit(_compile, self.recipe, options, pure=False).result()

    def fit(
        self,
        out: Path,
        options: Options,
        compiled: Compiled,
        attributes: Mapping[str, Any],
        ranges: Sequence[range],
        advance: Callable[[int], None] = lambda n: None,
    ) -> None:
        """Write each of these ranges of toys as a part of `out`.

        The first error of a task ends the run, as does Ctrl-C. What is complete stays.

        Raises
        ------
        InputError
            If the cluster is lost, or toys kill whatever worker they are given to.
        StorageError, ValueError
            What the task raised.
        """
        from distributed import as_completed

        with writing(parts_directory(out)):
            parts_directory(out).mkdir(exist_ok=True)  # by one process, not by all workers at once
        work = functools.partial(_fit, self.recipe, out.absolute(), options, compiled, attributes)
        waiting = iter(ranges)
        queued: dict[Any, range] = {}

        def submit(toys: range) -> Any:
            future = self.client.submit(work, toys, key=f"toys {toys.start} to {toys.stop - 1}, {secrets.token_hex(8)}")
            queued[future] = toys
            return future

        with self._clear_errors():
            try:
                running = as_completed([submit(toys) for toys in itertools.islice(waiting, MOST_QUEUED)])
                for future in running:
                    # a result is not fetched: where its worker died since, the task would run again for it
                    if future.status != "finished":
                        future.result()
                    advance(len(queued.pop(future)))
                    for toys in itertools.islice(waiting, 1):
                        running.add(submit(toys))
            finally:
                if queued:
                    self.client.cancel(list(queued))
                with contextlib.suppress(OSError):
                    parts_directory(out).rmdir()  # where no part is in it: there is nothing to continue

    def _check_directory(self, out: Path) -> None:
        """Raise InputError unless every worker reads what this process writes beside the output."""
        token = secrets.token_hex(16)
        with tempfile.NamedTemporaryFile("w", dir=out.parent, prefix=f".{out.name}.", encoding="utf-8") as probe:
            probe.write(token)
            probe.flush()
            os.fsync(probe.fileno())
            seen = self.client.run(_reads, Path(probe.name), token)
        blind = sorted(worker for worker, sees in seen.items() if not sees)
        if blind:
            raise InputError(
                f"worker {blind[0]} does not see {out.parent}: name an output on a disk that all workers share"
                + (f" ({len(blind)} of {len(seen)} do not see it)" if len(blind) > 1 else "")
            )

    @contextlib.contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn what Dask says of its own failures into one sentence."""
        from concurrent.futures import CancelledError

        from distributed.comm import CommClosedError
        from distributed.scheduler import KilledWorker

        try:
            yield
        except KilledWorker as error:
            toys = str(error.task).partition(",")[0]
            raise InputError(
                f"{toys} ended the workers that they were given to, probably for want of memory: give each worker "
                "more, or use fewer on each machine, then continue with --resume"
            ) from None
        except (CancelledError, CommClosedError):
            raise InputError(
                "the connection to the Dask scheduler is lost: start the cluster again, then continue with --resume"
            ) from None
        except ModuleNotFoundError as error:
            raise InputError(f"a worker has no package {error.name!r}: install batchfit for all workers") from None


@contextlib.contextmanager
def connect(address: str, model: str, source: str, study: Study, *, device: str = "auto") -> Iterator[Cluster]:
    """The workers of a cluster, for `toys.run.run`.

    Parameters
    ----------
    address : str
        "local:4" for that many processes on this machine, which end with the run, or "tcp://host:8786" of a Dask
        scheduler, whose workers must have batchfit and share the disk of the output.
    model, source : str
        Name or file of the model, and its source text.
    study : Study
        As `toys.finding.prepare` gives it.
    device : str
        With GPUs here, and unless this is "cpu", each process on this machine has one of its own.

    Raises
    ------
    InputError
        If Dask is not installed, the address is none, or there is no scheduler or no worker.
    """
    n_local = _n_local(address)
    try:
        from distributed import Client
    except ImportError:
        raise InputError(INSTALL) from None
    with contextlib.ExitStack() as stack:
        if n_local:
            local = stack.enter_context(_processes(n_local, device))
            client = stack.enter_context(Client(local))
        else:
            try:
                client = stack.enter_context(Client(address, timeout=CONNECT_SECONDS))
            except (OSError, ValueError):  # ValueError for a malformed address
                raise InputError(f"no Dask scheduler answers at {address}: start one with 'dask scheduler'") from None
            try:
                client.wait_for_workers(1, timeout=WORKERS_SECONDS)
            except TimeoutError:
                raise InputError(
                    f"the scheduler at {address} has no workers: start some with 'dask worker {address} --nthreads 1'"
                ) from None
        yield Cluster(client, Recipe.of(model, source, study))


def _n_local(address: str) -> int:
    """Number of processes on this machine, 0 for the address of a scheduler."""
    if match := re.fullmatch(r"local:([1-9]\d{0,3})", address):
        return int(match[1])
    if re.fullmatch(r"(tcp|tls|ws|wss|ucx)://.+", address):
        return 0
    raise InputError(f"a cluster is local:4, for 4 processes here, or tcp://scheduler:8786, got {address!r}")


def _processes(n: int, device: str) -> Any:
    """A scheduler here, and worker processes that share the cores, or have a GPU each."""
    from distributed import Nanny, Scheduler, Security, SpecCluster

    gpus = [] if device == "cpu" else _gpus()
    if gpus and n > len(gpus):
        raise InputError(
            f"local:{n} asks for more workers than there are GPUs: pass local:{len(gpus)}, or --device cpu"
        )
    threads = str(max(1, cores() // n))
    try:
        # whoever can connect to a scheduler can run code: other users of this machine must not
        security = Security.temporary()
    except ImportError:
        raise InputError(INSTALL) from None

    class Impatient(Nanny):
        """Leaves a worker in the middle of a chunk, which is lost anyway, no more than a second to end."""

        async def kill(self, timeout: float = 1.0, reason: str = "nanny-kill") -> None:
            await super().kill(min(timeout, 1.0), reason)

    network = {"host": "127.0.0.1", "protocol": "tls://", "security": security, "dashboard": False}
    network["dashboard_address"] = "127.0.0.1:0"  # where they tell of themselves all the same
    workers = {}
    for k in range(n):
        environment = {"NUMBA_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": gpus[k]} if gpus else {})
        # errors come out of `Cluster`; what a chunk takes is known beforehand: no limit at which a worker is ended
        options = {"nthreads": 1, "memory_limit": 0, "env": environment, "preload": [__name__]}
        workers[k] = {"cls": Impatient, "options": {**network, **options, "silence_logs": logging.CRITICAL}}
    scheduler = {"cls": Scheduler, "options": {**network, "port": 0}}
    return SpecCluster(workers=workers, scheduler=scheduler, security=security, silence_logs=logging.CRITICAL)


def _gpus() -> list[str]:
    """NVIDIA GPUs that this process may use, without a word to them: the workers are to have them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    with contextlib.suppress(OSError):
        return [str(k) for k in range(len(list(Path("/proc/driver/nvidia/gpus").iterdir())))]
    return []
