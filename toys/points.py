"""Toys with normal errors: points for a least-squares fit, and measured values of constraints.

A normal deviate is the quantile of a uniform number, either tail from its own side, so that both backends agree.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from engine.constraints import GammaConstraint, NormalConstraint, PoissonConstraint
from engine.data import as_float64
from engine.leastsquares import covariance_factor
from kernels import norm, randombits
from kernels.translate import compile_map
from toys.counts import CountTables, PoissonCounts
from toys.drawing import Form, Points, Row, Sampler, checked_theta, evaluated

__all__ = ["ConstraintValues", "NormalPoints"]


class NormalPoints(Sampler):
    """Points with normal errors: pseudo-data of `LeastSquares`, y = model(x) + noise.

    With x errors the measured x, too, is drawn around the true one in each toy. Numbers 0 to n - 1 of stream 0 of the
    toy's key make the noise of y, those of stream 1 that of x.

    Parameters
    ----------
    model : callable
        `model(x, *theta) -> y`, in jax.numpy, called with one point: x is a scalar, or `(d,)`; evaluated once, in
        float64.
    names : sequence of str
        Parameters, in the order of theta.
    x : (n,) or (d, n)
        True x.
    yerror : float or (n,), or None with a covariance
        Standard deviations.
    xerror : float or (n,), optional
    covariance : (n, n), optional
        Covariance matrix of y, instead of errors; the data are then (x, y).

    Raises
    ------
    TypeError, ValueError
        If a shape does not match, an error is not positive, the covariance is not symmetric and positive definite, or
        there is not exactly one of yerror and covariance.
    """

    def __init__(
        self,
        model: Callable,
        names: Sequence[str],
        x: ArrayLike,
        yerror: ArrayLike | None,
        xerror: ArrayLike | None = None,
        covariance: ArrayLike | None = None,
    ) -> None:
        self.model = model
        self.names = tuple(names)
        self.x = np.array(as_float64(x, "x"))
        if self.x.ndim not in (1, 2) or not np.isfinite(self.x).all():
            raise ValueError(f"x must be finite numbers of shape (n,) or (d, n), got shape {self.x.shape}")
        if (yerror is None) == (covariance is None):
            raise ValueError("pass yerror or covariance, and None for the other")
        if xerror is not None and (covariance is not None or self.x.ndim == 2):
            raise ValueError(
                "x errors go with y errors and x of shape (n,), not with a covariance or several observables"
            )
        n = self.x.shape[-1]
        self.errors = [_errors(e, name, n) for e, name in ((yerror, "yerror"), (xerror, "xerror")) if e is not None]
        if yerror is not None and not (self.errors[0] > 0).all():
            raise ValueError("yerror must be positive")
        if covariance is None:
            self.factor = self.errors[0]
        else:
            self.factor = covariance_factor(as_float64(covariance, "covariance"), "covariance")
            if len(self.factor) != n:
                raise ValueError(
                    f"covariance must have shape ({n}, {n}), as there are {n} points, got {self.factor.shape}"
                )
        self.form: Form = Row("y") if xerror is None else Points(("x", "y"))

    def prepare(self, theta: ArrayLike) -> np.ndarray:
        """Expected y, (n,).

        Raises
        ------
        ValueError
            If theta has the wrong length or is not finite, or the model is not finite at a point.
        """
        theta = checked_theta(theta, self.names)
        mean = evaluated(lambda *t: jax.vmap(lambda x: self.model(x, *t), in_axes=-1)(jnp.asarray(self.x)), *theta)
        if mean.shape != self.x.shape[-1:]:
            raise ValueError(f"the model must return a number for one x, got shape {mean.shape[1:]}")
        if not np.isfinite(mean).all():
            k = int(np.argmin(np.isfinite(mean)))
            raise ValueError(f"the model is {mean[k]} at point {k}, x = {self.x[..., k]}")
        return mean

    def draw(self, key: Array, mean: Array) -> Any:
        y = mean + _spread(_deviates(key, 0, len(self.factor)), self.factor)
        return y if len(self.errors) < 2 else (self.x + self.errors[1] * _deviates(key, 1, len(self.factor)), y)

    def throw(self, mean: np.ndarray, keys: np.ndarray) -> Any:
        y = _thrown(keys, 0, mean, self.factor)
        return y if len(self.errors) < 2 else (_thrown(keys, 1, self.x, self.errors[1]), y)

    def complete(self, mean: np.ndarray, drawn: Any) -> tuple:
        if len(self.errors) == 2:
            return (*drawn, *self.errors)
        # x of shape (d, n) for d toys would be taken for one row per toy
        own = self.x.ndim == 2 and self.errors and drawn.ndim == 2
        return (np.broadcast_to(self.x, (len(drawn), *self.x.shape)) if own else self.x, drawn, *self.errors)

    def size(self, mean: np.ndarray) -> int:
        return 2 * len(self.factor)


class ConstraintValues(Sampler):
    """Measured values of a constraint, drawn around the true parameters.

    Those of a `NormalConstraint` are normal with its covariance, those of a `PoissonConstraint` Poisson counts of mean
    scale theta, those of a `GammaConstraint` such counts divided by the scale. Value k takes number k of stream 0.

    Parameters
    ----------
    constraint : NormalConstraint, PoissonConstraint or GammaConstraint
        Its names are the parameters.

    Raises
    ------
    TypeError
        If it is something else.
    """

    form = Row("measured values")

    def __init__(self, constraint: NormalConstraint | PoissonConstraint) -> None:
        self._counts: PoissonCounts | None = None
        self._unit: np.ndarray | float = 1.0
        if isinstance(constraint, NormalConstraint):
            covariance = constraint.covariance
            diagonal = np.diagonal(covariance)
            alone = np.array_equal(covariance, np.diag(diagonal))
            self._factor = np.sqrt(diagonal) if alone else covariance_factor(covariance, "covariance")
        elif isinstance(constraint, PoissonConstraint):
            scale = constraint.scale
            self._counts = PoissonCounts(lambda *theta: scale * jnp.stack(theta), constraint.names)
            self._unit = scale if isinstance(constraint, GammaConstraint) else 1.0
        else:
            raise TypeError(
                f"measured values cannot be drawn for {type(constraint).__name__}: pass a sampler of your own"
            )
        self.names = constraint.names

    def prepare(self, theta: ArrayLike) -> np.ndarray | CountTables:
        """Tables of the counts, or the parameters.

        Raises
        ------
        ValueError
            If theta has the wrong length or is not finite, or an expected count is not possible.
        """
        return checked_theta(theta, self.names) if self._counts is None else self._counts.prepare(theta)

    def draw(self, key: Array, tables: Any) -> Array:
        if self._counts is not None:
            return self._counts.draw(key, tables)
        return tables + _spread(_deviates(key, 0, len(self.names)), self._factor)

    def throw(self, tables: Any, keys: np.ndarray) -> np.ndarray:
        if self._counts is not None:
            return self._counts.throw(tables, keys)
        return _thrown(keys, 0, tables, self._factor)

    def complete(self, tables: Any, drawn: Any) -> Any:
        return drawn / self._unit  # not where it is compiled: a division would become a product

    def size(self, tables: Any) -> int:
        return 2 * len(self.names)


def _errors(given: ArrayLike, name: str, n: int) -> np.ndarray:
    errors = as_float64(given, name)
    if errors.shape not in ((), (n,)) or not (np.isfinite(errors) & (errors >= 0)).all():
        raise ValueError(f"{name} must be {n} finite numbers, not negative, or one for all points, got {given}")
    return np.array(np.broadcast_to(errors, n))


def _deviates(key: Array, stream: int, n: int) -> Array:
    """The first n standard normal deviates of a stream, in JAX."""
    return norm.ppf(randombits.uniform(jax.random.fold_in(key, stream), n), 0.0, 1.0)


def _spread(deviates: Array, factor: np.ndarray) -> Array:
    """Noise with standard deviations (n,), or with the Cholesky factor (n, n) of a covariance."""
    return jnp.multiply(factor, deviates) if factor.ndim == 1 else jnp.dot(factor, deviates, precision="highest")


def _thrown(keys: np.ndarray, stream: int, mean: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Means plus noise, for the toys of these keys, by numba: (n_toys, n)."""
    shape = (len(keys), len(mean))
    z = np.empty(shape)
    counts = np.full(shape[0], shape[1], np.int64)
    starts = np.arange(shape[0], dtype=np.int64) * shape[1]
    randombits.map_uniforms(_quantile(), np.empty(0), keys, stream, starts, counts, z.reshape(1, -1))
    if factor.ndim == 1:
        z *= factor
        z += mean
        return z
    # not a matrix product, whose rounding depends on the number of toys
    y = np.tile(mean, (shape[0], 1))
    for j in range(shape[1]):
        y[:, j:] += factor[j:, j] * z[:, j, None]
    return y


@cache
def _quantile() -> Any:
    return compile_map(lambda u: norm.ppf(u, 0.0, 1.0), 0)
