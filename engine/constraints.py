"""Constraints: external measurements of parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.binned import saturated_poisson
from engine.cost import Cost
from engine.data import Rows, as_float64, shown
from engine.leastsquares import covariance_factor
from engine.rowwise import all_of_row
from kernels.expectation import saturated, term_derivatives
from kernels.program import EXPECTED
from kernels.translate import compile_source

__all__ = ["GammaConstraint", "NormalConstraint", "PoissonConstraint"]


class _Constraint(Cost):
    """Measured values of some parameters, which are those of the constraint or the toy's own."""

    takes_data = False
    nonnegative = False  # whether a negative measurement is none

    def __init__(self, names: str | Sequence[str], value: Any) -> None:
        several = [names] if isinstance(names, str) else names
        if not isinstance(several, Sequence) or not all(isinstance(name, str) for name in several):
            raise TypeError(f"names must be a parameter or a sequence of parameters, got {shown(names)}")
        self.names = tuple(several)
        k = len(self.names)
        if len(set(self.names)) != k or not k:
            raise ValueError(f"names must be different parameters, got {self.names}")
        self.value = np.atleast_1d(as_float64(value, "value"))
        if self.value.shape != (k,) or not np.isfinite(self.value).all():
            raise ValueError(f"value must be {k} finite numbers for {', '.join(self.names)}, got {shown(value)}")
        if self.nonnegative and not (self.value >= 0).all():
            raise ValueError(f"value must not be negative, got {shown(value)}")

    def cheap_gradient(self, rows: Rows) -> bool:
        return True

    def _positive(self, name: str, given: Any) -> np.ndarray:
        """A positive number for each parameter."""
        k = len(self.names)
        array = as_float64(given, name)
        if array.shape not in ((), (k,)) or not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"{name} must be {k} positive numbers, got {shown(given)}")
        return np.array(np.broadcast_to(array, k))

    def rows(self, data: Any) -> Rows:
        """The measured values, which belong to no row.

        Parameters
        ----------
        data : None, (n_toys,) or (n_toys, k) array
            None: one toy, with the value of the constraint.
        """
        k = len(self.names)
        if data is None:
            measured = self.value[None]
        else:
            measured = as_float64(data, "measured values of the constraint")
            measured = measured[:, None] if measured.ndim == 1 and k == 1 else measured
            if measured.ndim != 2 or measured.shape[1] != k:
                raise ValueError(f"measured values must have shape (n_toys, {k}), got {measured.shape}")
        good = np.isfinite(measured) & (measured >= 0 if self.nonnegative else True)
        return Rows(
            names=(),
            columns=np.zeros((0, 0)),
            offsets=np.zeros(len(measured) + 1, dtype=np.int64),
            shared=np.zeros((0, 0)),
            aux=np.ascontiguousarray(measured),
            bad=~all_of_row(good),
        )


# Their derivatives are written down, so that hundreds of parameters cost nothing to compile.


class NormalConstraint(_Constraint):
    """An external measurement of one or several parameters, (theta - value)^T V^-1 (theta - value).

    Alone it is a chi-square; in a sum with a likelihood it enters as half of that.

    Parameters
    ----------
    names : str or sequence of str
        The parameters that were measured.
    value : float or (k,)
        The measured values. A toy may bring its own: the data of this cost, (n_toys,) or (n_toys, k).
    error : float, (k,) or (k, k)
        Standard deviations, or the covariance matrix V.

    Raises
    ------
    TypeError, ValueError
        If shapes do not match, an error is not positive, or the covariance is not symmetric and positive definite.
    """

    errordef = 1.0

    def __init__(self, names: str | Sequence[str], value: Any, error: Any) -> None:
        super().__init__(names, value)
        k = len(self.names)
        given = as_float64(error, "error")
        if given.ndim < 2:
            with np.errstate(over="ignore", under="ignore"):
                variance = self._positive("error", error) ** 2
            if not (np.isfinite(variance) & (variance > 0)).all():
                raise ValueError(f"the squares of error must be numbers that float64 can hold, got {shown(error)}")
            self.covariance = np.diag(variance)
        elif given.shape != (k, k):
            raise ValueError(f"error must be {k} positive numbers or a ({k}, {k}) covariance matrix, got {given.shape}")
        else:
            self.covariance = given
        inverse = np.linalg.inv(covariance_factor(self.covariance, "error"))
        self._inverse = inverse.T @ inverse
        self._uncorrelated = np.array_equal(self._inverse, np.diag(np.diag(self._inverse)))

    def kernel(self, rows: Rows) -> Callable:
        return compile_source(_UNCORRELATED if self._uncorrelated else _NORMAL)

    def curved(self) -> np.ndarray:
        return self._inverse != 0.0

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        """The inverse covariance matrix, row after row, or its diagonal where it has no other elements."""
        return np.array(np.diag(self._inverse) if self._uncorrelated else self._inverse).reshape(1, -1)

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        inverse, below = self._inverse, np.tril_indices(len(self.names))

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((_, measured, _),) = data
            slope = inverse @ (theta - measured)
            chi2 = jnp.dot(theta - measured, slope)
            parts = [jnp.stack([chi2, chi2]), 2.0 * slope, jnp.asarray(2.0 * inverse[below])]
            return jnp.concatenate(parts[: order + 1])

        return of_leaf

    def reference(self, rows: Rows) -> Callable:
        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            distance = theta - data[0][1]
            return distance @ jnp.asarray(self._inverse) @ distance

        return of_leaf


class PoissonConstraint(_Constraint):
    """Auxiliary counts n_i, Poisson distributed around m_i = scale_i theta_i: sum_i m_i - n_i + n_i log(n_i / m_i).

    The uncorrelated shape uncertainty of HistFactory ("shapesys"). In saturated form, zero where m = n.

    Parameters
    ----------
    names : str or sequence of str
        The parameters that were measured. Give them a limit at zero.
    value : float or (k,)
        The counts, which may be fractional or zero. A toy may bring its own: the data of this cost, (n_toys,) or
        (n_toys, k).
    scale : float or (k,)
        Counts that are expected for a parameter of 1.

    Raises
    ------
    TypeError, ValueError
        If shapes do not match, a count is negative, or a scale is not positive.

    References
    ----------
    Cranmer et al., CERN-OPEN-2012-016, sec. 4.2.
    """

    nonnegative = True

    def __init__(self, names: str | Sequence[str], value: Any, scale: Any = 1.0) -> None:
        super().__init__(names, value)
        self.scale = self._positive("scale", scale)
        self._unit = np.ones(len(self.names))  # counts for one unit of the measured values

    def kernel(self, rows: Rows) -> Callable:
        return compile_source(_POISSON)

    def curved(self) -> np.ndarray:
        return np.eye(len(self.names), dtype=bool)

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        """The scales, and the counts for one unit of the measured values."""
        return np.stack([self.scale, self._unit])

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        scale, below = self.scale, np.tril_indices(len(self.names))

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((_, measured, _),) = data
            terms, slope, curvature = term_derivatives(saturated)(scale * theta, self._unit * measured)
            curvature = 1.0 / (scale * theta) if order == EXPECTED else curvature
            total = jnp.stack([jnp.sum(terms), jnp.sum(jnp.abs(terms))])
            parts = [total, scale * slope, jnp.diag(scale**2 * curvature)[below]]
            return jnp.concatenate(parts[: order + 1])

        return of_leaf

    def reference(self, rows: Rows) -> Callable:
        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            n, mu = self._unit * data[0][1], self.scale * theta
            return jnp.sum(jnp.where(mu < 0, jnp.nan, saturated_poisson(n, mu)))

        return of_leaf


class GammaConstraint(PoissonConstraint):
    """An external measurement with a gamma-shaped likelihood, for a parameter that must not be negative.

    The Poisson likelihood of (value / error)^2 counts where theta value / error^2 are expected: its minimum is at
    `value`, with the curvature 1 / error^2.

    Parameters
    ----------
    names : str or sequence of str
        The parameters that were measured. Give them a limit at zero.
    value : float or (k,)
        The measured values, positive. A toy may bring its own, with the same scale: the data of this cost, (n_toys,) or
        (n_toys, k), positive or zero.
    error : float or (k,)
        Standard deviations.

    Attributes
    ----------
    scale : (k,) float64
        value / error^2, the counts for one unit of the parameter.

    Raises
    ------
    TypeError, ValueError
        If shapes do not match, or a value or an error is not positive.

    References
    ----------
    Cranmer et al., CERN-OPEN-2012-016, sec. 4.2.
    """

    def __init__(self, names: str | Sequence[str], value: Any, error: Any) -> None:
        super().__init__(names, value)
        if not (self.value > 0).all():
            raise ValueError(f"value must be positive, got {value}")
        with np.errstate(over="ignore", divide="ignore"):
            self.scale = self._unit = self.value / self._positive("error", error) ** 2
        if not (np.isfinite(self.scale) & (self.scale > 0)).all():
            raise ValueError(f"value / error^2 must be finite and positive, got {shown(self.scale)}")


_UNCORRELATED = """
def row_sums(theta, rows, shared, aux, begin, end, order, out):
    total = 0.0
    for i in range(len(theta)):
        slope = shared[0, i] * (theta[i] - aux[i])
        total += (theta[i] - aux[i]) * slope
        out[2 + i] = 2.0 * slope
    out[0] = total
    out[1] = total
    if order == FIRST:
        return
    k = 2 + len(theta)
    for i in range(len(theta)):
        for j in range(i):
            out[k] = 0.0
            k += 1
        out[k] = 2.0 * shared[0, i]
        k += 1
"""
_NORMAL = """
def row_sums(theta, rows, shared, aux, begin, end, order, out):
    n = len(theta)
    total = 0.0
    for i in range(n):
        slope = 0.0
        for j in range(n):
            slope += shared[0, i * n + j] * (theta[j] - aux[j])
        total += (theta[i] - aux[i]) * slope
        out[2 + i] = 2.0 * slope
    out[0] = total
    out[1] = total
    if order == FIRST:
        return
    k = 2 + n
    for i in range(n):
        for j in range(i + 1):
            out[k] = 2.0 * shared[0, i * n + j]
            k += 1
"""
_POISSON = """
def row_sums(theta, rows, shared, aux, begin, end, order, out):
    total, absolute, k = 0.0, 0.0, 2 + len(theta)
    for i in range(len(theta)):
        scale, n = shared[0, i], shared[1, i] * aux[i]
        m = scale * theta[i]
        term, slope, curvature = np.nan, np.nan, np.nan
        if n > 0.0:
            term = (m - n) - n * math.log1p((m - n) / n)
            slope = (m - n) / m
            curvature = n / (m * m)
        elif n == 0.0 and m >= 0.0:
            term, slope, curvature = m, 1.0, 0.0
        if order == EXPECTED:
            curvature = 1.0 / m
        total += term
        absolute += math.fabs(term)
        out[2 + i] = scale * slope
        if order != FIRST:
            for j in range(i):
                out[k] = 0.0
                k += 1
            out[k] = scale * scale * curvature
            k += 1
    out[0] = total
    out[1] = absolute
"""
