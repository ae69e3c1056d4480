"""What the command lines share: types of arguments, exit codes, and errors in one line. Nothing heavy is imported."""

import argparse
import contextlib
import gc
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from stopping import Terminated, stoppable

if TYPE_CHECKING:
    from toys.study import Study

DONE, DOUBTFUL, WRONG_INPUT, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
MOST_POINTS = 1000

gc.set_threshold(50_000)  # numba's compilation makes many objects, and looking for cycles took a tenth of its time


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {one_line(message)}; --help shows all arguments\n")


def command_line(parser: Parser, argv: Sequence[str] | None) -> str:
    """The command with its arguments: those given, or the process's."""
    return " ".join([parser.prog, *(sys.argv[1:] if argv is None else argv)])


def refuse_with_file(parser: Parser, args: argparse.Namespace, names: Sequence[str]) -> None:
    """End with an error if toys are read from a file, and an argument is for those that are thrown."""
    given = [f"--{name}" for name in names if getattr(args, name) not in (None, [])]
    if args.file and given:
        parser.error(f"{given[0]} goes with toys that are thrown, not with those of a file")


def study_to_throw(args: argparse.Namespace, say: Callable[[str], None]) -> "Study":
    """The study that `add_study` asks for."""
    from toys.finding import prepare

    values: dict[str, Any] = {name: dict(getattr(args, name)) for name in ("truth", "start", "fixed")}
    machine = {"backend": args.backend, "device": args.device}
    return prepare(args.model or "peak", data=[], columns=[], say=say, **values, **machine)[0]


def one_line(text: str) -> str:
    """A sentence as it is told, whatever a name or a path in it holds."""
    return " ".join(text.splitlines())


def positive(text: str) -> int:
    value = natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def natural(text: str) -> int:
    """A whole number, also as 1e4."""
    try:
        value = int(text)
    except ValueError:
        wrong = argparse.ArgumentTypeError(f"must be a whole number, got {text!r}")
        with contextlib.suppress(ValueError):
            rounded = float(text)
            if abs(rounded) < 2**53 and rounded.is_integer():
                return natural(str(int(rounded)))
        raise wrong from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a finite number, got {text!r}")
    return value


def level(text: str) -> float:
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a probability between 0 and 1, got {text}")
    return value


def assignment(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        found = number(value)
    except argparse.ArgumentTypeError:
        found = math.nan
    if not equals or not name or math.isnan(found):
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE with a finite number, got {text!r}")
    return name, found


def holding(text: str) -> tuple[str, float | None]:
    """NAME, or NAME=VALUE."""
    if text and "=" not in text:
        return text, None
    try:
        return assignment(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"must be NAME or NAME=VALUE with a finite number, got {text!r}") from None


def scan(text: str) -> tuple[str, list[float]]:
    """NAME=START:STOP:STEP with both ends, or NAME=A,B,C."""
    name, _, values = text.partition("=")
    wrong = argparse.ArgumentTypeError(f"must be NAME=START:STOP:STEP or NAME=A,B,C with finite numbers, got {text!r}")
    try:
        if ":" not in values:
            points = [number(value) for value in values.split(",")]
        else:
            start, stop, step = map(number, values.split(":"))
            n = (stop - start) / step if step else -1.0
            if not 0 <= n < MOST_POINTS:
                raise wrong
            # the last point is there in spite of rounding, as 0.3 of 0:0.3:0.1
            points = [start + k * step for k in range(math.floor(n * (1 + 1e-12) + 1e-9) + 1)]
    except (ValueError, argparse.ArgumentTypeError):
        raise wrong from None
    if not name or len(set(points)) < len(points) or len(points) > MOST_POINTS:
        raise wrong
    return name, points


def add_study(parser: argparse.ArgumentParser, n: int) -> None:
    """Arguments of toys that are thrown here. Their defaults are None, so that what is given can be told."""
    parser.add_argument(
        "--model",
        help="a ready-made model, a file my_study.py, or a HistFactory workspace.json[:measurement] (default: peak, or "
        "the file's)",
    )
    parser.add_argument("--n", type=positive, metavar="N", help=f"number of toys (default: {n})")
    parser.add_argument("--seed", type=natural, help="toy k depends on (seed, k) alone (default: 1)")
    add_values(parser)
    add_machine(parser)


def add_values(parser: argparse.ArgumentParser) -> None:
    for name, of, metavar, what in (
        ("truth", assignment, "NAME=VALUE", "true values of the toys"),
        ("start", assignment, "NAME=VALUE", "start values of the fits (default: the truth)"),
        ("fixed", holding, "NAME[=VALUE]", "parameters that the fits hold, at their start values or at those given"),
    ):
        parser.add_argument(f"--{name}", nargs="+", action="extend", type=of, default=[], metavar=metavar, help=what)


def add_machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="default: auto")
    parser.add_argument("--backend", choices=("auto", "numba", "jax"), default="auto", help="default: auto")


def add_output(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--out", default=out, help=f"directory of report, tables and figures (default: {out})")
    parser.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def guarded(prog: str, args: argparse.Namespace, work: Callable[[], int], kept: Callable[[], str]) -> int:
    """Do the work of a script: its exit code, with what the user did wrong told in one line.

    Parameters
    ----------
    prog : str
    args : Namespace
        With `model`.
    work : callable
    kept : callable
        Says after Ctrl-C and SIGTERM what is there.
    """

    def stopped() -> str:
        return f"stopped: {kept()}"

    with stoppable(stopped):
        try:
            return _worked(prog, args, work)
        except KeyboardInterrupt as error:
            print(f"\n{stopped()}", file=sys.stderr)
            return TERMINATED if isinstance(error, Terminated) else INTERRUPTED


def _worked(prog: str, args: argparse.Namespace, work: Callable[[], int]) -> int:
    def fail(sentence: str) -> int:
        print(f"{prog}: {one_line(sentence)}", file=sys.stderr)
        return WRONG_INPUT

    if getattr(args, "device", "") in ("gpu", "tpu") and not getattr(args, "cluster", None):
        with contextlib.suppress(ImportError):
            open_early(args.device)
    if wrong := wrong_import():
        return fail(wrong)
    from toys.figures import FigureError
    from toys.files import StorageError
    from toys.finding import explain
    from toys.memory import is_used_up
    from toys.observed import InputError
    from toys.xla_cache import use_compilation_cache

    use_compilation_cache()
    try:
        return work()
    except (InputError, StorageError, FigureError) as error:
        return fail(str(error))
    except Exception as error:
        if is_used_up(error):
            return fail(
                "there is no more memory: free some, or pass a smaller --chunk or --n; what is complete is kept"
            )
        sentence = explain(error, args.model or "")
        if sentence is None and not isinstance(error, ValueError | TypeError | NotImplementedError | OSError):
            raise
        return fail(sentence or str(error))


def wrong_import() -> str:
    """Why batchfit cannot be imported; empty if it can."""
    try:
        import toys
    except ImportError as error:
        install = ": install the project first, with pip install -e . in its folder"
        return f"{error}{install if isinstance(error, ModuleNotFoundError) else ''}"
    if getattr(toys, "BATCHFIT", None) is None:
        place = next(iter(getattr(toys, "__path__", [toys.__file__])))
        return f"another package named 'toys' at {place} hides batchfit's: use another environment"
    return ""


def open_early(device: str) -> threading.Thread:
    """A thread in which JAX opens an accelerator while everything else is imported: either takes 2.3 s on an H200."""
    import jax

    def work() -> None:
        # who asks for the device later is told what is wrong with it
        with contextlib.suppress(Exception):
            jax.device_put(0.0, jax.devices(device)[0]).block_until_ready()

    thread = threading.Thread(target=work, name="open the device")
    thread.start()
    return thread


def leave(exit_code: int) -> NoReturn:
    """End the process, whatever its threads are doing: nothing that they do is needed any more.

    What XLA was doing in them can bring the interpreter down on its way out, and a driver that hangs would keep it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(exit_code)
