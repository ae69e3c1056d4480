"""The chi-square of measured points."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.costs import Cost, call_model, parameter_names, scalar_result
from engine.data import Rows, as_float64

__all__ = ["LeastSquares"]


class LeastSquares(Cost):
    """Chi-square of points with errors, sum_i (y_i - model(x_i))^2 / var_i.

    With y errors alone the variance is yerror^2; with x errors it is the effective variance
    yerror^2 + (model'(x) xerror)^2, whose slope is taken by automatic differentiation.

    Parameters
    ----------
    model : callable
        `model(x, *parameters) -> y`, in `jax.numpy`. It is called with one point: x is a scalar, or `(d,)`.
    xerror : bool
        Whether the data hold x errors.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    References
    ----------
    Orear, Am. J. Phys. 50 (1982) 912, for the effective variance.
    """

    errordef = 1.0

    def __init__(self, model: Callable, xerror: bool = False, *, name: Sequence[str] | None = None) -> None:
        self.model = model
        self.xerror = bool(xerror)
        self.names = parameter_names(model, name)

    def rows(self, data: Any) -> Rows:
        """Rows of points.

        Parameters
        ----------
        data : (x, y, yerror) or (x, y, yerror, xerror)
            y is (n_toys, n). The others are shared by all toys, a number or (n,), x also (d, n); or they have a leading
            toy axis: (n_toys, n), x also (n_toys, d, n). An x of the shape of y belongs to the toys.
        """
        wanted = ("x", "y", "yerror", "xerror") if self.xerror else ("x", "y", "yerror")
        if not isinstance(data, tuple | list) or len(data) != len(wanted):
            raise TypeError(f"data must be ({', '.join(wanted)}), got {_found(data)}")
        given = {name: as_float64(value, name) for name, value in zip(wanted, data, strict=True)}
        y = given["y"]
        if y.ndim != 2:
            raise ValueError(f"y must have shape (n_toys, n), got {y.shape}")
        own, shared, bad = {"y": y}, {}, ~np.isfinite(y).all(axis=1)
        for name in wanted:
            if name == "y":
                continue
            for column, array in _columns(name, given[name], y.shape):
                positive = name in ("yerror", "xerror")
                good = np.isfinite(array) & ((array > 0) if name == "yerror" else (array >= 0 if positive else True))
                if array.ndim == 2:
                    own[column] = array
                    bad |= ~good.all(axis=1)
                else:
                    if not good.all():
                        k = int(np.argmin(good))
                        rule = "positive" if name == "yerror" else "not negative" if positive else "finite"
                        raise ValueError(f"{name} must be {rule}, but point {k} has {array[k]:g}")
                    shared[column] = array
        n_toys, n = y.shape
        return Rows(
            names=(*own, *shared),
            columns=np.stack([array.reshape(-1) for array in own.values()]),
            offsets=np.arange(n_toys + 1, dtype=np.int64) * n,
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
        return (row["y"] - expected) ** 2 / variance


def _number(column: str) -> int:
    return int(column[1:])


def _columns(name: str, array: np.ndarray, shape: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    """Columns (n,) shared by all toys or (n_toys, n) of one input, by name."""
    n_toys, n = shape
    first = "x0" if name == "x" else name
    if array.ndim == 0 and name != "x":
        return [(first, np.full(n, float(array)))]
    if array.shape in ((n,), (n_toys, n)):
        return [(first, array)]
    if name == "x" and array.ndim == 2 and array.shape[1] == n:
        return [(f"x{k}", column) for k, column in enumerate(array)]
    if name == "x" and array.ndim == 3 and (array.shape[0], array.shape[2]) == shape:
        return [(f"x{k}", array[:, k]) for k in range(array.shape[1])]
    raise ValueError(
        f"{name} must have shape ({n},) or ({n_toys}, {n}) to go with y of shape {shape}, got {array.shape}"
    )


def _found(data: Any) -> str:
    return f"{len(data)} arrays" if isinstance(data, tuple | list) else type(data).__name__
