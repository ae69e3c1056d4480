"""Where the terms of a cost break along a parameter: jumps, kinks, and edges of the support.

What looks like a break in a scan is magnified: the fourth difference of a smooth function fades with the fourth power
of its step, that of a kink with the first, that of a jump not at all. Where a term ceases to be finite, a density that
vanishes as (distance from the edge)^e moves its support with the parameter, which has no finite information, if e < 1;
an edge that is the same for all rows is the range of the parameter.

All that is known of the n terms is `value(t, r) -> array`, the term of row r with the parameter at t, for arrays that
broadcast.

References
----------
Smith, Biometrika 72 (1985) 67, for moving edges.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["breaks_near", "width_of"]

CELLS = 48  # of a scan
FOLLOWED = 4  # windows that are magnified for each row
HALVINGS = 16
LAST = 6  # halvings by which a break is told from a smooth function
REACH = 8.0  # a row is looked at where its term is above its minimum by no more than this
SLOPE_JUMP = 3e-3  # smallest jump of a slope that counts, in terms per standard deviation
VALUE_JUMP = 1e-4
CLIFF = 0.1 * REACH
EXPONENT = 0.95  # of the density at an edge that moves, 1 within rounding is that of a density that turns negative
# Where a parameter has all but vanished, in terms of itself, the numbers come to their end, as of an exponential that
# overflows: of a support that moves some rows are closer to the edge.
VANISHED = 0.02
IDLE = 1e-10  # a term that changes by less does not depend on the parameter
FINEST, LARGEST = 1e-7, 1e6  # changes of a parameter, in terms of itself, that are tried
ROUNDING = 1e-12  # of terms, in terms of themselves
FOURTH = np.array([1.0, -4.0, 6.0, -4.0, 1.0])


def width_of(value: Callable, n: int, theta: float, lower: float, upper: float) -> tuple[float, bool]:
    """The change of a parameter that changes most terms by about 1, and whether any term changes at all.

    Where none does it is the change at which some terms cease to be finite, or 0.
    """
    r = np.arange(n)
    at = value(theta, r)
    r, at = r[np.isfinite(at)], at[np.isfinite(at)]
    if not len(r):
        return 0.0, True
    first = width = min(abs(theta) or 1.0, 0.5 * (upper - lower))
    before, typical_before, ceiling, large = width, 0.0, np.inf, np.inf
    for _ in range(60):
        if width < FINEST * abs(theta):
            break  # too little of it to be told from rounding
        sides = np.clip(np.array([[theta - width], [theta + width]]), lower, upper)
        ended = sides[0, 0] == lower and sides[1, 0] == upper
        new = value(sides, r)
        with np.errstate(invalid="ignore"):
            change = np.where(np.isfinite(new), np.abs(new - at), -1.0).max(axis=0)
        if 2 * np.count_nonzero(change >= 0.0) < len(r):
            ceiling, width = width, 0.3 * width
            continue
        # a term that has changed by 1 or jumped counts as 1
        typical = float(np.mean(np.minimum(change[change >= 0.0], 1.0)))
        idle = typical < max(IDLE, ROUNDING * width / first)  # rounding, where the parameter cancels
        if idle:
            if ended or width > LARGEST * first:
                return 0.0, False
            if 4 * np.count_nonzero(~np.isfinite(new)) >= len(r):
                between = value(np.linspace(sides[0], sides[1], CELLS), r)
                with np.errstate(invalid="ignore"):
                    return width, bool(np.any(np.isfinite(between) & (np.abs(between - at) > IDLE)))
            wider = 10.0 * width
        elif 0.5 < typical < 0.8 or (typical < 0.5 and ended):
            return width, True
        elif width > before and typical < 1.1 * typical_before:
            return before, True  # more of it does no more
        elif typical > 0.8:
            wider, large = 0.5 * width, width
        else:
            wider = width * min(0.65 / typical, 10.0)
        if wider >= min(large, ceiling):
            return (large, True) if large < ceiling else (width, not idle)
        before, typical_before, width = width, typical, wider
    return 0.0, True


def breaks_near(
    value: Callable, n: int, theta: float, width: float, lower: float, upper: float
) -> list[tuple[str, float, int, float]]:
    """(kind, where, row, size) of the break of each kind that is next to theta, no further than `width` from it."""
    scan = np.linspace(max(lower, theta - width), min(upper, theta + width), CELLS + 1)
    f = value(scan[:, None], np.arange(n)[None])
    finite = np.isfinite(f)
    lowest = np.min(np.where(finite, f, np.inf), axis=0)
    near = finite & (f < lowest + REACH)
    edges = _edges(value, scan, finite, lowest, width)
    found = [("support", *each) for each in edges if abs(each[0]) > VANISHED * abs(theta)]
    found += _bends(value, scan, np.where(near, f, np.nan), width)
    found += [("jump", *each) for each in _cliffs(value, scan, f, lowest + REACH)]
    nearest: dict[str, tuple[str, float, int, float]] = {}
    for each in sorted(found, key=lambda each: abs(each[1] - theta)):
        nearest.setdefault(each[0], each)
    return list(nearest.values())


def _edges(
    value: Callable, scan: np.ndarray, finite: np.ndarray, lowest: np.ndarray, width: float
) -> list[tuple[float, int, float]]:
    """(where, row, +1 if the term is finite above) of edges of the support that differ between rows."""
    cell, row = np.nonzero(finite[1:] != finite[:-1])
    if not len(row):
        return []
    above = finite[cell + 1, row]
    inside, outside = scan[cell + above], scan[cell + ~above]
    for _ in range(34):
        middle = 0.5 * (inside + outside)
        ok = np.isfinite(value(middle, row))
        inside, outside = np.where(ok, middle, inside), np.where(ok, outside, middle)
    into = np.where(above, width, -width)
    close, far = value(inside + 1e-7 * into, row), value(inside + 1e-5 * into, row)
    with np.errstate(invalid="ignore"):
        exponent = (close - far) / np.log(1e2)
        ends = (far < lowest[row] + 2.0 * REACH) & (exponent < EXPONENT)
    ends &= value(outside, row) != -np.inf  # an overflow
    if not ends.any() or np.ptp(inside[ends]) < 1e-6 * width:
        return []
    return list(zip(inside[ends].tolist(), row[ends].tolist(), np.sign(into[ends]).tolist(), strict=True))


def _cliffs(value: Callable, scan: np.ndarray, f: np.ndarray, level: np.ndarray) -> list[tuple[float, int, float]]:
    """(where, row, size) of jumps over a level, one for each row: out of reach they are no bends."""
    with np.errstate(invalid="ignore"):
        low = f < level
        cell, row = np.nonzero((low[1:] != low[:-1]) & np.isfinite(f[1:]) & np.isfinite(f[:-1]))
    if not len(row):
        return []
    rising = low[cell, row]
    ends = np.stack([scan[cell + ~rising], scan[cell + rising]])
    for _ in range(18):  # as far as numbers go, where the steepest slope is none
        at = np.linspace(ends[0], ends[1], 9)
        f = value(at, row)
        k = np.argmax(~(f < level[row]), axis=0)  # the first that is not below
        pair, each = np.stack([np.maximum(k - 1, 0), k]), np.arange(len(row))
        ends, (base, high) = at[pair, each], f[pair, each]
        with np.errstate(invalid="ignore"):
            steep = high - base > np.maximum(CLIFF, ROUNDING * np.abs(high))
        ends, row, size = ends[:, steep], row[steep], (high - base)[steep]
        if not len(row):
            return []
    return [*zip(ends[0].tolist(), row.tolist(), size.tolist(), strict=True)]


def _bends(value: Callable, scan: np.ndarray, f: np.ndarray, width: float) -> list[tuple[str, float, int, float]]:
    """("jump" or "kink", where, row, size); the size of a kink is a change of slope."""
    step = scan[1] - scan[0]
    with np.errstate(invalid="ignore"):
        fourth = np.abs(_fourth(f))
    fourth = np.where(np.isfinite(fourth), fourth, 0.0)
    around = np.pad(fourth, ((1, 1), (0, 0)))
    fourth = np.where(fourth >= np.maximum(around[:-2], around[2:]), fourth, 0.0)  # a break stands out
    window = np.argsort(fourth, axis=0)[-FOLLOWED:]
    row = np.broadcast_to(np.arange(f.shape[1]), window.shape)
    size = np.take_along_axis(fourth, window, axis=0)
    bent = size > SLOPE_JUMP * step / width
    window, row = window[bent], row[bent]
    first, points, sizes = scan[window], f[window + np.arange(5)[:, None], row], [size[bent]]
    highest = np.nanmin(np.where(np.isfinite(f), f, np.inf), axis=0) + 4.0 * REACH
    for _ in range(HALVINGS):
        if not len(row):
            return []
        nine = np.empty((9, len(row)))
        nine[::2] = points
        nine[1::2] = value(first + step * (np.arange(4)[:, None] + 0.5), row)
        nine[~(nine < highest[row])] = np.nan
        with np.errstate(invalid="ignore"):
            fourth = np.abs(_fourth(nine))
        fourth = np.where(np.isfinite(fourth), fourth, 0.0)
        best, step = np.argmax(fourth, axis=0), 0.5 * step
        size = fourth[best, np.arange(len(row))]
        first, points = first + best * step, nine[best + np.arange(5)[:, None], np.arange(len(row))]
        sizes.append(size)
        bent = size > 0.5 * SLOPE_JUMP * step / width
        row, first, points, sizes = row[bent], first[bent], points[:, bent], [each[bent] for each in sizes]
    # over these halvings the fourth difference of a kink falls by 2^-6, that of a smooth function by 2^-24
    size, faded = sizes[-1], sizes[-1] / sizes[-1 - LAST]
    clear = size > ROUNDING * np.max(np.abs(points), axis=0)
    jump = clear & (faded > 0.5) & (size > VALUE_JUMP)
    kink = clear & (faded > 0.25 * 0.5**LAST) & (faded < 16.0 * 0.5**LAST) & (size > SLOPE_JUMP * step / width)
    at = first + 2.0 * step
    # the fourth difference of a jump is 3 of it, that of a slope that jumps 1 to 2 of its change within a step
    return [
        *(("jump", at[i], int(row[i]), size[i] / 3.0) for i in np.flatnonzero(jump)),
        *(("kink", at[i], int(row[i]), _slopes(points[:, i], step)) for i in np.flatnonzero(kink)),
    ]


def _fourth(f: np.ndarray) -> np.ndarray:
    """Differences of five points that follow each other."""
    return sum(c * f[k : len(f) - 4 + k] for k, c in enumerate(FOURTH))


def _slopes(points: np.ndarray, step: float) -> float:
    return float(abs((points[4] - points[3]) - (points[1] - points[0])) / step)
