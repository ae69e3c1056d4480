"""What `fit_batch` returns: the fits of all toys, one of them, and their summary.

Conventions, as in iminuit: fixed parameters and those at an active limit have error and covariance 0 (the
covariance is the inverse of the free block of the Hessian, times 2 errordef). A toy that failed keeps its
row, with `valid` false.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.arguments import start_points
from engine.named import NamedArray
from engine.printing import fit_tables, result_line, summary_table
from engine.status import Status

if TYPE_CHECKING:
    import pandas

    from engine.drivers import Problem
    from engine.minos import MinosResult
    from engine.profile import Contour, Profile

# dtype and number of parameter axes after the toy axis
_ARRAYS: dict[str, tuple[type, int]] = {
    "values": (np.float64, 1),
    "errors": (np.float64, 1),
    "covariance": (np.float64, 2),
    "fval": (np.float64, 0),
    "edm": (np.float64, 0),
    "valid": (np.bool_, 0),
    "status": (np.int8, 0),
    "nfev": (np.int64, 0),
    "at_limit": (np.bool_, 1),
    "has_posdef_covar": (np.bool_, 0),
    "rescued": (np.bool_, 0),
}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Fit:
    """One fit: `result[i]`. The attributes are those of `FitResult` without the toy axis.

    `values`, `errors`, `covariance` and `at_limit` also take names: `fit.values["mu"]`.
    """

    names: tuple[str, ...]
    values: NamedArray
    errors: NamedArray
    covariance: NamedArray
    fval: float
    edm: float
    valid: bool
    status: Status
    nfev: int
    at_limit: NamedArray
    has_posdef_covar: bool
    rescued: bool
    errordef: float
    backend: str
    device: str

    def __str__(self) -> str:
        return "\n".join(table.text() for table in fit_tables(self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "\n".join(table.html() for table in fit_tables(self))


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """Counts of toys, and the parameters of the valid ones.

    Attributes
    ----------
    n_toys, n_valid : int
        `n_toys == n_valid + sum(failed.values())`: no toy is left out.
    n_at_limit, n_rescued : int
        Toys with any parameter at a limit, and rescued toys; among all toys, valid or not.
    failed : Counter, Status -> int
        All toys that are not valid, by status. `failed[Status.CONVERGED]` counts those that met the
        convergence criterion but are not valid. A status that did not occur counts 0.
    mean, std : (n_params,) float64
        Mean and standard deviation (n - 1 in the denominator) of the values of the valid toys. NaN without
        any, the standard deviation also with a single one.
    mean_error : (n_params,) float64
        Mean of the errors of the valid toys, without errors of 0 (fixed or at an active limit). NaN without
        any.
    """

    names: tuple[str, ...]
    n_toys: int
    n_valid: int
    n_at_limit: int
    n_rescued: int
    failed: Counter[Status]
    mean: np.ndarray
    std: np.ndarray
    mean_error: np.ndarray

    def __str__(self) -> str:
        return summary_table(self).text()

    def _repr_html_(self) -> str:
        return summary_table(self).html()


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """The fits of all toys, in the order of the toys.

    The arrays are read-only views of what was given, so that nobody edits a result by accident; take a copy
    to change one. `result[i]` is one `Fit`; `result[a:b]`, `result[mask]` and `result[indices]` are again a
    `FitResult`. `values`, `errors`, `covariance` and `at_limit` take names, too: `result.values["mu"]` is (n_toys,).

    Parameters
    ----------
    names : tuple of str
        Parameters, in the order of the columns.
    values, errors : (n_toys, n_params) float64
        In the units of each parameter. An error is 0 where the parameter is fixed or at an active limit.
    covariance : (n_toys, n_params, n_params) float64
        Rows and columns of fixed parameters and those at an active limit are 0.
    fval, edm : (n_toys,) float64
        Cost at `values`, and estimated distance to the minimum, in units of the cost.
    valid : (n_toys,) bool
    status : (n_toys,) int8
        Integers of `Status`.
    nfev : (n_toys,) int64
        Evaluations of the cost with gradient and Hessian; of templates with many parameters most without the Hessian.
        Those of retries add up; those of MIGRAD, and of the points among which a new start is chosen, do not count.
    at_limit : (n_toys, n_params) bool
        The value equals a limit and the gradient pushes outward.
    has_posdef_covar, rescued : (n_toys,) bool
    errordef : float
        0.5 for a negative log-likelihood, 1 for a chi-square.
    backend, device : str
        What ran the fits; the choice where `"auto"` was asked for.
    problem : Problem, optional
        Cost and data, which `minos`, `profile` and `contour` need; neither pickled nor stored, and the arrays of the
        data not copied. None for a result that was read from a file or joined from several.

    Raises
    ------
    ValueError
        If a shape, a dtype, a name, a status or `errordef` is not as above.
    """

    names: tuple[str, ...]
    values: np.ndarray
    errors: np.ndarray
    covariance: np.ndarray
    fval: np.ndarray
    edm: np.ndarray
    valid: np.ndarray
    status: np.ndarray
    nfev: np.ndarray
    at_limit: np.ndarray
    has_posdef_covar: np.ndarray
    rescued: np.ndarray
    errordef: float
    backend: str
    device: str
    problem: Problem | None = None

    def __post_init__(self) -> None:
        names = tuple(self.names)
        strings = not isinstance(self.names, str) and all(isinstance(name, str) for name in names)
        if not strings or len(set(names)) < len(names):
            raise ValueError(f"names must be different strings, got {self.names!r}")
        if self.errordef not in (0.5, 1.0):
            raise ValueError(f"errordef must be 0.5 or 1, got {self.errordef}")
        n_toys = (*np.shape(self.values), 0)[0]
        checked = {
            field: _checked(field, getattr(self, field), n_toys=n_toys, n_params=len(names)) for field in _ARRAYS
        }
        named = {
            field: NamedArray(array, names, _ARRAYS[field][1]) for field, array in checked.items() if _ARRAYS[field][1]
        }
        for field, value in (checked | named | {"names": names, "errordef": float(self.errordef)}).items():
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key: Any) -> Fit | FitResult:
        # True and False are integers to Python, but not positions
        if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
            return self._fit(int(key))
        if not isinstance(key, slice):
            key = np.arange(len(self))[key]
            if key.ndim != 1:
                raise IndexError("a result has one axis, the toys: take an integer, a slice, a mask or indices")
        problem = self.problem and dataclasses.replace(self.problem, toys=self.problem.toys[key])
        return dataclasses.replace(self, **{field: getattr(self, field)[key] for field in _ARRAYS}, problem=problem)

    def _fit(self, index: int) -> Fit:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no toy {index}: the result holds {len(self)} toys")
        entries: dict[str, Any] = {}
        for field, (_, parameter_axes) in _ARRAYS.items():
            entry = getattr(self, field)[index]
            entries[field] = NamedArray(entry, self.names, parameter_axes) if parameter_axes else entry.item()
        entries["status"] = Status(entries["status"])
        scalars = {field: getattr(self, field) for field in ("names", "errordef", "backend", "device")}
        return Fit(**entries, **scalars)

    def __iter__(self) -> Iterator[Fit]:
        return (self._fit(index) for index in range(len(self)))

    @classmethod
    def concatenate(cls, results: Sequence[FitResult]) -> FitResult:
        """Join results toy after toy; where backends or devices differ, all are listed, as in `"jax+numba"`.

        Raises
        ------
        TypeError, ValueError
            If there are none or others than FitResult, or their `names` or `errordef` differ.
        """
        results = list(results)
        if not results:
            raise ValueError("concatenate needs at least one result")
        first = results[0]
        for position, other in enumerate(results):
            if not isinstance(other, FitResult):
                raise TypeError(f"concatenate joins FitResults, but result {position} is {type(other).__name__}")
            for field in ("names", "errordef"):
                mine, theirs = getattr(first, field), getattr(other, field)
                if mine != theirs:
                    raise ValueError(
                        f"results must agree in {field}: result 0 has {mine}, result {position} has {theirs}"
                    )

        def listed(field: str) -> str:
            return "+".join(sorted({part for result in results for part in getattr(result, field).split("+")}))

        arrays: dict[str, Any] = {
            field: np.concatenate([getattr(result, field) for result in results]) for field in _ARRAYS
        }
        return dataclasses.replace(first, **arrays, backend=listed("backend"), device=listed("device"), problem=None)

    def replaced(self, rows: np.ndarray, other: FitResult) -> FitResult:
        """The same with some fits, (n,) int or (n_toys,) bool, taken from another result."""
        arrays: dict[str, Any] = {field: np.array(getattr(self, field)) for field in _ARRAYS}
        for field, array in arrays.items():
            array[rows] = getattr(other, field)
        return dataclasses.replace(self, **arrays)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "problem": None}

    def minos(self, *names: str, cl: float | None = None) -> MinosResult:
        """MINOS intervals of these parameters, by default of all free ones, for every toy: see `engine.minos`."""
        from engine.minos import minos_of  # which itself makes results

        return minos_of(self, names, cl)

    def profile(self, name: str, **options: Any) -> Profile:
        """The profile of a parameter for every toy, as `Minuit.mnprofile`: see `engine.profile` for the options."""
        from engine.profile import profile_of

        return profile_of(self, name, **options)

    def contour(self, x: str, y: str, **options: Any) -> Contour:
        """The contour of two parameters for every toy, as `Minuit.mncontour`: see `engine.contour` for the options."""
        from engine.profile import contour_of

        return contour_of(self, x, y, **options)

    @property
    def free(self) -> np.ndarray:
        """Parameters that were not held, (n_params,) bool, as far as the valid fits tell: with error or on a limit.

        All, where no fit is valid.
        """
        return ((self.errors > 0) | self.at_limit)[self.valid].any(axis=0) | (not self.valid.any())

    def pulls(self, truth: Mapping[str, Any] | np.ndarray) -> np.ndarray:
        """(value - truth) / error of each parameter of each toy.

        Parameters
        ----------
        truth : dict, or array of shape (n_params,) or (n_toys, n_params)
            True values; a dict names every parameter, each with a number or an array (n_toys,).

        Returns
        -------
        (n_toys, n_params) float64, dimensionless. NaN where the toy is not valid or the error is 0, that is,
        where the parameter is fixed or at an active limit; `summary()` counts failures and limits.

        Raises
        ------
        ValueError
            If names are missing or unknown, a shape is wrong, or a true value is not finite.
        """
        theta_true = start_points(self.names, truth, len(self), "truth")
        usable = self.valid[:, None] & (self.errors > 0)
        pulls = np.full(self.values.shape, np.nan)
        with np.errstate(over="ignore"):
            np.subtract(self.values, theta_true, out=pulls, where=usable)
            np.divide(pulls, self.errors, out=pulls, where=usable)
        return pulls

    def summary(self) -> Summary:
        """Count how the fits ended, and average the parameters of the valid ones."""
        values, errors = self.values[self.valid], self.errors[self.valid]
        n_valid = len(values)
        measured = errors != 0
        n_measured = measured.sum(axis=0)
        nan = np.full(len(self.names), np.nan)
        return Summary(
            names=self.names,
            n_toys=len(self),
            n_valid=n_valid,
            n_at_limit=int(self.at_limit.any(axis=1).sum()),
            n_rescued=int(self.rescued.sum()),
            failed=Counter(Status(status) for status in self.status[~self.valid].tolist()),
            mean=values.mean(axis=0) if n_valid else nan,
            std=values.std(axis=0, ddof=1) if n_valid > 1 else nan,
            mean_error=np.divide(errors.sum(axis=0), n_measured, out=nan.copy(), where=n_measured > 0),
        )

    def to_dataframe(self) -> pandas.DataFrame:
        """One row per toy, for pandas; the covariance is left out.

        Columns are each parameter `p` as `p`, `p_error`, `p_at_limit`, and `fval`, `edm`, `valid`, `status`,
        `status_name`, `nfev`, `has_posdef_covar`, `rescued`. The value of a parameter whose name is taken by
        another column, as `valid` would be, is found under `p_value`.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("to_dataframe needs pandas: pip install 'batchfit[data]'") from None
        per_toy: dict[str, Any] = {field: getattr(self, field) for field, (_, axes) in _ARRAYS.items() if axes == 0}
        per_toy["status_name"] = [Status(status).name for status in self.status.tolist()]
        taken = {*per_toy, *(name + suffix for name in self.names for suffix in ("_error", "_at_limit"))}
        columns: dict[str, Any] = {}
        for i, name in enumerate(self.names):
            column = name
            while column in taken or (column != name and column in self.names):
                column += "_value"
            taken.add(column)
            columns[column] = self.values[:, i]
            columns[name + "_error"] = self.errors[:, i]
            columns[name + "_at_limit"] = self.at_limit[:, i]
        return pandas.DataFrame(columns | per_toy)

    def __repr__(self) -> str:
        return result_line(self)

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def _checked(field: str, array: Any, *, n_toys: int, n_params: int) -> np.ndarray:
    """Read-only view of `array` with the dtype of the field, or ValueError."""
    dtype, parameter_axes = _ARRAYS[field]
    array = np.asarray(array)
    shape = (n_toys,) + (n_params,) * parameter_axes
    if array.shape != shape:
        axes = "(" + ", ".join(["n_toys", "n_params", "n_params"][: 1 + parameter_axes]) + ")"
        raise ValueError(f"{field} must have shape {axes} = {shape}, got {array.shape}")
    if not np.can_cast(array.dtype, dtype, casting="same_kind"):
        raise ValueError(f"{field} must be of dtype {np.dtype(dtype)}, got {array.dtype}")
    # before the cast to int8, which would make 256 a 0
    if field == "status" and not np.isin(array, list(Status)).all():
        raise ValueError(f"status must hold integers of Status, 0 to {max(Status):d}, got {np.unique(array)}")
    view = array.astype(dtype, copy=False).view()
    view.flags.writeable = False
    return view
