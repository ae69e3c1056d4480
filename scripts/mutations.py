"""Valid files of every kind, and the random damage that the fuzzer does to them."""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

__all__ = ["MODEL", "OURS", "VALUES", "Input", "draw", "originals", "run_small"]

#: Files of a run; all others hold observed data.
OURS = ("events", "counts", "parts")
MODEL = "model.py"
VALUES = np.round(np.random.default_rng(5).uniform(1.0, 9.0, 400), 6)
N_TOYS = 24

_MODEL = """
from engine import ExtendedUnbinnedNLL, NormalConstraint
from kernels import truncnorm
from toys import Component, ConstraintValues, ExtendedMixture, Simultaneous, Study


def peak(x, n, mu):
    return n, n * truncnorm.pdf(x, 1.0, 9.0, mu, 1.0)


cost = ExtendedUnbinnedNLL(peak) + NormalConstraint("mu", 5.0, 0.5)
events = ExtendedMixture(("n", "mu"), (Component("n", truncnorm.ppf, (1.0, 9.0, "mu", 1.0)),))
study = Study(cost=cost, sampler=Simultaneous(cost, (events, ConstraintValues(cost.costs[1]))),
              truth={"n": 30.0, "mu": 5.0}, limits={"n": (0.0, None)}, observable=(1.0, 9.0), name="fuzzed")
"""
_COUNTING = """
import jax.numpy as jnp
from engine import PoissonNLL
from toys import PoissonCounts, Study

cost = PoissonNLL(lambda a, b: jnp.stack([a + b, a - b, 2.0 * a]))
study = Study(cost=cost, sampler=PoissonCounts.of(cost), truth={"a": 9.0, "b": 1.0}, name="counted")
"""


class Input(NamedTuple):
    """A damaged file.

    Attributes
    ----------
    name : str
        The valid file that it was.
    path : Path
    told : str
        What was done to it.
    same : bool
        Whether only what the valid file holds may be read: the damage cannot pass for other data.
    column : str or None
    slow : bool
        Whether figure and report are drawn, too.
    """

    name: str
    path: Path
    told: str
    same: bool
    column: str | None = None
    slow: bool = False


def run_small(path: Path, model: str = MODEL, *, stop: bool = False, **options: bool) -> None:
    """A run of chunks of 8 toys, whose first part alone is written if it is stopped."""
    import toys.run
    from toys.finding import find_study

    def advance(n: int) -> None:
        if stop and len(list(path.parent.glob("*.parts/toys_*.h5"))):
            raise KeyboardInterrupt

    source = path.parent / model
    study, text = find_study(str(source if source.exists() else path.parent.parent / "originals" / model))
    arguments = {
        "n_toys": N_TOYS,
        "chunk": 8,
        "device": "cpu",
        "backend": "numba",
        "validate": 2,
        "minos": model == MODEL,
    }
    with contextlib.suppress(KeyboardInterrupt):
        toys.run.run(study, path, toys.run.Options(**arguments, source=text, **options), advance=advance)


def originals(directory: Path) -> dict[str, Path]:
    """Make the valid files."""
    directory.mkdir()
    (directory / MODEL).write_text(_MODEL)
    (directory / "counting.py").write_text(_COUNTING)
    files = {"events": directory / "events.h5", "counts": directory / "counts.h5", "parts": directory / "parts.h5"}
    run_small(files["events"])
    run_small(files["counts"], "counting.py")
    (directory / "stopped").mkdir()
    run_small(directory / "stopped" / "toys.h5", f"../{MODEL}", stop=True)
    shutil.copy(files["events"], files["parts"])
    files |= {"csv": directory / "x.csv", "table": directory / "table.csv", "npy": directory / "x.npy"}
    files["csv"].write_text("".join(f"{value!r}\n" for value in VALUES.tolist()))
    rows = "".join(f"{k},{value!r},a\n" for k, value in enumerate(VALUES.tolist()))
    files["table"].write_text(f"k,x,text\n{rows}")
    np.save(files["npy"], VALUES)
    files["hdf5"] = directory / "x.hdf5"
    with h5py.File(files["hdf5"], "w") as file:
        file.create_dataset("tree/x", data=VALUES, chunks=(64,), compression="gzip", fletcher32=True)
        file["f4"], file["n"], file["text"] = VALUES.astype(">f4"), np.arange(5), "text"
    try:
        import pyarrow
        from pyarrow import parquet

        files["parquet"] = directory / "x.parquet"
        parquet.write_table(pyarrow.table({"x": VALUES, "n": np.arange(len(VALUES))}), files["parquet"])
    except ImportError:
        pass
    try:
        import uproot

        files["root"] = directory / "x.root"
        with uproot.recreate(files["root"]) as root:
            root.mktree("tree", {"x": "f8"})
            root["tree"].extend({"x": VALUES})
    except ImportError:
        pass
    return files


COLUMNS = {"table": "x", "hdf5": "tree/x", "parquet": "x", "root": "tree:x"}


def draw(seed: int, k: int, files: Mapping[str, Path], place: Path) -> Input:
    """Input k of a seed, written into a directory."""
    rng = np.random.default_rng([seed, k])
    names = sorted(files)
    weights = np.array([3.0 if name == "events" else 1.0 for name in names])
    name = str(rng.choice(names, p=weights / weights.sum()))
    path = place / files[name].name
    if rng.random() < 0.05:
        return _special(rng, name, path)
    if name == "parts":
        return _damaged_parts(rng, files[name], place)
    column = COLUMNS.get(name) if rng.random() < 0.8 else str(rng.choice(["x", "y", "", "tree", "f4", "/", "\n"]))
    slow = name == "events" and rng.random() < 0.02
    if path.suffix in (".h5", ".hdf5") and rng.random() < 0.4:
        shutil.copy(files[name], path)
        told = _edit_hdf5(rng, path)
        return Input(name, path, f"{name}: {told}", False, column, slow)
    if name in ("csv", "table") and rng.random() < 0.6:
        told, same = _edit_text(rng, files[name].read_text(), path)
        same = same and column == COLUMNS.get(name)
        return Input(name, path, f"{name}: {told}", same, column)
    told, data = _damage(rng, files[name].read_bytes())
    path.write_bytes(data)
    return Input(name, path, f"{name}: {told}", name in OURS, column, slow)


# --- bytes -------------------------------------------------------------------------------------------------


def _place(rng: np.random.Generator, data: bytes) -> tuple[int, int]:
    """A stretch of a file: often a few bytes, sometimes a block of a disk."""
    length = int(rng.choice([1, 2, 8, 64, 512, 4096]))
    start = int(rng.integers(max(1, len(data))))
    if length >= 512:
        start -= start % 512
    return start, min(len(data), start + length)


def _truncated(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _flipped(rng: np.random.Generator, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 16]))):
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def _filled(byte: bytes) -> Callable[[np.random.Generator, bytes], bytes]:
    def fill(rng: np.random.Generator, data: bytes) -> bytes:
        start, stop = _place(rng, data)
        return data[:start] + byte * (stop - start) + data[stop:]

    return fill


def _random(rng: np.random.Generator, data: bytes) -> bytes:
    start, stop = _place(rng, data)
    return data[:start] + rng.bytes(stop - start) + data[stop:]


def _swapped(rng: np.random.Generator, data: bytes) -> bytes:
    (a, b), (c, _) = _place(rng, data), _place(rng, data)
    a, c = sorted((a, c))
    n = min(b - a, c - a, len(data) - c) if b > a else 0
    return data[:a] + data[c : c + n] + data[a + n : c] + data[a : a + n] + data[c + n :] if n > 0 else data


def _cut(rng: np.random.Generator, data: bytes) -> bytes:
    start, stop = _place(rng, data)
    return data[:start] + data[stop:]


def _repeated(rng: np.random.Generator, data: bytes) -> bytes:
    start, stop = _place(rng, data)
    return data[:stop] + data[start:stop] + data[stop:]


DAMAGE: dict[str, Callable[[np.random.Generator, bytes], bytes]] = {
    "truncated": _truncated,
    "bits flipped": _flipped,
    "zeroed": _filled(b"\0"),
    "filled with ones": _filled(b"\xff"),
    "random bytes": _random,
    "blocks swapped": _swapped,
    "cut out": _cut,
    "repeated": _repeated,
    "more behind": lambda rng, data: data + rng.bytes(int(rng.integers(1, 999))),
}


def _damage(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    kind = str(rng.choice(list(DAMAGE)))
    return kind, DAMAGE[kind](rng, data)


# --- text --------------------------------------------------------------------------------------------------


def _edit_text(rng: np.random.Generator, text: str, path: Path) -> tuple[str, bool]:
    """Write another form of a table: what was done, and whether it still says the same."""
    lines = text.splitlines()
    k, cell = int(rng.integers(len(lines))), lambda line, new: ",".join(new if "." in c else c for c in line.split(","))
    words = [
        "nan",
        "inf",
        "-1e999",
        "text",
        "",
        "1_000",
        "0x10",
        "1,5",
        "'1'",
        "é",
        "1 2",
        "\0",
        "9" * 200_000,
        "1e5000",
    ]
    forms: dict[str, Callable[[], tuple[str, bool]]] = {
        "CRLF": lambda: ("\r\n".join(lines), True),
        "CR": lambda: ("\r".join(lines), True),
        "quotes": lambda: ("\n".join(",".join(f'"{c}"' for c in line.split(",")) for line in lines), True),
        "empty lines": lambda: ("\n\n".join(lines) + "\n\n", True),
        "spaces": lambda: ("\n".join(line.replace(",", " , ") + "  " for line in lines), True),
        "open quote": lambda: ("\n".join([*lines[:k], '"' + lines[k], *lines[k + 1 :]]), False),
        "semicolons": lambda: (text.replace(",", ";").replace(".", ","), False),
        "more cells": lambda: ("\n".join([*lines[:k], lines[k] + ",7", *lines[k + 1 :]]), False),
        "fewer cells": lambda: ("\n".join([*lines[:k], lines[k][:2], *lines[k + 1 :]]), False),
        "another word": lambda: (
            "\n".join([*lines[:k], cell(lines[k], str(rng.choice(words))), *lines[k + 1 :]]),
            False,
        ),
        "header": lambda: ("\n".join([str(rng.choice(["x", "a\tb", "1.5z", "x,x,x", '"a\nb",x'])), *lines]), False),
    }
    kind = str(rng.choice([*forms, "encoding"]))
    if kind != "encoding":
        content, same = forms[kind]()
        path.write_bytes(content.encode())
        return kind, same
    encoding = str(rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp037"]))
    content = text if encoding != "latin-1" else text + "\n# é"
    path.write_bytes(content.encode(encoding))
    return f"in {encoding}", encoding == "utf-8-sig"


# --- HDF5 --------------------------------------------------------------------------------------------------


def _edit_hdf5(rng: np.random.Generator, path: Path) -> str:
    """Change one object of a file by the means of HDF5, with checksums that fit."""
    found: list[str] = []
    with h5py.File(path, "r+") as file:
        file.visit(found.append)
        name = str(rng.choice(found))
        kind = str(rng.choice(["renamed", "removed", "other array", "attribute", "huge", "link", "filler"]))
        item = file[name]
        if kind == "renamed":
            file.move(name, str(rng.choice([f"{name}_", f"{name}é", f"moved/{name}", f"{name} "])))
        elif kind == "removed":
            del file[name]
        elif kind == "other array":
            kind += f" {_other_array(rng, file, name)}"
        elif kind == "attribute":
            kind += f" {_attribute(rng, item if rng.random() < 0.3 else file)}"
        elif kind == "huge":
            del file[name]
            dtype, n = str(rng.choice(["f8", "i8", "u1"])), int(rng.choice([10**15, 2**33, 2**40]))
            shape = [(n,), (N_TOYS, n), (n, 2)][int(rng.integers(3))]
            file.create_dataset(name, shape, dtype, chunks=tuple(min(64, s) for s in shape))
        elif kind == "link":
            del file[name]
            target = [
                h5py.SoftLink("/"), h5py.SoftLink("/nowhere"), h5py.SoftLink(f"/{name}"),
                h5py.ExternalLink("/etc/passwd", "/"), h5py.ExternalLink(path.name, "/"),
            ][int(rng.integers(5))]  # fmt: skip
            file[name] = target
        else:
            del file[name]
            file.create_dataset(name, (N_TOYS,), "f8", external=[("/etc/passwd", 0, 8 * N_TOYS)])
    return f"{kind} {name}"


def _other_array(rng: np.random.Generator, file: h5py.File, name: str) -> str:
    item = file[name]
    shape = item.shape if isinstance(item, h5py.Dataset) else (3,)
    del file[name]
    arrays = {
        "of text": np.array([b"a"] * 3),
        "of NaN": np.full(shape, np.nan),
        "transposed": np.ones(shape[::-1]),
        "longer": np.ones((shape[0] + 1, *shape[1:])) if shape else np.ones(2),
        "empty": np.empty((0, *shape[1:])),
        "scalar": np.float64(1.0),
        "complex": np.ones(shape, complex),
        "of huge integers": np.full(shape, 2**63 - 1),
        "of negative integers": np.full(shape, -5),
        "compound": np.zeros(3, [("a", "f8"), ("b", "S3")]),
        "without space": h5py.Empty("f8"),
        "of long text": np.array(["a" * 99], dtype=object),
    }
    kind = str(rng.choice(list(arrays)))
    if kind == "of long text":
        file.create_dataset(name, data=arrays[kind], dtype=h5py.string_dtype())
    else:
        file.create_dataset(name, data=arrays[kind])
    return kind


def _attribute(rng: np.random.Generator, item: h5py.Group) -> str:
    name = str(rng.choice([*item.attrs, "names", "format_version", "truth"]))
    values = [
        1e300, -1, np.nan, 2**62, "", "a\nb", "é" * 100, np.zeros(3), np.zeros((2, 2)), b"\xff\xfe", h5py.Empty("f8"),
        np.array([b"\xff", b"a"]), True, '{"n": "a"}', "[1]", "null", "{", ["a", "a"], np.zeros(2, [("a", "f8")]),
    ]  # fmt: skip
    value = values[int(rng.integers(len(values)))]
    if rng.random() < 0.2:
        item.attrs.pop(name, None)
        return f"{name} removed"
    item.attrs[name] = value
    return f"{name} = {value!r:.40}"


# --- what is no file ---------------------------------------------------------------------------------------


class _Danger:
    def __reduce__(self) -> tuple:
        return os._exit, (99,)


def _special(rng: np.random.Generator, name: str, path: Path) -> Input:
    """Something else under the name of a file."""
    kinds = ["empty", "directory", "missing", "fifo", "device", "loop", "objects", "text", "broken link"]
    kind = str(rng.choice(kinds))
    if kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "broken link":
        path.symlink_to(path.parent / "nowhere")
    elif kind == "objects":
        path = path.with_suffix(".npy") if name not in OURS else path
        with path.open("wb") as file:
            np.save(file, np.array([_Danger()], dtype=object), allow_pickle=True)
    elif kind == "text":
        path.write_text("no such thing\n" * 9)
    return Input("events" if name == "parts" else name, path, f"{name}: {kind}", False, COLUMNS.get(name), True)


def _damaged_parts(rng: np.random.Generator, original: Path, place: Path) -> Input:
    """An interrupted run of which a part is damaged, missing, misnamed, or has a stranger beside it."""
    stopped = original.parent / "stopped" / "toys.h5.parts"
    parts = place / "toys.h5.parts"
    shutil.copytree(stopped, parts)
    files = sorted(parts.glob("toys_*.h5"))
    part = files[int(rng.integers(len(files)))]
    kind = str(rng.choice(["damaged", "damaged", "damaged", "removed", "misnamed", "stranger", "left half-written"]))
    if kind == "damaged":
        more, data = _damage(rng, part.read_bytes())
        kind = f"{kind}, {more}"
        part.write_bytes(data)
    elif kind == "removed":
        part.unlink()
    elif kind == "misnamed":
        part.rename(parts / "toys_0000000016-0000000024.h5")
    elif kind == "stranger":
        (parts / "notes.txt").write_text("mine")
    else:
        (parts / f"{part.name}.tmp.99999999").write_bytes(part.read_bytes()[:100])
    return Input("parts", place / "toys.h5", f"parts: {part.name} {kind}", True)
