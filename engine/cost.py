"""What every cost function is.

Every cost is `sum over rows of term(theta, row) + rest(theta, aux)`. A cost holds the model and says how its data
become rows; values, derivatives and minimisation are the drivers' business.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax import errors as jax_errors

from engine.data import Rows, shown
from kernels.nodes import UntranslatableError
from kernels.program import Program, build_program
from kernels.translate import compile_kernel
from kernels.xla import row_sums, row_sums_untranslated

__all__ = [
    "FLOAT32",
    "Cost",
    "call_model",
    "called",
    "check_cost",
    "model_mistakes",
    "parameter_names",
    "scalar_result",
    "summed_in_one_pass",
]


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
    adjacent = False  # whether rows lie side by side, see `kernels.edges`
    errordef: float = 0.5
    may_know: bool = False  # whether `engine.known` looks for what depends on its rows alone
    takes_data: bool = True  # False for constraints, which may do without
    regular: bool = False  # whether it is known to have no kinks, and no parameter without effect

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        # in the order of iminuit, Python would only count them
        if arguments and not callable(arguments[0]) and any(map(callable, arguments[1:])):
            raise TypeError(f"{cls.__name__} takes no data: pass it the model first, and the data to fit_batch")
        return super().__new__(cls)

    def kept(self, what: str) -> dict:
        """What somebody compiled for this cost: it lives as long as the cost, and is not copied or pickled with it."""
        return vars(self).setdefault("_kept", {}).setdefault(what, {})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def rows(self, data: Any) -> Rows:
        """Data in the form in which a driver reads them; ValueError or TypeError where they have no such form."""
        raise NotImplementedError

    @property
    def leaves(self) -> "tuple[Cost, ...]":
        """The costs of which each has rows of its own."""
        return (self,)

    def score_covariance(self, rows: Rows) -> Callable | None:
        """The covariance of the gradient at the minimum, in JAX: `f(theta, data, shared) -> (n_params, n_params)`.

        None where it is the Hessian, as for any likelihood without weights.
        """
        return None

    def cheap_gradient(self, rows: Rows) -> bool:
        """Whether a gradient takes much less time than a Hessian, and the Hessian is known that data have on average.

        The latter is the `kernels.program.EXPECTED` output, and depends on the parameters alone.
        """
        return False

    @property
    def at_once(self) -> int:
        """How many derivatives of each row an evaluation holds, where it takes all rows of a toy at once; or 0."""
        return 0

    def check(self, theta: np.ndarray) -> None:
        """Warn, once, of what is not exact at these parameters."""

    #: `term(theta, row, aux) -> ()`: what one row adds, with `row` a dict name -> scalar; None if there are no rows.
    term: Callable | None = None
    #: `rest(theta, row, aux) -> ()`: what is added once; None if there is nothing.
    rest: Callable | None = None

    def __add__(self, other: "Cost") -> "Cost":
        from engine.sums import SumCost  # a sum is a cost, too

        return SumCost(self, other) if isinstance(other, Cost) else NotImplemented

    def __radd__(self, other: Any) -> "Cost":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # sum([a, b]) starts from 0

    def functions(self, rows: Rows) -> tuple[Callable | None, Callable | None]:
        """`term` and `rest` as functions of scalars, (*theta, *columns, *shared, *aux)."""
        n_params, names = len(self.names), rows.names  # not the rows, which would live as long as what is compiled

        def of_scalars(function: Callable | None) -> Callable | None:
            if function is None:
                return None

            def called(*args: Any) -> Any:
                row = dict(zip(names, args[n_params : n_params + len(names)], strict=True))
                return function(args[:n_params], row, args[n_params + len(names) :])

            return called

        return of_scalars(self.term), of_scalars(self.rest)

    def program(self, rows: Rows) -> Program:
        """The translated cost for data of this form.

        Raises
        ------
        kernels.nodes.UntranslatableError
            If the model uses an operation that has no scalar form.
        TypeError, ValueError
            If the model cannot be evaluated for one row, or its result has the wrong form.
        """
        form = rows.form
        programs = self.kept("programs")
        if isinstance(programs.get(form), UntranslatableError):  # a long model takes seconds to be refused
            raise programs[form]
        if form not in programs:
            try:
                program = self.built(rows)
            except UntranslatableError as reason:
                programs[form] = reason
                raise
            except IndexError as error:  # the index of an observable
                raise ValueError(f"{error}: data of d observables have the shape (d, n) of each toy") from None
            # of two threads the first wins, so that both use one program
            programs.setdefault(form, program)
        if programs[form].graph.holds_float32 and not vars(self).get("_told"):
            self._told = True
            warnings.warn(FLOAT32, stacklevel=2)
        return programs[form]

    def built(self, rows: Rows, *, opaque: bool = False) -> Program:
        """The translated cost, built anew; see `kernels.program.build_program`."""
        return build_program(
            *self.functions(rows),
            n_params=len(self.names),
            n_columns=rows.n_columns,
            n_shared=rows.shared.shape[0],
            n_aux=rows.aux.shape[1],
            opaque=opaque,
            adjacent=self.adjacent,
        )

    def kernel(self, rows: Rows) -> Callable:
        """The numba kernel for data of this form."""
        return compile_kernel(self.program(rows), self.adjacent)

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        """What the numba kernel takes as shared columns."""
        return rows.shared

    def curved(self) -> np.ndarray:
        """(n_params, n_params) bool: which elements of the Hessian may differ from zero."""
        return np.ones((len(self.names), len(self.names)), dtype=bool)

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        """The outputs (see `kernels.program`) of one toy in JAX: `f(theta, data, shared)`.

        `data` and `shared` are tuples with an entry for each of `rows.leaves`: (columns, aux, number of rows) and the
        shared columns. With `one_pass` it is the kernel of `kernels.pallas` where there is one.
        """
        try:
            program = self.program(rows)
            if one_pass and summed_in_one_pass(program):
                from kernels.pallas import row_sums_pallas

                sums = row_sums_pallas(program, order)
            else:
                sums = row_sums(program, tile, order)
        except UntranslatableError:
            sums = row_sums_untranslated(*self.functions(rows), len(self.names), tile, order)

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, aux, n),) = data
            return sums(theta, columns, shared[0], aux, n)

        return of_leaf

    def reference(self, rows: Rows) -> Callable:
        """The value of one toy in JAX, term by term as the model has them: `f(theta, data, shared)`, see `outputs`."""
        term, rest = self.functions(rows)

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, aux, n),) = data
            row = _stacked(columns, shared[0])
            parameters = [theta[i] for i in range(len(self.names))]
            total = jnp.zeros(())
            if term is not None:
                terms = jax.vmap(lambda r: term(*parameters, *r, *aux), in_axes=1)(row)
                total += jnp.sum(jnp.where(jnp.arange(row.shape[1]) < n, terms, 0.0))
            return total if rest is None else total + rest(*parameters, *row[:, 0], *aux)

        return of_leaf


def check_cost(cost: Any) -> None:
    """Raise TypeError for what is no cost."""
    if not isinstance(cost, Cost):
        raise TypeError(f"cost must be a cost function such as ExtendedUnbinnedNLL(model), got {type(cost).__name__}")


def summed_in_one_pass(program: Program) -> bool:
    """Whether there are rows to sum, and `kernels.pallas` has a kernel that does."""
    from kernels.pallas import has_kernel  # takes time to import, and few need it

    return bool(program.cores) and has_kernel(program)


def _stacked(columns: Array, shared: Array) -> Array:
    """All columns of a row, those of the toy before the shared ones."""
    if not columns.shape[0] or not shared.shape[0]:
        return columns if columns.shape[0] else shared
    return jnp.concatenate([columns, shared])


def parameter_names(model: Callable, name: Sequence[str] | None, skip: int = 1) -> tuple[str, ...]:
    """Names of a model's parameters: those given, else those of its signature behind the first `skip`.

    Raises
    ------
    TypeError, ValueError
        If the model is not callable or has no such signature, or names are given twice.
    """
    if not callable(model):
        raise TypeError(f"the model must be a function, got {type(model).__name__}")
    if name is not None:
        if isinstance(name, str) or not isinstance(name, Sequence) or not all(isinstance(each, str) for each in name):
            raise TypeError(f"name must be a sequence of names, got {shown(name)}")
        names = tuple(name)
    else:
        try:
            parameters = list(inspect.signature(model).parameters.values())
        except (TypeError, ValueError):
            raise ValueError(f"{called(model)} does not tell its parameters: pass name=[...]") from None
        bound = model.keywords if isinstance(model, functools.partial) else {}
        parameters = [p for p in parameters if p.name not in bound]
        behind = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY]
        if bound and behind:
            raise ValueError(
                f"a partial leaves {behind[0]!r} of {called(model)} without a position: bind the last parameters, or "
                "pass a function of the others"
            )
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in parameters):
            raise ValueError(f"{called(model)} has *args or keywords: pass name=[...] for its positional parameters")
        names = tuple(p.name for p in parameters[skip:])
    if not names:
        raise ValueError(f"{called(model)} has no parameters{' after x' if skip else ''}")
    if len(set(names)) != len(names):
        raise ValueError(f"parameter names must differ, got {names}")
    return names


#: What is said, once, of a model whose constants lost half of their digits.
FLOAT32 = (
    "the model holds an array of float32 constants, which are good to 7 digits only: make it with numpy in float64, or "
    "under jax.enable_x64"
)
_MISTAKES = (
    TypeError,
    ValueError,
    IndexError,
    jax_errors.JAXTypeError,
    jax_errors.JAXIndexError,
    jax_errors.TracerBoolConversionError,
)


@contextmanager
def model_mistakes(model: Callable, where: str, advice: str, what: str = "the model") -> Iterator[None]:
    """What goes wrong inside a model, or another function of the user, is told in one sentence."""
    try:
        yield
    except Exception as error:
        of_numba = type(error).__module__.startswith("numba.")
        if not (of_numba or isinstance(error, _MISTAKES)):
            raise
        reason = "it is compiled by numba, or calls what is" if of_numba else str(error).strip().split("\n")[0]
        if "positional argument" in reason and what == "the model":
            advice = "call it with the arguments that it takes"
        if "0-d" in reason and where == "the parameters":
            advice = "each parameter is a number of its own: name them, as in expected(a, b)"
        elif "gradient" in reason and "not supported" in reason:
            advice = "JAX has no derivative of it: write it with other functions, or keep that argument constant"
        elif "0-d" in reason:
            advice = (
                "it is called with one x at a time, so write it elementwise with jax.numpy, without indexing x; if "
                "there are d observables, pass a list of toys, each a (d, n) array"
            )
        raise TypeError(f"{called(model, what)} cannot be evaluated for {where} ({reason}): {advice}") from error


@contextmanager
def differentiated() -> Iterator[None]:
    """What JAX cannot differentiate or compile is told in one sentence."""
    try:
        yield
    except (NotImplementedError, TypeError) as error:
        reason = str(error).strip().split("\n")[0]
        if isinstance(error, TypeError) and "No constant handler" not in reason and "PRNGKey" not in reason:
            raise
        raise TypeError(
            f"JAX cannot differentiate or compile the model ({reason}): write it with other functions of jax.numpy, or "
            "hold the parameter by which there is no derivative out of the model"
        ) from error


def call_model(model: Callable, x: Any, theta: Sequence) -> Any:
    """The model at one row."""
    advice = (
        "it is called with one x at a time, so write it elementwise with jax.numpy, without indexing x, asking its "
        "length, numpy functions or `if`"
    )
    with model_mistakes(model, "one event", advice):
        return model(x, *theta)


def scalar_result(model: Callable, result: Any, what: str, who: str = "the model") -> None:
    dtype = getattr(result, "dtype", None)
    if not isinstance(result, int | float) and getattr(dtype, "kind", None) not in ("f", "i", "u", "b"):
        got = type(result).__name__ if dtype is None else dtype
        raise TypeError(f"the {what} that {called(model, who)} returns must be a real number, got {got}")
    shape = jnp.shape(result)
    if shape != ():
        told = f"the {what} that {called(model, who)} returns for one event"
        raise ValueError(f"{told} must be a number, got shape {shape}")


def called(model: Callable, what: str = "the model") -> str:
    named = model.func if isinstance(model, functools.partial) else model
    return f"{what} '{getattr(named, '__name__', type(named).__name__)}'"
