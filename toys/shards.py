"""Shards: files of one run, each with a range of its toys, made by jobs that know nothing of each other.

Shard i of n holds whole chunks of the run (`toys.options.shard_range`), and those of the toys that MIGRAD refits which
are among its own. `merge` therefore gives the file that a single process gives, value for value.
"""

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from toys import storage
from toys.files import StorageError, advice, check_output, lock, reading, remove_temporaries
from toys.layout import n_toys_of, open_file, refuse_foreign
from toys.options import shard_range
from toys.provenance import told_differences, versions_of, warn_of_versions

__all__ = ["Merged", "merge", "shard_path"]


class Merged(NamedTuple):
    """What was merged: toys, those whose fits failed, those that MIGRAD refitted, and those on which it disagrees."""

    n_toys: int
    n_failed: int
    n_validated: int
    n_disagree: int


class _Shard(NamedTuple):
    first: int
    stop: int
    path: Path
    attributes: Mapping[str, Any]


def shard_path(out: str | Path, i: int, n: int) -> Path:
    """The file of shard i of n: `toys.shard-2-of-4.h5` for `toys.h5`."""
    out = Path(out)
    return out.with_name(f"{out.stem}.shard-{i}-of-{n}{out.suffix}")


def merge(out: str | Path, shards: Sequence[str | Path], *, overwrite: bool = False) -> Merged:
    """Join the shards of a run, in any order, into one file, which appears complete or not at all.

    Memory does not grow with the number of toys. The shards stay.

    Parameters
    ----------
    out : path
    shards : sequence of paths
        Files of disjoint ranges of one run, which together are all of its toys.
    overwrite : bool
        Replace an output that is there.

    Raises
    ------
    ValueError
        If no shard is given.
    StorageError
        If the output cannot be written, a file is missing, damaged or of another run, or toys are missing or there
        twice. Nothing is written then.
    """
    out = Path(out)
    if not shards:
        raise ValueError("name the files to be merged")
    if os.path.realpath(out) in map(os.path.realpath, shards):
        raise StorageError(f"{out} is one of the files to be merged: name another output")
    check_output(out, overwrite=True)
    with lock(out):
        if out.exists() and not overwrite:  # no other merge can write it now
            raise StorageError(f"{out} exists: pass --overwrite to replace it, or name another output")
        refuse_foreign(out)
        remove_temporaries(out)
        found = sorted((_read(Path(path)) for path in shards), key=lambda shard: (shard.first, shard.stop))
        _check_same(found)
        _check_cover(found)
        attributes = {key: value for key, value in found[0].attributes.items() if key not in ("shard", "first", "stop")}
        attributes["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        for label in ("device", "jax_devices"):
            attributes[label] = ", ".join(sorted({shard.attributes[label] for shard in found}))
        validation = _validation(found)
        # all were thrown from the values of this fit
        observed = next(filter(None, (storage.read_fitted(shard.path) for shard in found)), None)
        storage.join_files(out, [shard[:3] for shard in found], attributes, validation, observed=observed)
    agrees = validation.get("agrees", np.empty(0, dtype=bool))
    n_failed = sum(int((~result.valid).sum()) for result, _ in storage.load_blocks(out))
    return Merged(found[-1].stop, n_failed, len(agrees), int((~agrees).sum()))


def _read(path: Path) -> _Shard:
    attributes = storage.read_attributes(path, "n_toys", "chunk", "device", "jax_devices")
    with open_file(path) as file, reading(path):
        first, stop = int(attributes["first"]), int(attributes["stop"])
        n_toys = n_toys_of(file)
    if n_toys != stop - first:
        raise StorageError(f"{path} has {n_toys} toys and not {first} to {stop - 1}, as it says: {advice(path)}")
    return _Shard(first, stop, path, attributes)


def _check_same(shards: Sequence[_Shard]) -> None:
    """Raise StorageError unless all are of one run, and warn where they were made with different versions."""
    one = shards[0]
    for other in shards[1:]:
        told = told_differences(other.attributes, one.attributes, but="shard", form="{} is {} and not {}")
        if told:
            raise StorageError(f"{other.path} is of another run than {one.path}: {told}. Merge files of one run only")
    made = {shard.path: versions_of(shard.path, shard.attributes) for shard in shards}
    warn_of_versions(made, made[one.path], one.path.name)


def _check_cover(shards: Sequence[_Shard]) -> None:
    """Raise StorageError unless every toy of the run is there once."""
    end = 0
    for before, shard in zip([None, *shards], shards, strict=False):
        if before is not None and shard.first < end:
            raise StorageError(
                f"toys {shard.first} to {min(end, shard.stop) - 1} are both in {before.path} and in {shard.path}: "
                "leave out one of them"
            )
        if shard.first > end:
            raise StorageError(_missing(shards, end, shard.first))
        end = shard.stop
    n_toys = shards[0].attributes["n_toys"]
    if end < n_toys:
        raise StorageError(_missing(shards, end, n_toys))


def _missing(shards: Sequence[_Shard], first: int, stop: int) -> str:
    """That these toys are missing, and the shards that have them if all files are shards of one number."""
    sentence = f"toys {first} to {stop - 1} are missing: "
    attributes = shards[0].attributes
    numbers = {shard.attributes.get("shard", "").partition("/")[2] for shard in shards}
    if numbers == {""} or len(numbers) > 1:
        return sentence + "name the file that holds them, too"
    n = int(numbers.pop())
    ranges = {i: shard_range(attributes["n_toys"], attributes["chunk"], i, n) for i in range(1, n + 1)}
    absent = [f"{i}/{n}" for i, (begin, end) in ranges.items() if begin < stop and end > first]
    return sentence + f"run, or name, shard {', '.join(absent)}"


def _validation(shards: Sequence[_Shard]) -> dict[str, np.ndarray]:
    """What MIGRAD said of the toys of all shards."""
    stored = [validation for shard in shards if (validation := storage.read_validation(shard.path))]
    return {name: np.concatenate([one[name] for one in stored]) for name in stored[0]} if stored else {}
