"""Asimov data: the one toy whose counts, points and measured values are exactly those that are expected."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.arguments import start_points
from engine.binned import BinnedNLL, ExtendedBinnedNLL
from engine.constraints import NormalConstraint, PoissonConstraint
from engine.cost import Cost, called
from engine.data import Weighted, as_float64, ragged_events
from engine.leastsquares import LeastSquares
from engine.poisson import PoissonNLL
from engine.ranges import NumericalIntegral
from engine.sums import SumCost
from engine.unbinned import ExtendedUnbinnedNLL, UnbinnedNLL

__all__ = ["NoAsimovError", "asimov"]

N_NODES = 2048  # of unbinned data over the range of the observable


class NoAsimovError(ValueError):
    """There are no Asimov data of such a cost, or what they need was not given; the sentence tells which."""


def asimov(
    cost: Cost, theta: Mapping[str, float] | Sequence[float], like: Any = None, *, observable: Any = None
) -> Any:
    """The Asimov data of a cost: a fit of them returns theta.

    | cost | data |
    | --- | --- |
    | `PoissonNLL`, `ExtendedBinnedNLL` | expected counts |
    | `BinnedNLL` | the same, scaled to the total of `like` |
    | `LeastSquares` | y = model(x), with the x and the errors of `like` |
    | `NormalConstraint`, `GammaConstraint` | measured values = theta |
    | `PoissonConstraint` | counts = scale theta |
    | `ExtendedUnbinnedNLL` | Gauss-Legendre nodes x_k with weights density(x_k) dx_k |
    | `UnbinnedNLL` | the same, scaled to the number of events of `like` |
    | sum | a tuple with those of its costs |

    The weighted nodes make the sum over events an integral, so that differences of `fval` are those of the expected
    log-likelihood; their covariance, that of a weighted estimator, has no meaning.

    Parameters
    ----------
    cost : Cost
    theta : dict or (n_params,)
    like
        One toy in the form that `fit_batch` takes, from which comes what the model does not tell.
    observable : (lower, upper), optional
        Finite range of unbinned data without a fit range; for a sum, one entry for each cost, or one for all.

    Returns
    -------
    One toy, in the form that `fit_batch` takes.

    Raises
    ------
    NoAsimovError
        If there are none, or `like` or `observable` is needed and was not given.
    TypeError, ValueError
        If theta has no value for a parameter.

    References
    ----------
    Cowan, Cranmer, Gross & Vitells, Eur. Phys. J. C 71 (2011) 1554, sec. 3.2.
    """
    if not isinstance(cost, Cost):
        raise TypeError(f"cost must be a cost function such as ExtendedUnbinnedNLL(model), got {type(cost).__name__}")
    if isinstance(theta, Mapping):
        theta = {name: value for name, value in theta.items() if name in cost.names}
    point = start_points(cost.names, theta, 1)[0]
    with jax.enable_x64(True):
        return (
            _of_sum(cost, point, like, observable) if isinstance(cost, SumCost) else _of(cost, point, like, observable)
        )


def _of_sum(cost: SumCost, theta: np.ndarray, like: Any, observable: Any) -> tuple:
    n = len(cost.costs)
    if like is None or cost.is_bare(like):
        likes = [like if part.takes_data else None for part in cost.costs]
    elif isinstance(like, tuple) and len(like) == n:
        likes = list(like)
    else:
        raise TypeError(f"like must be a tuple with one entry for each of {n} costs, got {type(like).__name__}")
    single = observable is None or all(map(np.isscalar, observable))
    ranges = [observable] * n if single else list(observable)
    if len(ranges) != n:
        raise ValueError(f"observable must have one entry for each of {n} costs, got {observable!r}")
    places = [[cost.names.index(name) for name in part.names] for part in cost.costs]
    return tuple(map(_of, cost.costs, (theta[place] for place in places), likes, ranges))


def _of(cost: Cost, theta: np.ndarray, like: Any, observable: Any) -> Any:
    if isinstance(cost, PoissonNLL):
        return np.array(cost.model(*theta), dtype=np.float64)[None]
    if isinstance(cost, ExtendedBinnedNLL | BinnedNLL):
        counts = np.diff(np.array(jax.vmap(lambda edge: cost.model(edge, *theta))(jnp.asarray(cost.edges))))
        return (counts if isinstance(cost, ExtendedBinnedNLL) else _scaled(cost, counts, like))[None]
    if isinstance(cost, LeastSquares):
        return _points(cost, theta, like)
    if isinstance(cost, NormalConstraint):
        return theta[None].copy()
    if isinstance(cost, PoissonConstraint):
        return (cost.scale * theta / cost._unit)[None]
    if isinstance(cost, UnbinnedNLL | ExtendedUnbinnedNLL):
        return _nodes(cost, theta, like, observable)
    raise NoAsimovError(f"there are no Asimov data of {type(cost).__name__}")


def _scaled(cost: BinnedNLL, counts: np.ndarray, like: Any) -> np.ndarray:
    observed = as_float64(_needed(like, "its total count"), "counts")[0]
    observed = observed[:, 0] if observed.ndim == 2 else observed
    used = slice(None) if cost.mask is None else cost.mask
    return counts * (observed[used].sum() / counts[used].sum())


def _points(cost: LeastSquares, theta: np.ndarray, like: Any) -> tuple:
    given = list(_needed(like, "its x and errors"))
    x, y = (as_float64(array, name) for array, name in zip(given[:2], ("x", "y"), strict=True))
    x = x[0] if x.ndim == 3 or (x.ndim == 2 and len(x) == 1) else x
    given[1] = np.array(jax.vmap(lambda at: cost.model(at, *theta), in_axes=-1)(jnp.asarray(x)), np.float64)[None]
    if given[1].shape != y.shape:
        raise ValueError(f"like must be one toy of points, with y of shape (1, n), got {y.shape}")
    return tuple(given)


def _nodes(cost: UnbinnedNLL | ExtendedUnbinnedNLL, theta: np.ndarray, like: Any, observable: Any) -> Weighted:
    if cost.integral is None and (
        observable is None or np.shape(observable) != (2,) or not np.isfinite(observable).all()
    ):
        raise NoAsimovError(
            f"the Asimov data of {called(cost.model)} need the finite range of one observable: pass "
            "observable=(lower, upper)"
        )
    integral = cost.integral or NumericalIntegral(cost, observable, N_NODES)
    x, dx = integral.nodes(max(N_NODES, integral.n_nodes))
    density = np.array(jax.vmap(lambda at: cost.density(tuple(theta), {"x0": at}))(jnp.asarray(x)), np.float64)
    weights = dx * (np.exp(density) if cost.log else density)
    if not cost.extended:
        events = _needed(like, "its number of events")
        weighted = events.ragged()[1].sum() if isinstance(events, Weighted) else _number_inside(cost, events)
        weights *= weighted / weights.sum()
    return Weighted([x], [weights])


def _number_inside(cost: Any, events: Any) -> float:
    values = ragged_events(events).values
    return float(values.shape[-1] if cost.integral is None else cost.integral.contains(values).sum())


def _needed(like: Any, what: str) -> Any:
    if like is None:
        raise NoAsimovError(f"the Asimov data need a toy that tells {what}: pass like=")
    return like
