"""Cost functions, named and called as those of `iminuit.cost`, but without the data: those go to `fit_batch`.

Every cost is `sum over rows of term(theta, row) + rest(theta, aux)`. A cost holds the model and says how its data
become rows; values, derivatives and minimisation are the drivers' business.
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax import errors as jax_errors

from engine.data import Rows, ragged_events
from kernels.program import Program, build_program

__all__ = ["Cost", "ExtendedUnbinnedNLL", "UnbinnedNLL"]


class Cost:
    """A model and how it is compared with data.

    Attributes
    ----------
    names : tuple of str
        Parameters, in the order of the model's signature.
    errordef : float
        0.5 for a negative log-likelihood, 1 for a chi-square (as `iminuit.Minuit.errordef`).
    """

    names: tuple[str, ...]
    errordef: float = 0.5

    def rows(self, data: Any) -> Rows:
        """Data in the form in which a driver reads them; ValueError or TypeError where they have no such form."""
        raise NotImplementedError

    def term(self, *args: Any) -> Any:
        """What one row adds: `term(*theta, *columns, *shared) -> ()`."""
        raise NotImplementedError

    #: `rest(*theta, *columns, *shared, *aux) -> ()`: what is added once; None if there is nothing.
    rest: Callable | None = None

    def program(self, rows: Rows) -> Program:
        """The translated cost for data of this form.

        Raises
        ------
        kernels.graph.UntranslatableError
            If the model uses an operation that has no scalar form.
        TypeError, ValueError
            If the model cannot be evaluated for one row, or its result has the wrong form.
        """
        form = (rows.columns.shape[0], rows.shared.shape[0], rows.aux.shape[1])
        programs = self.__dict__.setdefault("_programs", {})
        if form not in programs:
            n_columns, n_shared, n_aux = form
            program = build_program(
                self.term, self.rest, n_params=len(self.names), n_columns=n_columns, n_shared=n_shared, n_aux=n_aux
            )
            # the first of two threads wins: what is compiled is kept by the identity of the program
            if programs.setdefault(form, program).graph.holds_float32:
                warnings.warn(
                    "the model holds an array of float32 constants, which are good to 7 digits only: make it with "
                    "numpy in float64, or under jax.enable_x64",
                    stacklevel=2,
                )
        return programs[form]


class _Unbinned(Cost):
    def __init__(self, model: Callable, *, log: bool = False, name: Sequence[str] | None = None) -> None:
        self.model = model
        self.log = log
        self.names = parameter_names(model, name)

    def rows(self, data: Any) -> Rows:
        """Rows of unbinned data; every event is a row, its observables are the columns.

        Parameters
        ----------
        data : list of (n,) or (d, n) arrays, (n_toys, n) or (n_toys, d, n) array, or `engine.Ragged`
        """
        events = ragged_events(data)
        columns = events.values if events.values.ndim == 2 else events.values[None]
        n_toys = len(events)
        bad = np.zeros(n_toys, dtype=bool)
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(np.sum(columns))  # one cheap pass; the second only where it must be
        if suspect:
            wrong = np.flatnonzero(~np.isfinite(columns).all(axis=0))
            bad[np.searchsorted(events.offsets, wrong, side="right") - 1] = True
        return Rows(columns, events.offsets, np.zeros((0, 0)), np.zeros((n_toys, 0)), bad)

    def evaluate(self, args: Sequence) -> Any:
        """The model at one event: `args` are the parameters and the observables."""
        theta, columns = args[: len(self.names)], args[len(self.names) :]
        x = columns[0] if len(columns) == 1 else jnp.stack(columns)
        return call_model(self.model, x, theta)

    def minus_log(self, density: Any) -> Any:
        scalar_result(self.model, density, "density")
        return -density if self.log else -jnp.log(density)


class UnbinnedNLL(_Unbinned):
    """Negative log-likelihood of unbinned data, -sum_i log pdf(x_i).

    Parameters
    ----------
    pdf : callable
        `pdf(x, *parameters) -> density`, normalised over the range of the data; in `jax.numpy`. It is called with one
        event: x is a scalar, or `(d,)` for d observables.
    log : bool
        True if the model returns the logarithm of the density.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.
    """

    def __init__(self, pdf: Callable, *, log: bool = False, name: Sequence[str] | None = None) -> None:
        super().__init__(pdf, log=log, name=name)

    def term(self, *args: Any) -> Any:
        return self.minus_log(self.evaluate(args))


class ExtendedUnbinnedNLL(_Unbinned):
    """Extended negative log-likelihood of unbinned data, integral - sum_i log density(x_i).

    Parameters
    ----------
    scaled_pdf : callable
        `scaled_pdf(x, *parameters) -> (integral, density)`: the expected number of events in the range, and their
        density; in `jax.numpy`. It is called with one event: x is a scalar, or `(d,)` for d observables. The integral
        must not depend on x.
    log : bool
        True if the model returns the logarithm of the density.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    References
    ----------
    Barlow, NIM A297 (1990) 496-506, eq. 1.6.
    """

    def __init__(self, scaled_pdf: Callable, *, log: bool = False, name: Sequence[str] | None = None) -> None:
        super().__init__(scaled_pdf, log=log, name=name)

    def _pair(self, args: Sequence) -> tuple:
        result = self.evaluate(args)
        if not isinstance(result, tuple | list) or len(result) != 2:
            got = type(result).__name__ + (f" of {len(result)}" if isinstance(result, tuple | list) else "")
            got = "one array" if isinstance(result, Array) else got
            raise TypeError(f"{_called(self.model)} must return (integral, density), got {got}")
        return tuple(result)

    def term(self, *args: Any) -> Any:
        return self.minus_log(self._pair(args)[1])

    def rest(self, *args: Any) -> Any:
        integral = self._pair(args)[0]
        scalar_result(self.model, integral, "integral")
        return jnp.asarray(integral, dtype=float)


def parameter_names(model: Callable, name: Sequence[str] | None) -> tuple[str, ...]:
    """Names of a model's parameters: those given, else those of its signature without the first argument.

    Raises
    ------
    TypeError, ValueError
        If the model is not callable or has no such signature, or names are given twice.
    """
    if not callable(model):
        raise TypeError(f"the model must be a function, got {type(model).__name__}")
    if name is not None:
        if isinstance(name, str) or not all(isinstance(each, str) for each in name):
            raise TypeError(f"name must be a sequence of names, got {name!r}")
        names = tuple(name)
    else:
        try:
            parameters = list(inspect.signature(model).parameters.values())
        except (TypeError, ValueError):
            raise ValueError(f"{_called(model)} does not tell its parameters: pass name=[...]") from None
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
            raise ValueError(f"{_called(model)} has *args or keywords: pass name=[...] for its positional parameters")
        names = tuple(p.name for p in parameters[1:])
    if not names:
        raise ValueError(f"{_called(model)} has no parameters after x")
    if len(set(names)) != len(names):
        raise ValueError(f"parameter names must differ, got {names}")
    return names


def call_model(model: Callable, x: Any, theta: Sequence) -> Any:
    """The model at one row; what goes wrong inside it is told in one sentence."""
    mistakes = (
        TypeError,
        ValueError,
        IndexError,
        jax_errors.JAXTypeError,
        jax_errors.JAXIndexError,
        jax_errors.TracerBoolConversionError,
    )
    try:
        return model(x, *theta)
    except mistakes as error:
        reason = str(error).strip().split("\n")[0]
        raise TypeError(
            f"{_called(model)} cannot be evaluated for one event ({reason}): it is called with one x at a time, so "
            "write it elementwise with jax.numpy, without indexing x, asking its length, numpy functions or `if`"
        ) from error


def scalar_result(model: Callable, result: Any, what: str) -> None:
    dtype = getattr(result, "dtype", None)
    if not isinstance(result, int | float) and getattr(dtype, "kind", None) not in ("f", "i", "u", "b"):
        got = type(result).__name__ if dtype is None else dtype
        raise TypeError(f"the {what} that {_called(model)} returns must be a real number, got {got}")
    shape = jnp.shape(result)
    if shape != ():
        raise ValueError(f"the {what} that {_called(model)} returns for one event must be a number, got shape {shape}")


def _called(model: Callable) -> str:
    return f"the model '{getattr(model, '__name__', type(model).__name__)}'"
