"""What a file says of how it was made, and whether two of them are of one run."""

import datetime
import json
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from toys import storage
from toys.files import StorageError, reading
from toys.options import Options
from toys.study import Study

__all__ = [
    "DECISIVE",
    "PACKAGES",
    "attributes_of",
    "changed_versions",
    "check_same",
    "told_differences",
    "versions",
    "versions_of",
    "warn_of_versions",
]

PACKAGES = ("batchfit", "jax", "jaxlib", "optax", "numpy", "iminuit", "numba", "h5py", "scipy")
# What decides about the numbers: a run is continued only if all of these are the same. Other versions of the packages
# may round otherwise, of which there is a warning.
DECISIVE = (
    "model", "source", "seed", "n_toys", "truth", "start", "limits", "fixed", "optimizer", "backend", "minos", "chunk",
    "save_toys", "shard", "batchfit_version",
)  # fmt: skip

# of what differs between two runs
MOST_TOLD, LONGEST = 3, 60


def attributes_of(
    study: Study, options: Options, *, backend: str, device: str, sampled: str, chunk: int
) -> dict[str, Any]:
    """The attributes of the file of a run. `sampled` is the backend that throws the toys."""
    packages = versions()
    optional = {
        "fixed": list(study.fixed) if study.fixed else None,
        "minos": True if options.minos else None,
        "save_toys": None if options.save_toys else False,
        "shard": "{}/{}".format(*options.shard) if options.shard else None,
    }
    return {name: value for name, value in optional.items() if value is not None} | {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": study.name,
        "source": options.source,
        "names": list(study.cost.names),
        "errordef": study.cost.errordef,
        "n_toys": options.n_toys,
        "seed": options.seed if options.seed < 2**63 else str(options.seed),
        "truth": json.dumps(dict(study.truth)),
        "start": json.dumps(dict(study.start)),
        "limits": json.dumps({name: _numbers(pair) for name, pair in study.limits.items()}),
        "optimizer": options.optimizer,
        "backend": backend,
        "sampled": sampled,
        "device": device,
        "precision": "float64",
        "random": "threefry2x32",
        "chunk": chunk,
        "batchfit_version": packages["batchfit"],
        "versions": json.dumps(packages),
        "jax_devices": ", ".join(sorted({d.device_kind for d in jax.devices()})),
        "command_line": options.command_line,
    }


def _numbers(pair: tuple[float | None, float | None] | None) -> list[float | None] | None:
    return None if pair is None else [None if end is None else float(end) for end in pair]


def versions() -> dict[str, str]:
    """Versions of the packages on which numbers depend, as they are installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        from toys import BATCHFIT

        return BATCHFIT if package == "batchfit" else "not installed"


def versions_of(path: str | Path, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Versions of the packages in the attributes of a file; none if it does not tell them.

    Raises
    ------
    StorageError
        If they cannot be read.
    """
    with reading(path):
        return dict(json.loads(attributes.get("versions", "{}")))


def changed_versions(then: Mapping[str, str], now: Mapping[str, str], where: str = "here") -> str:
    """The versions that are others now, as text: "numpy 2.0 (here 2.1)"."""
    changed = [name for name in now if then.get(name, now[name]) != now[name]]
    return ", ".join(f"{name} {then[name]} ({where} {now[name]})" for name in changed)


def warn_of_versions(made: Mapping[Path, Mapping[str, str]], now: Mapping[str, str], where: str = "here") -> None:
    """Warn of the first of some files, given with their versions, that was made with others than these."""
    for path, then in made.items():
        if changed := changed_versions(then, now, where):
            told = f"{path} was made with {changed}: toys may differ by rounding from those beside it"
            warnings.warn(told, stacklevel=3)
            break


def told_differences(found: Mapping[str, Any], wanted: Mapping[str, Any], *, but: str, form: str) -> str:
    """What decides about the numbers and is not the same in two sets of attributes, `but` one, each in a form."""
    told = []
    for key in storage.same_run(found, wanted, [key for key in DECISIVE if key != but]):
        then, now = found.get(key), wanted.get(key)
        each = _by_parameter(key, then, now) or [(key, then, now)]
        told += [
            f"{what} differs" if max(len(str(one)), len(str(other))) > LONGEST else form.format(what, one, other)
            for what, one, other in each[:MOST_TOLD]
        ]
        told += [f"{len(each) - MOST_TOLD} more of {key}"] if len(each) > MOST_TOLD else []
    return "; ".join(told)


def check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], *, but: str = "") -> None:
    """Raise StorageError, with each difference, unless two sets of attributes are of one run; `but` may differ."""
    if told := told_differences(found, wanted, but=but, form="{} was {} and is now {}"):
        raise StorageError(f"{path} belongs to another run: {told}. Name another output, or pass --overwrite")


def _by_parameter(key: str, then: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """What differs of values that are stored by name of parameter, as (what, then, now); empty for any other."""
    if key not in ("truth", "start", "limits"):
        return []
    try:
        first, second = (dict(json.loads(values)) for values in (then, now))
    except (TypeError, ValueError):  # a damaged file
        return []
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return [(f"{key} of {name}", first.get(name), second.get(name)) for name in names]
