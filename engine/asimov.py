"""Asimov data: the one toy whose counts, points and measured values are exactly those that are expected."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.arguments import start_points
from engine.binned import BinnedNLL, ExtendedBinnedNLL
from engine.constraints import NormalConstraint, PoissonConstraint
from engine.cost import Cost, called, check_cost
from engine.data import ExpectedEvents, Rows, as_float64
from engine.leastsquares import LeastSquares
from engine.poisson import PoissonNLL
from engine.ranges import RangeIntegral, number_of_events
from engine.simulated import Template
from engine.sums import SumCost, observables_of
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
    | `PoissonNLL`, `ExtendedBinnedNLL`, `Template` | expected counts |
    | `BinnedNLL` | the same, scaled to the total of `like` |
    | `LeastSquares` | y = model(x), with the x and the errors of `like` |
    | `NormalConstraint`, `GammaConstraint` | measured values = theta |
    | `PoissonConstraint` | counts = scale theta |
    | `ExtendedUnbinnedNLL` | Gauss-Legendre nodes x_k with weights density(x_k) dx_k |
    | `UnbinnedNLL` | the same, scaled to the number of events of `like` |
    | sum | a tuple with those of its costs |

    The weighted nodes make the sum over events an integral, so that differences of `fval` are those of the expected
    log-likelihood, and errors are those that are expected.

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
        If theta has no value for a parameter, `like` is not one toy in the form of the data, or `observable` is
        neither a range nor one for each cost.

    References
    ----------
    Cowan, Cranmer, Gross & Vitells, Eur. Phys. J. C 71 (2011) 1554, sec. 3.2.
    """
    check_cost(cost)
    if isinstance(theta, Mapping):
        theta = {name: value for name, value in theta.items() if name in cost.names}
    point = start_points(cost.names, theta, 1, "theta")[0]
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
    places = [[cost.names.index(name) for name in part.names] for part in cost.costs]
    return tuple(map(_of, cost.costs, (theta[place] for place in places), likes, observables_of(cost, observable)))


def _of(cost: Cost, theta: np.ndarray, like: Any, observable: Any) -> Any:
    if isinstance(cost, PoissonNLL | Template):
        return np.array(cost.model(*theta), dtype=np.float64)[None]
    if isinstance(cost, ExtendedBinnedNLL | BinnedNLL):
        counts = np.array(cost.contents(*theta), np.float64)
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
    observed = _rows_of(cost, like, "its total count").columns[0]
    used = slice(None) if cost.mask is None else cost.mask
    return counts * (observed.sum() / counts[used].sum())


def _points(cost: LeastSquares, theta: np.ndarray, like: Any) -> tuple:
    _rows_of(cost, like, "its x and errors")
    x, _, *errors = like
    at = as_float64(x, "x")
    at = at[0] if at.ndim == 3 or (at.ndim == 2 and len(at) == 1) else at
    y = jax.vmap(lambda each: cost.model(each, *theta), in_axes=-1)(jnp.asarray(at))
    return (x, np.array(y, np.float64)[None], *errors)


def _nodes(cost: UnbinnedNLL | ExtendedUnbinnedNLL, theta: np.ndarray, like: Any, observable: Any) -> ExpectedEvents:
    integral = cost.integral
    if integral is not None and not isinstance(integral, RangeIntegral):
        nodes = integral.points
    elif integral is not None:
        nodes = integral.nodes(max(N_NODES, integral.n_nodes))
    else:
        window = np.zeros(0) if observable is None else as_float64(observable, "observable")
        if window.shape != (2,) or not np.isfinite(window).all():
            raise NoAsimovError(
                f"the Asimov data of {called(cost.model)} need the finite range of one observable: pass "
                "observable=(lower, upper)"
            )
        nodes = RangeIntegral(cost, window, N_NODES).nodes(N_NODES)
    *x, dx = nodes
    at_node = lambda *at: cost.density(tuple(theta), {f"x{k}": each for k, each in enumerate(at)})  # noqa: E731
    density = np.array(jax.vmap(at_node)(*map(jnp.asarray, x)), np.float64)
    weights = dx * (np.exp(density) if cost.log else density)
    if not cost.extended:
        events = _rows_of(cost, like, "its number of events").leaves[0]
        weights *= number_of_events(events)[0] / weights.sum()
    return ExpectedEvents([x[0] if len(x) == 1 else np.stack(x)], [weights])


def _rows_of(cost: Cost, like: Any, what: str) -> Rows:
    """The rows of the one toy that tells `what`."""
    if like is None:
        raise NoAsimovError(f"the Asimov data need a toy that tells {what}: pass like=")
    rows = cost.rows(like)
    if len(rows) != 1:
        raise ValueError(f"like must be one toy, which tells {what}, got {len(rows)} toys")
    return rows
