"""Gaussian constraints: external measurements of parameters."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.costs import Cost
from engine.data import Rows, as_float64

__all__ = ["NormalConstraint"]


class NormalConstraint(Cost):
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
    ValueError
        If shapes do not match, an error is not positive, or the covariance is not symmetric and positive definite.
    """

    errordef = 1.0
    takes_data = False

    def __init__(self, names: str | Sequence[str], value: Any, error: Any) -> None:
        self.names = (names,) if isinstance(names, str) else tuple(names)
        k = len(self.names)
        self.value = np.atleast_1d(as_float64(value, "value"))
        error = as_float64(error, "error")
        if len(set(self.names)) != k or not k:
            raise ValueError(f"names must be different parameters, got {self.names}")
        if self.value.shape != (k,) or not np.isfinite(self.value).all():
            raise ValueError(f"value must be {k} finite numbers for {', '.join(self.names)}, got {value}")
        if error.ndim < 2:
            if error.shape not in ((), (k,)) or not (np.isfinite(error) & (error > 0)).all():
                raise ValueError(f"error must be {k} positive numbers or a ({k}, {k}) covariance matrix, got {error}")
            self.covariance = np.diag(np.broadcast_to(error, k) ** 2)
        else:
            if error.shape != (k, k) or not np.allclose(error, error.T) or not np.linalg.eigvalsh(error).min() > 0:
                raise ValueError(
                    f"error must be a symmetric, positive definite ({k}, {k}) covariance matrix, got {error.tolist()}"
                )
            self.covariance = error
        self._inverse = np.linalg.inv(self.covariance)

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
        return Rows(
            names=(),
            columns=np.zeros((0, 0)),
            offsets=np.zeros(len(measured) + 1, dtype=np.int64),
            shared=np.zeros((0, 0)),
            aux=np.ascontiguousarray(measured),
            bad=~np.isfinite(measured).all(axis=1),
        )

    term = None

    def rest(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        distance = [t - a for t, a in zip(theta, aux, strict=True)]
        total = 0.0
        for i, di in enumerate(distance):
            for j, dj in enumerate(distance):
                if self._inverse[i, j] != 0.0:
                    total = total + float(self._inverse[i, j]) * di * dj
        return total
