"""The chi-square of measured points, with independent or correlated errors."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.linalg import solve_triangular

from engine.arguments import one_of
from engine.binned import checked_mask
from engine.cost import Cost, call_model, model_mistakes, parameter_names, scalar_result
from engine.data import Rows, as_float64
from engine.rowwise import all_of_row
from kernels.expectation import VectorKernel, expectation_kernel, expectation_outputs

__all__ = ["LeastSquares", "covariance_factor"]


class LeastSquares(Cost):
    """Chi-square of points with errors, sum_i (y_i - model(x_i))^2 / var_i, or r^T V^-1 r with r_i = y_i - model(x_i).

    With y errors alone the variance is yerror^2; with x errors it is the effective variance
    yerror^2 + (model'(x) xerror)^2, whose slope is taken by automatic differentiation. With a covariance matrix
    V = L L^T the residuals are L^-1 y - L^-1 model(x), which are independent and have errors 1.

    With another loss it is sum_i loss(z_i^2) of the residuals z_i in units of their errors, and outliers pull less. As
    in iminuit the errors of the fit come from its curvature; toys tell what they are worth.

    Parameters
    ----------
    model : callable
        `model(x, *parameters) -> y`, in `jax.numpy`. It is called with one point: x is a scalar, or `(d,)`.
    xerror : bool
        Whether the data hold x errors.
    covariance : (n, n), optional
        Covariance matrix V of the y of n points, the same for all toys. The data are then (x, y), without errors.
    mask : (n,) bool, optional
        Points that are used, as in `iminuit.cost`. The data keep their full shape, as does the covariance, of which
        the block of these points is taken; other points are not looked at.
    loss : {"linear", "soft_l1"} or callable
        As in `iminuit.cost`: "soft_l1" is 2 (sqrt(1 + z^2) - 1), a callable gets z^2 of one point and gives what takes
        its place, in `jax.numpy`, increasing and twice differentiable.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    Raises
    ------
    TypeError, ValueError
        If the covariance is not symmetric and positive definite or there are x errors or a loss beside it; if the mask
        leaves no point or has not the shape of the points; if the loss is not known.

    References
    ----------
    Orear, Am. J. Phys. 50 (1982) 912, for the effective variance.
    Aitken, Proc. R. Soc. Edinburgh 55 (1936) 42, for the covariance.
    """

    errordef = 1.0

    def __init__(
        self,
        model: Callable,
        xerror: bool = False,
        *,
        covariance: Any = None,
        mask: Any = None,
        loss: str | Callable = "linear",
        name: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        if not callable(loss):
            one_of("loss", loss, tuple(_LOSSES))
        self.loss = loss
        self.xerror = bool(xerror)
        self.names = parameter_names(model, name)
        self.mask = None if mask is None else checked_mask(mask, np.size(mask))
        self.covariance = None
        if covariance is not None:
            if self.xerror:
                raise ValueError("x errors cannot be combined with a covariance matrix: pass one of the two")
            if loss != "linear":
                raise ValueError("points with a covariance matrix have no loss of their own: pass one of the two")
            self.covariance = as_float64(covariance, "covariance").copy()
            self._factor = covariance_factor(self.covariance, "covariance", self.mask)
            self._whiten = np.tril(np.linalg.inv(self._factor))

    @property
    def arrays(self) -> tuple[str, ...]:
        """What the data are a tuple of."""
        return ("x", "y", "yerror", "xerror")[: 2 if self.covariance is not None else 4 if self.xerror else 3]

    def rows(self, data: Any) -> Rows:
        """Rows of points.

        Parameters
        ----------
        data : (x, y, yerror) or (x, y, yerror, xerror), or (x, y) with a covariance
            y is (n_toys, n). The others are shared by all toys, a number or (n,), x also (d, n); or, without a
            covariance, they have a leading toy axis: (n_toys, n), x also (n_toys, d, n). An x of the shape of y
            belongs to the toys.
        """
        wanted = self.arrays
        if not isinstance(data, tuple | list) or len(data) != len(wanted):
            raise TypeError(f"data must be ({', '.join(wanted)}), got {_found(data)}")
        given = {name: as_float64(value, name) for name, value in zip(wanted, data, strict=True)}
        y = given.pop("y")
        if y.ndim != 2:
            advice = ": for one toy pass y[None]" if y.ndim == 1 else ""
            raise ValueError(f"y must have shape (n_toys, n), got {y.shape}{advice}")
        n_toys, n = y.shape
        if self.covariance is not None and n != len(self.covariance):
            raise ValueError(f"y must have shape (n_toys, {len(self.covariance)}) as the covariance has, got {y.shape}")
        used = np.ones(n, dtype=bool) if self.mask is None else checked_mask(self.mask, n)
        y = y if self.mask is None else y[:, used]
        own, shared, bad = {"y": y}, {}, ~all_of_row(np.isfinite(y))
        for name, values in given.items():
            for column, array in _columns(name, values, n, n_toys if self.covariance is None else None):
                positive = name in ("yerror", "xerror")
                good = np.isfinite(array) & ((array > 0) if name == "yerror" else (array >= 0 if positive else True))
                good |= ~used
                if array.ndim == 2:
                    own[column] = array[:, used]
                    bad |= ~all_of_row(good)
                else:
                    if not good.all():
                        k = int(np.argmin(good))
                        rule = "positive" if name == "yerror" else "not negative" if positive else "finite"
                        raise ValueError(f"{name} must be {rule}, but point {k} has {array[k]:g}")
                    shared[column] = array[used]
        if self.covariance is not None:
            # not a product of matrices, whose rounding depends on the number of toys
            own["y"] = np.einsum("tj,kj->tk", y, self._whiten)
        return Rows(
            names=(*own, *shared),
            columns=np.stack([array.reshape(-1) for array in own.values()]),
            offsets=np.arange(n_toys + 1, dtype=np.int64) * y.shape[1],
            shared=np.stack(list(shared.values())) if shared else np.zeros((0, 0)),
            aux=np.zeros((n_toys, 0)),
            bad=bad,
        )

    def term(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        observables = [row[name] for name in sorted((n for n in row if n[0] == "x" and n != "xerror"), key=_number)]
        x = observables[0] if len(observables) == 1 else jnp.stack(observables)
        model = lambda x: call_model(self.model, x, theta)  # noqa: E731
        if not self.xerror:
            expected, variance = model(x), row["yerror"] ** 2
        else:
            expected, slope = jax.jvp(model, (x,), (jnp.ones_like(x),))
            variance = row["yerror"] ** 2 + (slope * row["xerror"]) ** 2
        scalar_result(self.model, expected, "y")
        squared = (row["y"] - expected) ** 2 / variance
        if not callable(self.loss):
            return _LOSSES[self.loss](squared)
        advice = "write it with jax.numpy, for the squared residual of one point"
        with model_mistakes(self.loss, "one point", advice, "the loss"):
            result = self.loss(squared)
        scalar_result(self.loss, result, "value", "the loss")
        return result

    # With a covariance every residual depends on all points: the expectation is a vector.

    def expected(self, *args: Any) -> Array:
        """The model at all points, of parameters and (n,) columns of x."""
        theta, columns = args[: len(self.names)], args[len(self.names) :]

        def at(*x: Any) -> Any:
            y = call_model(self.model, x[0] if len(x) == 1 else jnp.stack(x), theta)
            scalar_result(self.model, y, "y")
            return y

        return jax.vmap(at)(*columns)

    def whitened(self, *args: Any) -> Any:
        """L^-1 model(x)."""
        return self._whiten @ self.expected(*args)

    def _compiled(self, rows: Rows) -> VectorKernel:
        n_x = len(rows.shared)
        kernels = self.kept("vector kernels")
        if n_x not in kernels:
            kernels[n_x] = expectation_kernel(
                self.whitened, len(self.names), len(self._whiten), term=_square, n_shared=n_x
            )
        return kernels[n_x]

    @property
    def at_once(self) -> int:
        return 0 if self.covariance is None else len(self.names)

    def cheap_gradient(self, rows: Rows) -> bool:
        return self.covariance is not None

    def kernel(self, rows: Rows) -> Callable:
        return super().kernel(rows) if self.covariance is None else self._compiled(rows).kernel

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        """The columns of x; with a covariance, below what the kernel captured."""
        if self.covariance is None:
            return super().kernel_shared(rows)
        arrays = (*self._compiled(rows).shared, *rows.shared)
        width = max(map(len, arrays))
        return np.stack([np.pad(array, (0, width - len(array))) for array in arrays])

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        if self.covariance is None:
            return super().outputs(rows, tile, order, one_pass)
        sums = expectation_outputs(self.whitened, len(self.names), order, term=_square)
        n = len(self._whiten)

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, _, _),) = data
            return sums(theta, columns[:, :n], shared[0][:, :n])

        return of_leaf

    def reference(self, rows: Rows) -> Callable:
        if self.covariance is None:
            return super().reference(rows)
        n = len(self._factor)

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, _, _),) = data
            expected = self.expected(*(theta[i] for i in range(len(self.names))), *shared[0][:, :n])
            residual = columns[0, :n] - solve_triangular(jnp.asarray(self._factor), expected, lower=True)
            return residual @ residual

        return of_leaf


_LOSSES = {
    "linear": lambda squared: squared,
    "soft_l1": lambda squared: 2.0 * squared / (1.0 + jnp.sqrt(1.0 + squared)),  # without a difference
}


def _square(mu: Any, y: Any) -> Any:
    return (y - mu) ** 2


def covariance_factor(covariance: np.ndarray, name: str, mask: np.ndarray | None = None) -> np.ndarray:
    """The lower triangular L of a covariance matrix L L^T, or of its block of the points that are used.

    Raises
    ------
    ValueError
        If the matrix is not square and finite, not symmetric or not positive definite, or differs in length from the
        mask.
    """
    n = len(covariance) if covariance.ndim else 0
    if covariance.shape != (n, n) or not n:
        raise ValueError(f"{name} must be a matrix of shape (n, n), got {covariance.shape}")
    if mask is not None:
        used = checked_mask(mask, n)
        covariance = covariance[np.ix_(used, used)]
    variance = np.diagonal(covariance)
    if not np.isfinite(covariance).all() or not (variance > 0).all():
        raise ValueError(f"{name} must be finite, with a positive diagonal: it is a matrix of variances, not errors")
    error = np.sqrt(variance)
    correlation = covariance / error[:, None] / error
    asymmetry = np.abs(correlation - correlation.T)
    if asymmetry.max() > 1e-8:
        i, j = sorted(map(int, np.unravel_index(np.argmax(asymmetry), asymmetry.shape)))
        raise ValueError(
            f"{name} must be symmetric, but element ({i}, {j}) is {covariance[i, j]:g} and ({j}, {i}) is "
            f"{covariance[j, i]:g}"
        )
    correlation = 0.5 * (correlation + correlation.T)
    smallest = float(np.linalg.eigvalsh(correlation)[0])
    if smallest <= len(error) * np.finfo(float).eps:
        raise ValueError(
            f"{name} must be positive definite, but its correlation matrix has the eigenvalue {smallest:g}: "
            "leave out what the other entries determine"
        )
    return error[:, None] * np.linalg.cholesky(correlation)


def _number(column: str) -> int:
    return int(column[1:])


def _columns(name: str, array: np.ndarray, n: int, n_toys: int | None) -> list[tuple[str, np.ndarray]]:
    """Columns (n,) shared by all toys or (n_toys, n) of one input, by name; without n_toys all are shared."""
    first = "x0" if name == "x" else name
    if array.ndim == 0 and name != "x":
        return [(first, np.full(n, float(array)))]
    if array.shape in ((n,), (n_toys, n)):
        return [(first, array)]
    if name == "x" and array.ndim == 2 and array.shape[1] == n:
        return [(f"x{k}", column) for k, column in enumerate(array)]
    if name == "x" and array.ndim == 3 and (array.shape[0], array.shape[2]) == (n_toys, n):
        return [(f"x{k}", array[:, k]) for k in range(array.shape[1])]
    forms = [f"({n},)", f"({n_toys}, {n})", f"(d, {n})", f"({n_toys}, d, {n})"]
    forms = [form for form in forms[: 4 if name == "x" else 2] if n_toys is not None or "None" not in form]
    raise ValueError(f"{name} must have shape {' or '.join(forms)} to go with y of {n} points, got {array.shape}")


def _found(data: Any) -> str:
    return f"{len(data)} arrays" if isinstance(data, tuple | list) else type(data).__name__
