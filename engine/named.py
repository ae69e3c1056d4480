"""Arrays that know their parameters by name."""

from typing import Any, Self

import numpy as np

__all__ = ["NamedArray"]


class NamedArray(np.ndarray):
    """A read-only array whose last axes are the parameters: `values["mu"]`, `covariance["mu", "sigma"]`.

    Axes before them, as of toys, are taken whole where names alone are given: `values["mu"]` of many fits is (n_toys,),
    `values[3, "mu"]` a number. Positions work as ever, and whatever is computed from it is an ordinary array.
    """

    names: tuple[str, ...]
    n_named: int

    def __new__(cls, array: np.ndarray, names: tuple[str, ...], n_named: int = 1) -> Self:
        """Names of the last `n_named` axes."""
        named = np.asarray(array).view(cls)
        named.names, named.n_named = names, n_named
        named.flags.writeable = False
        return named

    def __array_finalize__(self, parent: Any) -> None:
        self.names, self.n_named = (), 0  # a view has other axes

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)

    def __reduce__(self) -> tuple:
        return NamedArray, (np.asarray(self), self.names, self.n_named)

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        named = [isinstance(each, str) for each in keys]
        if not any(named):
            return np.asarray(self)[key]
        if all(named) and len(keys) <= self.n_named:
            return np.asarray(self)[(..., *map(self._position, keys))][()]  # a number is no array of no axes
        if len(keys) != self.ndim or any(named[: self.ndim - self.n_named]):
            raise IndexError(
                f"{', '.join(map(repr, keys))}: names stand for the last {self.n_named} of {self.ndim} axes"
            )
        return np.asarray(self)[tuple(map(self._position, keys))]

    def _position(self, key: Any) -> Any:
        if not isinstance(key, str):
            return key
        if key not in self.names:
            raise KeyError(f"no parameter is called {key!r}; there are {', '.join(self.names)}")
        return self.names.index(key)

    def correlation(self) -> "NamedArray":
        """Of covariance matrices those of correlation, as of `iminuit.util.Matrix`: 0 where there is no variance."""
        if self.n_named != 2:
            raise TypeError("correlation is of covariance matrices, not of values")
        covariance = np.asarray(self)
        error = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
        scale = np.where(error == 0.0, 1.0, error)
        return NamedArray(covariance / scale[..., :, None] / scale[..., None, :], self.names, 2)

    def to_dict(self) -> dict[str, Any]:
        return dict(zip(self.names, self.tolist(), strict=True))

    def __repr__(self) -> str:
        if self.ndim != 1 or len(self.names) != len(self):
            return repr(np.asarray(self))
        return "<" + " ".join(f"{name}={value}" for name, value in self.to_dict().items()) + ">"
