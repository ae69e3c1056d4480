"""Samplers of events: toys whose events come from a mixture of components.

Every decision compares a uniform number, bit for bit the same on both backends, with a table that is computed
once, by NumPy. Only the last map from a uniform number to an event may round differently.

Stream 2 c of a toy's key belongs to the count of component c, stream 2 c + 1 + 65536 j to its observable j.
"""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from engine.cost import called, model_mistakes, parameter_names
from engine.data import Ragged, shown
from kernels import randombits
from kernels.inversion import NumericalPpf, map_quantiles, numerical_ppf, quantiles
from kernels.translate import compile_map
from toys.counts import LARGEST_MEAN, checked_number, counted, poisson_tables, tallied
from toys.drawing import Events, Sampler, checked_theta, evaluated, padded_size

__all__ = ["Component", "ExtendedMixture", "Mixture", "Tables", "numerical_ppf"]


#: A number, the name of a parameter, or a function of the parameters that its arguments without a default name.
Quantity = float | str | Callable


def _parameters(quantity: Quantity) -> tuple[str, ...]:
    """What a quantity depends on."""
    if not callable(quantity):
        return (quantity,) if isinstance(quantity, str) else ()
    try:
        names, given = parameter_names(quantity, None, skip=0), inspect.signature(quantity).parameters
        return tuple(name for name in names if given[name].default is inspect.Parameter.empty)
    except ValueError:
        told = called(quantity, "the function")
        raise ValueError(f"{told} must have parameters of the fit as its arguments, and no others") from None


def _traced(quantity: Quantity, names: tuple[str, ...], theta: Any) -> Any:
    """A quantity at parameters that may be traced."""
    if not callable(quantity):
        return theta[names.index(quantity)] if isinstance(quantity, str) else quantity
    advice = "write it with jax.numpy, of the parameters that its arguments name"
    with model_mistakes(quantity, "numbers", advice, "the function"):
        return quantity(*(theta[names.index(name)] for name in _parameters(quantity)))


def _number(quantity: Quantity, names: tuple[str, ...], theta: np.ndarray) -> float:
    """A quantity at known parameters."""
    if not callable(quantity):
        return float(_traced(quantity, names, theta))

    def real(*theta: Any) -> Any:
        result = _traced(quantity, names, theta)
        kind = getattr(getattr(result, "dtype", None), "kind", "")
        if not (kind in ("f", "i", "u") or isinstance(result, Real)):
            raise TypeError(f"{called(quantity, 'the function')} must give a real number, got {shown(result)}")
        return result

    result = evaluated(real, *theta)
    if result.shape:
        raise ValueError(f"{called(quantity, 'the function')} must give one number, got the shape {result.shape}")
    return float(result)


class Observable(NamedTuple):
    """How one observable of a component is drawn."""

    ppf: Callable
    args: tuple[Quantity, ...]

    def table(self, names: tuple[str, ...], theta: np.ndarray) -> np.ndarray:
        """Of a numerical quantile function; empty for any other."""
        numbers = [_number(a, names, theta) for a in self.args]
        return self.ppf.table(*numbers) if isinstance(self.ppf, NumericalPpf) else np.empty(0)

    def events(self, u: Array, names: tuple[str, ...], theta: Any, table: Any) -> Array:
        """Events of uniform numbers."""
        if isinstance(self.ppf, NumericalPpf):
            return quantiles(jnp.asarray(table), u)
        advice = "write it elementwise with jax.numpy, or let numerical_ppf make one of the density"
        with model_mistakes(self.ppf, "one p", advice, "the ppf"):
            return self.ppf(u, *(_traced(a, names, theta) for a in self.args))


@dataclass(frozen=True)
class Component:
    """One source of events, of one or several independent observables.

    Attributes
    ----------
    yield_name : str, float, callable or None
        The expected number of events: a parameter, a number, or a function of parameters, in jax.numpy, whose arguments
        have their names; None in a `Mixture`, which has fractions.
    ppf : callable, or sequence of (callable, tuple)
        `ppf(p, *args) -> x`, elementwise, in jax.numpy: the inverse of the component's cdf. `numerical_ppf` makes one
        of a density. For several observables, (ppf, args) of each.
    args : tuple of str, float or callable
        What the ppf takes behind p, each a parameter, a number or a function of parameters.

    Raises
    ------
    TypeError
        If one of them is something else, or there are args beside those of each observable.
    ValueError
        If the arguments of a function do not name parameters.

    Examples
    --------
    >>> Component("ns", truncnorm.ppf, (1.0, 9.0, "mu", "sigma"))
    >>> Component("ns", numerical_ppf(voigt.pdf, 1.0, 9.0), ("gamma", "mu", "sigma"))
    >>> Component("ns", ((truncnorm.ppf, (1.0, 9.0, "mu", "sigma")), (expon.ppf, (0.0, "tau"))))
    >>> Component(lambda n, asymmetry: n * (1 + asymmetry) / 2, norm.ppf, (lambda m, shift: m + shift, "sigma"))
    """

    yield_name: Quantity | None
    ppf: Callable | tuple[tuple[Callable, tuple[Quantity, ...]], ...]
    args: tuple[Quantity, ...] = ()

    def __post_init__(self) -> None:
        if self.yield_name is not None:
            _check_quantity("yield_name", self.yield_name)
        if callable(self.ppf):
            if not isinstance(self.args, tuple | list):
                raise TypeError(f"args must be a tuple of numbers, parameters and functions, got {shown(self.args)}")
            object.__setattr__(self, "args", tuple(self.args))
        elif not isinstance(self.args, tuple) or self.args:
            raise TypeError("a component of several observables takes its arguments with each: ((ppf, args), ...)")
        else:
            try:
                pairs = tuple((ppf, tuple(args)) for ppf, args in self.ppf)
            except (TypeError, ValueError):
                raise TypeError(f"ppf must be a function, or ((ppf, args), ...), got {shown(self.ppf)}") from None
            object.__setattr__(self, "ppf", pairs)
        for observable in self.observables:
            for quantity in observable.args:
                _check_quantity("each of args", quantity)

    @property
    def observables(self) -> tuple[Observable, ...]:
        return (Observable(self.ppf, self.args),) if callable(self.ppf) else tuple(Observable(*o) for o in self.ppf)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["theta", "counts", "quantiles"],
    meta_fields=["most"],
)
@dataclass(frozen=True)
class Tables:
    """What a mixture needs of the parameters.

    Attributes
    ----------
    theta : (n_params,) float64
    counts : CountTables or (n_components - 1,) float64
        What the counts of the components are drawn with.
    quantiles : tuple of tuples of arrays
        Table of each observable of each component; empty where its quantile function is a formula.
    most : tuple of int
        Sizes of padded arrays; no count is larger.
    """

    theta: np.ndarray
    counts: Any
    quantiles: tuple[tuple[np.ndarray, ...], ...]
    most: tuple[int, ...]


class _Mixture(Sampler):
    """Toys of several components, whose events stand component after component."""

    components: tuple[Component, ...]
    form = Events()

    def _check(self, extra: tuple) -> None:
        """Raise ValueError where components do not fit together or a name is none of the parameters."""
        if not isinstance(self.names, tuple | list) or not all(isinstance(name, str) for name in self.names):
            raise TypeError(f"names must be a sequence of parameters, got {shown(self.names)}")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "components", tuple(self.components))
        if not self.components or not all(isinstance(each, Component) for each in self.components):
            raise ValueError(f"a mixture needs components, and at least one, got {shown(self.components)}")
        used = [a for c in self.components for o in c.observables for a in o.args]
        for name in itertools.chain.from_iterable(map(_parameters, (*used, *extra))):
            if name not in self.names:
                raise ValueError(f"a component uses the parameter {name!r}, which is not one of {self.names}")
        if len({len(component.observables) for component in self.components}) > 1:
            raise ValueError("all components of a mixture must have the same number of observables")

    def _tables(self, theta: np.ndarray, counts: Any, most: tuple[int, ...]) -> Tables:
        made = tuple(tuple(o.table(self.names, theta) for o in c.observables) for c in self.components)
        return Tables(theta, counts, made, most)

    def _counts(self, key: Array, tables: Tables) -> Array:
        """Number of events of each component, by JAX."""
        raise NotImplementedError

    def _all_counts(self, tables: Tables, keys: np.ndarray) -> np.ndarray:
        """The same by numba, (n_toys, n_components)."""
        raise NotImplementedError

    def size(self, tables: Tables) -> int:
        return sum(tables.most) * len(self.components[0].observables)

    def draw(self, key: Array, tables: Tables) -> tuple[Array, Array]:
        """One toy from prepared tables, which may be traced.

        Returns
        -------
        values : (padded size,) or (d, padded size) float64
            Events; what stands behind the first n has no meaning.
        n : () int64
        """
        with jax.enable_x64(True):
            counts = self._counts(key, tables)
            total: Any = 0
            position = source = jnp.arange(sum(tables.most))
            drawn = []
            for c, component in enumerate(self.components):
                u = [self._uniform(key, c, j, tables.most[c]) for j in range(len(component.observables))]
                given = zip(component.observables, u, tables.quantiles[c], strict=True)
                drawn.append(jnp.stack([o.events(u, self.names, tables.theta, table) for o, u, table in given]))
                # the events of this component begin behind the valid ones of those before
                source = jnp.where(position >= total, position - total + sum(tables.most[:c]), source)
                total += counts[c]
            values = jnp.concatenate(drawn, axis=1).at[:, source].get(mode="clip")
            return values if len(values) > 1 else values[0], total

    @staticmethod
    def _uniform(key: Array, component: int, observable: int, n: int) -> Array:
        return randombits.uniform(jax.random.fold_in(key, _stream(component, observable)), n)

    def throw(self, tables: Tables, keys: np.ndarray) -> Ragged:
        counts = self._all_counts(tables, keys).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        values = np.empty((len(self.components[0].observables), offsets[-1]))
        starts = offsets[:-1].copy()
        for c, component in enumerate(self.components):
            of_component = counts[:, c].copy()
            for j, observable in enumerate(component.observables):
                function, numbers = map_quantiles, tables.quantiles[c][j]
                if not len(numbers):
                    function, numbers = _compiled(observable, self.names), tables.theta
                stream = _stream(c, j)
                randombits.map_uniforms(function, numbers, keys, stream, starts, of_component, values[j : j + 1])
            starts += of_component
        return Ragged(values if len(values) > 1 else values[0], offsets)

    def complete(self, tables: Tables, drawn: Any) -> Any:
        if isinstance(drawn, Ragged) and drawn.not_finite.any():
            at = dict(zip(self.names, tables.theta.tolist(), strict=True))
            raise ValueError(f"a component has no density at {at}")
        return drawn


@dataclass(frozen=True)
class ExtendedMixture(_Mixture):
    """Toys whose components have independent Poisson counts: pseudo-data of an extended unbinned fit.

    A further component leaves the others as they are. The events of a toy stand component after component.

    Attributes
    ----------
    names : tuple of str
        Parameters, in the order of theta.
    components : tuple of Component

    Raises
    ------
    ValueError
        If there is no component, one has no yield or other observables than the first, or one names an unknown
        parameter.
    """

    names: tuple[str, ...]
    components: tuple[Component, ...]

    def __post_init__(self) -> None:
        self._check(())
        self._check(tuple(component.yield_name for component in self.components))
        if any(component.yield_name is None for component in self.components):
            raise ValueError("a component of an extended mixture must have a yield")

    def prepare(self, theta: ArrayLike) -> Tables:
        """Tables of all components.

        Raises
        ------
        ValueError
            If theta has the wrong length or is not finite, or a yield is negative or larger than 1e9.
        """
        theta = checked_theta(theta, self.names)
        means = []
        for given in (c.yield_name for c in self.components if c.yield_name is not None):
            means.append(_number(given, self.names, theta))
            if not 0.0 <= means[-1] <= LARGEST_MEAN:
                what = called(given, "the yield") if callable(given) else f"the yield {given}"
                raise ValueError(f"{what} must lie in [0, 1e9], got {means[-1]}")
        counts = poisson_tables(np.array(means))
        most = counts.least + np.diff(counts.offsets)
        return self._tables(theta, counts, tuple(padded_size(n) for n in most.tolist()))

    def _counts(self, key: Array, tables: Tables) -> Array:
        streams = [jax.random.fold_in(key, 2 * c) for c in range(len(self.components))]
        return tables.counts.draw(jnp.concatenate([randombits.uniform(stream, 1) for stream in streams]))

    def _all_counts(self, tables: Tables, keys: np.ndarray) -> np.ndarray:
        return tables.counts.throw(randombits.stream_counts, keys)


@dataclass(frozen=True)
class Mixture(_Mixture):
    """Toys with a fixed number of events: pseudo-data of `UnbinnedNLL`.

    Event i belongs to the component that number i of stream 0 of the toy's key tells; then the events are put in order,
    component after component.

    Attributes
    ----------
    names : tuple of str
        Parameters, in the order of theta.
    n_events : int
    components : tuple of Component
        Without yields.
    fractions : tuple of str, float or callable
        Parameters, numbers, or functions of parameters that are the fractions of all components but the last, which has
        the rest.

    Raises
    ------
    ValueError
        If there is no component, one has a yield or other observables than the first, or an unknown parameter is named;
        if there are not k - 1 fractions for k components, or not 0 <= n_events <= 1e9.

    Examples
    --------
    >>> signal = Component(None, truncnorm.ppf, (1.0, 9.0, "mu", "sigma"))
    >>> background = Component(None, truncexpon.ppf, (1.0, 9.0, 0.0, "lam"))
    >>> Mixture(("f", "mu", "sigma", "lam"), 500, (signal, background), ("f",))
    """

    names: tuple[str, ...]
    n_events: int
    components: tuple[Component, ...]
    fractions: tuple[Quantity, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_events", checked_number(self.n_events))
        alone = callable(self.fractions) or isinstance(self.fractions, str | Real)
        if not alone and not isinstance(self.fractions, tuple | list):
            told = shown(self.fractions)
            raise TypeError(f"fractions must be a tuple of numbers, parameters and functions, got {told}")
        given = (self.fractions,) if alone else tuple(self.fractions)
        for quantity in given:
            _check_quantity("each of fractions", quantity)
        object.__setattr__(self, "fractions", given)
        self._check(given)
        if len(given) != len(self.components) - 1:
            n = len(self.components)
            raise ValueError(f"{n} components need {n - 1} fractions, the last one has the rest, got {given}")
        if any(component.yield_name is not None for component in self.components):
            raise ValueError("a component of a mixture with a fixed number of events has no yield: pass None")

    def prepare(self, theta: ArrayLike) -> Tables:
        """Tables of all components.

        Raises
        ------
        ValueError
            If theta has the wrong length or is not finite, or a fraction is negative or their sum larger than 1.
        """
        theta = checked_theta(theta, self.names)
        fractions = np.array([_number(f, self.names, theta) for f in self.fractions], dtype=np.float64)
        # 1e-9 is for the rounding of a sum that should be 1
        if not (np.all(fractions >= 0) and fractions.sum() <= 1.0 + 1e-9):
            raise ValueError(f"fractions must not be negative, nor their sum larger than 1, got {fractions.tolist()}")
        return self._tables(theta, np.cumsum(fractions), (self.n_events,) * len(self.components))

    def _counts(self, key: Array, tables: Tables) -> Array:
        return counted(key, jnp.asarray(tables.counts), self.n_events)

    def _all_counts(self, tables: Tables, keys: np.ndarray) -> np.ndarray:
        return tallied(keys, tables.counts, self.n_events)

    def draw(self, key: Array, tables: Tables) -> tuple[Array, Array]:
        values, n = super().draw(key, tables)
        return values[..., : self.n_events], n


def _check_quantity(what: str, quantity: Any) -> None:
    if isinstance(quantity, bool) or not (callable(quantity) or isinstance(quantity, str | Real)):
        raise TypeError(
            f"{what} must be the name of a parameter, a number or a function of parameters, got {shown(quantity)}"
        )
    _parameters(quantity)


def _stream(component: int, observable: int) -> int:
    return 2 * component + 1 + (observable << 16)


@lru_cache(maxsize=256)
def _compiled(observable: Observable, names: tuple[str, ...]) -> Any:
    return compile_map(lambda u, *theta: observable.events(u, names, theta, None), len(names))
