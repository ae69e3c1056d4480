"""Arguments of fits: names, points, limits and held parameters, checked and as arrays."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.data import as_float64, shown

__all__ = [
    "by_name",
    "check_start",
    "held",
    "held_names",
    "known",
    "limit_arrays",
    "one_of",
    "per_toy",
    "start_points",
    "whole",
]

MOST = 10**8  # of any number of steps or points; ten times as many are a 32-bit integer, too


def one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")


def whole(name: str, value: Any, least: int) -> None:
    """Raise ValueError for what is no whole number, or one out of range."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {shown(value)}")
    if value > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {shown(value)}")


def known(names: tuple[str, ...], given: Any, what: str) -> None:
    """Raise ValueError for a name that is no parameter, with the one that was probably meant."""
    if not isinstance(given, Mapping | Sequence | set | frozenset):
        raise TypeError(f"{what} must name parameters, got {shown(given)}")
    for name in given:
        if isinstance(name, list | tuple):
            raise TypeError(f"{what} must name parameters one by one, got {shown(name)}")
        if not isinstance(name, str) or name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f": did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{what} names {shown(name)}, but the parameters are {', '.join(names)}{hint}")


def by_name(given: Any) -> Any:
    """What has string labels in any order, as a Series or a DataFrame, as a dict; all else as it is."""
    labels = list(given.keys()) if callable(getattr(given, "keys", None)) else []
    return {label: given[label] for label in labels} if labels and all(isinstance(k, str) for k in labels) else given


def start_points(names: tuple[str, ...], start: Any, n_toys: int, what: str = "start") -> np.ndarray:
    """Values of all parameters, as those of the start, as an (n_toys, n_params) array."""
    start = by_name(start)
    if isinstance(start, Mapping):
        known(names, start, what)
        missing = [name for name in names if name not in start]
        if missing:
            raise ValueError(f"{what} has no value for {', '.join(missing)}")
        points = np.empty((n_toys, len(names)))
        for i, name in enumerate(names):
            points[:, i] = per_toy(f"{what}[{name!r}]", start[name], n_toys)
    else:
        try:
            array = as_float64(start, what)
        except TypeError:
            raise TypeError(f"{what} must be a dict or an array of numbers, got {type(start).__name__}") from None
        if array.shape not in ((len(names),), (n_toys, len(names))):
            raise ValueError(
                f"{what} must have shape ({len(names)},) or (n_toys, {len(names)}) = ({n_toys}, {len(names)}), "
                f"got {array.shape}"
            )
        points = np.array(np.broadcast_to(array, (n_toys, len(names))), order="C")
    if not np.isfinite(points).all():
        toy, i = np.argwhere(~np.isfinite(points))[0]
        raise ValueError(f"{what} values must be finite, but {names[i]} is {points[toy, i]} for toy {toy}")
    return points


def per_toy(what: str, value: Any, n_toys: int) -> np.ndarray:
    try:
        array = as_float64(value, what)
    except TypeError:
        raise TypeError(f"{what} must be a number or an array of {n_toys}, got {shown(value)}") from None
    if array.shape not in ((), (n_toys,)):
        raise ValueError(f"{what} must be a number or have shape (n_toys,) = ({n_toys},), got {array.shape}")
    return array


def held_names(names: tuple[str, ...], fixed: Any) -> tuple[str, ...]:
    """The parameters that are held, of names or a dict name -> value."""
    if fixed is None:
        return ()
    fixed = by_name(fixed)
    if not isinstance(fixed, Mapping | Sequence | set | frozenset):
        raise TypeError(f"fixed must be names, or a dict name -> value, got {type(fixed).__name__}")
    given = (fixed,) if isinstance(fixed, str) else tuple(fixed)
    known(names, given, "fixed")
    return given


def held(names: tuple[str, ...], fixed: Any, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(free, start with the fixed values in place)."""
    free, start, fixed = np.ones(len(names), dtype=bool), start.copy(), by_name(fixed)
    for name in held_names(names, fixed):
        free[names.index(name)] = False
        if isinstance(fixed, Mapping):
            if isinstance(fixed[name], bool | np.bool_):
                raise TypeError(
                    f"fixed[{name!r}] must be the value at which it is held, got {fixed[name]}: to hold parameters at "
                    "their start values pass a list of names"
                )
            values = per_toy(f"fixed[{name!r}]", fixed[name], len(start))
            if not np.isfinite(values).all():
                raise ValueError(f"values of fixed parameters must be finite, but those of {name} are not")
            start[:, names.index(name)] = values
    return free, start


def limit_arrays(names: tuple[str, ...], limits: Any) -> tuple[np.ndarray, np.ndarray]:
    """(lower, upper), each (n_params,), open sides infinite."""
    lower, upper = np.full(len(names), -np.inf), np.full(len(names), np.inf)
    if limits is None:
        return lower, upper
    if not isinstance(limits, Mapping):
        raise TypeError(f"limits must be a dict name -> (lower, upper), got {type(limits).__name__}")
    known(names, limits, "limits")
    for name, pair in limits.items():
        if pair is None:
            continue
        try:
            if isinstance(pair, str):  # "01" is a pair, too
                raise TypeError
            low, high = (edge if end is None else float(end) for end, edge in zip(pair, (-np.inf, np.inf), strict=True))
        except (TypeError, ValueError, OverflowError):
            raise ValueError(
                f"limits[{name!r}] must be (lower, upper) with None for an open side, got {shown(pair)}"
            ) from None
        if low == high:
            raise ValueError(f"limits[{name!r}] leave {low:g} alone: use fixed={{{name!r}: {low:g}}}")
        if not low < high:
            raise ValueError(f"limits[{name!r}]: the lower limit {low:g} must be below the upper limit {high:g}")
        lower[names.index(name)], upper[names.index(name)] = low, high
    return lower, upper


def check_start(
    names: tuple[str, ...],
    start: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
    free: np.ndarray,
    what: str = "start",
) -> None:
    outside = (start < lower) | (start > upper)
    if outside.any():
        toy, i = np.argwhere(outside)[0]
        raise ValueError(
            f"the {what if free[i] else 'fixed'} {names[i]} = {start[toy, i]:g} of toy {toy} is outside of "
            f"its limits ({lower[i]:g}, {upper[i]:g})"
        )
