"""Where the profile likelihood crosses a level, along rays from the minimum: one for each side of a MINOS interval.

On a ray some parameters are held at theta_hat + s u, with a direction u, and all others minimise the cost. Wanted is
the distance s > 0 at which this minimum has risen to a level. At a point with cost F, gradient g and Hessian H the
others M follow the ray by v = u + w with H_MM w = -(H u)_M, and move by p with H_MM p = -g_M at a fixed s. So the
profile is, to second order,

    P(s + ds) = F + g.p + p.H.p / 2 + ds (g + H p).v + ds^2 u.H.v / 2,

and the root of P = level gives the next point theta + p + ds v. With the exact Hessian one or two evaluations do: from
the change of u.H.v along the ray the third-order term of the last step is known, and corrected for.
Others that would leave their limits are set onto them; a ray that meets a limit of its own parameters below the level
ends there. What does not converge so, and what may have crossed the level before, as the profile is another than the
model said or falls, is found by fits with the parameters of the ray held: in small steps outwards, and then between
two distances that lie below and above the level.

References
----------
James & Roos, Comput. Phys. Commun. 10 (1975) 343-367, for MINOS. Venzon & Moolgavkar, Appl. Statist. 37 (1988) 87-94,
for Newton's method on the system of the other slopes and the level.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from engine.cpu import NumbaDriver
from engine.drivers import Settings
from engine.rules import PIVOT, ROUNDING
from engine.status import Status
from engine.xla import XlaDriver
from kernels.derivatives import unpacked_hessian
from kernels.program import ABSOLUTE, GRADIENT, VALUE

__all__ = [
    "AT_LIMIT",
    "FAILED",
    "FOUND",
    "LOWER",
    "Crossings",
    "Rays",
    "blocks",
    "crossings",
]

FOUND, AT_LIMIT, LOWER, FAILED = range(4)
RUNNING = -1
REMAINDER = 1e-5  # largest third-order term of the last step, relative to the distance; it is corrected for
GAIN = 2e-3  # what the other parameters may gain by the last step, in terms of the rise: about its square remains
LEVEL = 1e-7  # a profile that ends below the level by so much of the rise does not reach it
MAX_EVALUATIONS, MAX_TRIES = 15, 6
# A profile that is another than the model says by so much of the rise, at the first point and at later ones, or so many
# times as curved at the first, or falls, may have crossed the level before: it is walked along.
FIRST_MISS, MISS, BENT = 0.7, 0.25, 8.0
MATRICES = 2**21  # numbers of all Hessians that are held at once
OVERSHOOT = 4.0  # a point so many times as high above the minimum as the level is not trusted
NEW_MINIMUM = 1e-5  # a point that lies lower than the minimum by so many errordef belongs to another
# Distances at which a profile is taken until it is above the level, in units of where the parabola would cross: first
# small ones, as the minimum may be far flatter than what is around it, and then close to each other as long as the
# profile may rise above the level and fall again.
WALK = np.concatenate(
    [[1 / 16, 1 / 8, 1 / 4], np.arange(0.5, 4.1, 0.5), 5.0 * 1.25 ** np.arange(12), 100.0 * 2.0 ** np.arange(40)]
)
MAX_FITS = 60
HIGH = 1e3  # what stands for the height of a profile that cannot be had, in units of the level


@dataclass(frozen=True)
class Rays:
    """Rays from the minima of toys.

    Attributes
    ----------
    toys : (n,) int
    origin : (n, n_params) float64
        Minima.
    direction : (n, n_params) float64
        Change of the held parameters for s = 1; 0 for all others.
    held : (n, n_params) bool
        Parameters that lie on the ray; where the direction is 0 they stay as they are.
    minimum, level : (n,) float64
        Cost at the origin, and at the crossing.
    """

    toys: np.ndarray
    origin: np.ndarray
    direction: np.ndarray
    held: np.ndarray
    minimum: np.ndarray
    level: np.ndarray

    def __getitem__(self, rays: np.ndarray) -> "Rays":
        return Rays(*(getattr(self, name)[rays] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.toys)

    def rooms(self, settings: Settings) -> np.ndarray:
        """Distance at which each parameter of the rays meets its limit, (n, n_params)."""
        away = np.where(self.direction > 0, settings.upper - self.origin, settings.lower - self.origin)
        moving = self.direction != 0
        return np.where(moving, away / np.where(moving, self.direction, 1.0), np.inf)


@dataclass(frozen=True)
class Crossings:
    """Ends of rays.

    Attributes
    ----------
    distance : (n,) float64
        s, NaN if there is none.
    theta : (n, n_params) float64
        All parameters there; of a LOWER ray, the point that is lower than the minimum.
    status : (n,) int8
        FOUND, AT_LIMIT: the ray ends on a limit, LOWER: it met a point below the minimum, or FAILED.
    nfev : (n,) int64
    """

    distance: np.ndarray
    theta: np.ndarray
    status: np.ndarray
    nfev: np.ndarray

    def put(self, rays: np.ndarray, other: "Crossings") -> None:
        """Overwrite some; evaluations add up."""
        self.nfev[rays] += other.nfev
        for name in ("distance", "theta", "status"):
            getattr(self, name)[rays] = getattr(other, name)


def blocks(toys: np.ndarray, n_rays: int, n_params: int) -> Iterator[np.ndarray]:
    """These toys, so many at a time that the Hessians of all their rays fit into memory."""
    size = max(1, MATRICES // max(1, n_rays * n_params**2))
    return (toys[first : first + size] for first in range(0, len(toys), size))


def crossings(driver: NumbaDriver | XlaDriver, rays: Rays, start: np.ndarray, settings: Settings) -> Crossings:
    """The crossing of every ray.

    Parameters
    ----------
    driver : NumbaDriver or XlaDriver
    rays : Rays
    start : (n, n_outputs) float64
        Outputs of the cost (see `kernels.program`) at the origins.
    settings : Settings
    """
    found = _newton(driver, rays, start, settings)
    missing = np.flatnonzero(found.status == FAILED)
    for held in np.unique(rays.held[missing], axis=0):
        same = missing[(rays.held[missing] == held).all(axis=1)]
        found.put(same, _bracketed(driver, rays[same], _unit(rays[same], start[same]), settings))
    rooms = rays.rooms(settings)
    met = (found.status == AT_LIMIT)[:, None] & (rooms == rooms.min(axis=1, keepdims=True))
    limit = np.where(rays.direction > 0, settings.upper, settings.lower)
    found.theta[:] = np.where(met, limit, np.clip(found.theta, settings.lower, settings.upper))
    return found


def _unit(rays: Rays, start: np.ndarray) -> np.ndarray:
    """Where the crossings would be if nothing but the parameters of the rays changed, and the cost were a parabola."""
    n_params = rays.origin.shape[1]
    hessian = unpacked_hessian(start[:, GRADIENT + n_params :], n_params)
    curvature = np.abs(_dot(rays.direction, _times(hessian, rays.direction)))
    usable = np.isfinite(curvature) & (curvature > 0)
    return np.where(usable, np.sqrt(2.0 * (rays.level - rays.minimum) / np.where(usable, curvature, 1.0)), 1.0)


def lower_by(outputs: np.ndarray, errordef: float) -> np.ndarray:
    """What a cost must be lower by than a minimum to belong to another, (n,)."""
    return np.maximum(NEW_MINIMUM * errordef, 100.0 * ROUNDING * outputs[:, ABSOLUTE])


def _newton(driver: NumbaDriver | XlaDriver, rays: Rays, start: np.ndarray, settings: Settings) -> Crossings:
    """Newton's method on all rays at once; a ray on which it does not converge is FAILED."""
    n, n_params = rays.origin.shape
    room, rise = rays.rooms(settings).min(axis=1), rays.level - rays.minimum
    found = Crossings(np.zeros(n), rays.origin.copy(), np.full(n, FAILED, np.int8), np.zeros(n, np.int64))
    # the last good point of each ray, its distance and the curvature of the profile there, and the step from it
    good, base, curvature = rays.origin.copy(), np.zeros(n), np.full(n, np.nan)
    step, ds, tries = np.zeros((n, n_params)), np.zeros(n), np.zeros(n, np.int64)
    aim = np.full(n, np.nan)  # what the model says of the profile at the next point
    here, theta, outputs = np.arange(n), rays.origin, start  # rays that run on, for which `outputs` holds the cost
    for _ in range(MAX_EVALUATIONS):
        ray, s, value = rays[here], base[here] + ds[here], outputs[:, VALUE]
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # points of no use may not be finite
            move = _propose(ray, s, room[here], theta, outputs, settings)
            third = (move.curvature - curvature[here]) / (s - base[here])
            correction = np.where(move.ds == 0, 0.0, -third * move.ds**3 / (6.0 * move.slope))
            bend = np.fmax(np.abs(third * s / move.curvature), 1.0)
            settled = move.gain * bend <= GAIN * rise[here]
            end = s + move.ds + correction
            still = settled & (np.abs(correction) <= REMAINDER * end) & (np.abs(move.height) <= LEVEL * rise[here])
            # whoever meets or leaves a limit on the way bends the profile there
            still &= ~move.turns | (np.abs(move.ds) <= REMAINDER * end)
        usable = move.definite & np.isfinite(move.step).all(axis=1) & np.isfinite(move.ds)
        usable &= value - ray.minimum <= (1.0 + OVERSHOOT) * rise[here]
        on_limit = s + move.ds >= room[here]
        settled &= on_limit & (np.abs(move.ds) <= REMAINDER * room[here]) & (move.height < -LEVEL * rise[here])
        hopeless = ~usable & ((tries[here] >= MAX_TRIES) | (s == 0))
        with np.errstate(invalid="ignore"):
            first = base[here] == 0
            missed = np.abs(move.profile - aim[here]) > np.where(first, FIRST_MISS, MISS) * rise[here]
            missed |= first & (move.curvature > BENT * curvature[here])
        hopeless |= usable & (s > 0) & (missed | ~(move.climb > 0))
        lower = value < ray.minimum - lower_by(outputs, settings.errordef)
        status = np.select(
            [lower, hopeless, usable & settled, usable & still], [LOWER, FAILED, AT_LIMIT, FOUND], RUNNING
        )
        ended = status != RUNNING
        found.status[here[ended]] = status[ended]
        found.distance[here[ended]] = np.where(on_limit, room[here], end)[ended]
        found.theta[here[ended]] = np.where(lower[:, None], theta, theta + move.step)[ended]

        on, off = here[usable], here[~usable]
        good[on], base[on], curvature[on] = theta[usable], s[usable], move.curvature[usable]
        step[on], ds[on], tries[on] = move.step[usable], move.ds[usable], 0
        aim[on], aim[off] = (ray.level + move.height)[usable], np.nan
        # from a point of no use half the step is tried
        step[off] *= 0.5
        ds[off] *= 0.5
        tries[off] += 1
        here = here[~ended]
        if not len(here):
            break
        theta = np.clip(good[here] + step[here], settings.lower, settings.upper)
        outputs = driver.evaluate(rays.toys[here], theta)
        found.nfev[here] += 1
    return found


class _Move(NamedTuple):
    """From a point to the crossing of the quadratic model.

    Attributes
    ----------
    step : (n, n_params) float64
    ds : (n,) float64
    profile, climb : (n,) float64
        The profile at the point, where the other parameters have moved, and its slope.
    height, slope, curvature : (n,) float64
        Of the model of the profile after the step; its height is above the level.
    gain : (n,) float64
        What the other parameters gain at the same s.
    definite : (n,) bool
        Whether their Hessian is positive definite.
    turns : (n,) bool
        Whether one of them meets or leaves a limit by the step.
    """

    step: np.ndarray
    ds: np.ndarray
    profile: np.ndarray
    climb: np.ndarray
    height: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray
    gain: np.ndarray
    definite: np.ndarray
    turns: np.ndarray


def _propose(
    ray: Rays, s: np.ndarray, room: np.ndarray, theta: np.ndarray, outputs: np.ndarray, settings: Settings
) -> _Move:
    n, n_params = theta.shape
    gradient = outputs[:, GRADIENT : GRADIENT + n_params]
    hessian = unpacked_hessian(outputs[:, GRADIENT + n_params :], n_params)
    outward = ((theta <= settings.lower) & (gradient > 0)) | ((theta >= settings.upper) & (gradient < 0))
    moving = settings.free & ~ray.held & ~outward
    on_limit = np.zeros_like(theta)  # displacement of those that the step would bring beyond a limit
    hu = _times(hessian, ray.direction)
    ds, profile, climb, height, slope, curvature, gain = np.empty((7, n))
    definite, turns = np.empty(n, dtype=bool), np.zeros(n, dtype=bool)
    move = _Move(np.empty_like(theta), ds, profile, climb, height, slope, curvature, gain, definite, turns)
    todo = np.arange(n)
    for round_ in range(n_params + 1):
        h, g, m, c, u = hessian[todo], gradient[todo], moving[todo], on_limit[todo], ray.direction[todo]
        pull = g + _times(h, c)
        solved, move.definite[todo] = solve_definite(h, np.stack([-pull, -hu[todo]], axis=-1), m)
        p, v = c + solved[..., 0], u + solved[..., 1]
        moved = g + _times(h, p)
        height = outputs[todo, VALUE] + 0.5 * _dot(p, g + moved) - ray.level[todo]
        slope, curvature = _dot(moved, v), _dot(u, _times(h, v))
        ds = _root(height, slope, curvature, s[todo], ray.level[todo] - ray.minimum[todo])
        ds = np.clip(ds, -0.5 * s[todo], room[todo] - s[todo])
        if round_ == 0:
            profile[:], climb[:] = height + ray.level, slope
        step = p + ds[:, None] * v
        move.step[todo], move.ds[todo], move.curvature[todo] = step, ds, curvature
        move.height[todo] = height + ds * (slope + 0.5 * ds * curvature)
        move.slope[todo] = slope + ds * curvature
        if round_ == 0:
            move.gain[todo] = -0.5 * _dot(p, g + moved)
        below, above = theta[todo] + step < settings.lower, theta[todo] + step > settings.upper
        crossed = m & (below | above)
        again = crossed.any(axis=1) & move.definite[todo]
        if not again.any():
            break
        move.turns[todo[again]] = True
        on_limit[todo] = np.where(crossed, np.where(below, settings.lower, settings.upper) - theta[todo], c)
        moving[todo] = m & ~crossed
        todo = todo[again]
    after = gradient + _times(hessian, move.step)
    inward = ((theta <= settings.lower) & (after < 0)) | ((theta >= settings.upper) & (after > 0))
    turns |= (settings.free & ~ray.held & outward & inward).any(axis=1)
    return move


def _root(height: np.ndarray, slope: np.ndarray, curvature: np.ndarray, s: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """ds at which height + slope ds + curvature ds^2 / 2 rises through 0.

    Where the parabola never does, the root of z = sqrt(F - F0), which is nearly straight, by its slope, at F0 itself
    that of F; where the profile falls, as far again as s.
    """
    square = slope**2 - 2.0 * height * curvature
    root = np.sqrt(np.maximum(square, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):
        # of two forms the one without cancellation
        ds = np.where(slope > 0, -2.0 * height / (slope + root), (root - slope) / curvature)
        z = np.sqrt(np.maximum(height + rise, 0.0))
        straight = np.where(z > 0, 2.0 * z * (np.sqrt(rise) - z), -height) / slope
    rises = (square >= 0) & ((curvature > 0) | (slope > 0))
    return np.where(rises, ds, np.where(slope > 0, straight, s))


def solve_definite(a: np.ndarray, b: np.ndarray, moving: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Solve a x = b among the moving parameters: (x, whether that block of each matrix is positive definite).

    Parameters
    ----------
    a : (n, n_params, n_params) float64, symmetric
    b : (n, n_params, k) float64
    moving : (n, n_params) bool
        x is 0 for all others.
    """
    n_params = a.shape[1]
    diagonal = np.abs(np.diagonal(a, axis1=1, axis2=2))
    scale = np.where(moving & (diagonal > 0), 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 1.0)
    inside = moving[:, :, None] & moving[:, None, :]
    a = np.where(inside, a * scale[:, :, None] * scale[:, None, :], np.eye(n_params))
    x = np.where(moving[:, :, None], b * scale[:, :, None], 0.0)
    definite = np.isfinite(a).all(axis=(1, 2)) & np.isfinite(x).all(axis=(1, 2))
    # elimination without a search for pivots, which positive definite matrices do not need, on all matrices at once
    for j in range(n_params):
        pivot = a[:, j, j]
        definite &= pivot > PIVOT
        pivot = np.where(definite, pivot, 1.0)
        factor = np.where(definite[:, None], a[:, j + 1 :, j] / pivot[:, None], 0.0)
        a[:, j + 1 :, j:] -= factor[:, :, None] * a[:, j, None, j:]
        x[:, j + 1 :] -= factor[:, :, None] * x[:, j, None]
    for j in range(n_params - 1, -1, -1):
        x[:, j] -= np.einsum("ni,nik->nk", a[:, j, j + 1 :], x[:, j + 1 :])
        x[:, j] /= np.where(definite, a[:, j, j], 1.0)[:, None]
    return x * scale[:, :, None], definite


def _times(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    return np.einsum("nij,nj->ni", matrices, vectors)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ni,ni->n", a, b)


def _bracketed(driver: NumbaDriver | XlaDriver, rays: Rays, unit: np.ndarray, settings: Settings) -> Crossings:
    """The crossings by fits with the parameters of the rays held, which are the same ones on all rays.

    `unit` (n,) is the first distance at which the profile is taken.
    """
    n = len(rays)
    held = replace(settings, free=settings.free & ~rays.held[0])
    room, rise = rays.rooms(settings).min(axis=1), rays.level - rays.minimum
    found = Crossings(np.full(n, np.nan), rays.origin.copy(), np.full(n, FAILED, np.int8), np.zeros(n, np.int64))
    near = rays.origin.copy()  # the others where they were last found
    lower = np.zeros(n, dtype=bool)

    def height(distance: np.ndarray, ray: np.ndarray) -> np.ndarray:
        """Profile above the level; far above it where there is none."""
        ray = ray.astype(np.int64)
        along = rays.origin[ray] + distance[:, None] * rays.direction[ray]
        start = np.clip(np.where(rays.held[ray], along, near[ray]), settings.lower, settings.upper)
        fits = driver.fit(rays.toys[ray], start, held)
        # where another parameter lost its meaning, as the place of a peak without events, the height is known
        good = np.isin(fits.status, (Status.CONVERGED, Status.HESSIAN_NOT_POSDEF)) & np.isfinite(fits.fval)
        near[ray[good]] = fits.values[good]
        found.nfev[ray] += fits.nfev
        below = good & (fits.fval < rays.minimum[ray] - NEW_MINIMUM * settings.errordef)
        found.theta[ray[below]] = fits.values[below]
        lower[ray[below]] = True
        return np.where(good, fits.fval - rays.level[ray], HIGH * rise[ray])

    inside, outside = np.zeros(n), np.full(n, np.nan)
    for walked in WALK:
        open_ = np.flatnonzero(np.isnan(outside) & (inside < room) & ~lower)
        if not len(open_):
            break
        trial = np.minimum(unit[open_] * walked, room[open_])
        above = height(trial, open_) > 0
        outside[open_[above]] = trial[above]
        inside[open_[~above]] = trial[~above]
    ends = np.isnan(outside) & (inside >= room) & ~lower
    ray = np.flatnonzero(np.isfinite(outside) & ~lower)
    if len(ray):
        tolerances = {"xatol": 0.0, "xrtol": 1e-9, "fatol": 1e-9 * float(rise.min()), "frtol": 0.0}
        from scipy.optimize import elementwise  # seldom wanted, and slow to import

        at = elementwise.find_root(
            height, (inside[ray], outside[ray]), args=(ray,), tolerances=tolerances, maxiter=MAX_FITS
        )
        found.distance[ray] = at.x
        # a profile that jumps through the level, or ends below it, has no crossing
        crossed = np.abs(at.f_x) <= 1e-5 * rise[ray]
        found.status[ray[crossed]] = FOUND
        found.theta[ray[crossed]] = near[ray[crossed]]
    found.status[ends], found.distance[ends], found.theta[ends] = AT_LIMIT, room[ends], near[ends]
    found.status[lower] = LOWER
    found.distance[(found.status == FAILED) | lower] = np.nan
    return found
