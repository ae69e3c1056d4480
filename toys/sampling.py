"""Samplers: how a toy is drawn from the parameters.

A sampler is called as `sampler(key, theta)`, draws one toy and can be traced by JAX; a toy with a random
number of events is `(padded values, n)`. `draw_toys` throws many toys with any such function. A ready-made
sampler also has `generate`, which throws the same toys on the numba backend.

Every decision compares a uniform number, bit for bit the same on both backends, with a table that is computed
once, by NumPy. Only the last map from a uniform number to an event may round differently.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from engine.data import Ragged
from kernels import randombits
from kernels.translate import compile_map

__all__ = ["Component", "ExtendedMixture", "Tables", "draw_toys", "poisson_table"]

# JAX draws as many toys at once as have this many padded events (32 MiB)
_EVENTS_AT_ONCE = 2**22
_LARGEST_MEAN = 1e9


@dataclass(frozen=True)
class Component:
    """One source of events.

    Attributes
    ----------
    yield_name : str
        The parameter that is the expected number of events.
    ppf : callable
        `ppf(p, *args) -> x`, elementwise, in jax.numpy: the inverse of the component's cdf.
    args : tuple of float or str
        Numbers, or names of parameters.

    Examples
    --------
    >>> Component("ns", truncnorm.ppf, (1.0, 9.0, "mu", "sigma"))
    """

    yield_name: str
    ppf: Callable
    args: tuple[float | str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", tuple(self.args))

    def events(self, u: Array, theta: Any, names: tuple[str, ...]) -> Array:
        """Events of uniform numbers."""
        args = [theta[names.index(a)] if isinstance(a, str) else a for a in self.args]
        return self.ppf(u, *args)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["theta", "tables", "least"],
    meta_fields=["most"],
)
@dataclass(frozen=True)
class Tables:
    """What an `ExtendedMixture` needs of the parameters.

    Attributes
    ----------
    theta : (n_params,) float64
    tables : (n_components, length) float64
        Poisson cdf from count `least` on; behind its end, numbers larger than 1.
    least : (n_components,) int64
    most : tuple of int
        Sizes of padded arrays; no count is larger.
    """

    theta: np.ndarray
    tables: np.ndarray
    least: np.ndarray
    most: tuple[int, ...]


@dataclass(frozen=True)
class ExtendedMixture:
    """Toys whose components have independent Poisson counts: pseudo-data of an extended unbinned fit.

    The count of component c is drawn with the first uniform number of stream 2 c of the toy's key, its events
    with those of stream 2 c + 1, so a further component leaves the others as they are. The events of a toy
    stand component after component.

    Attributes
    ----------
    names : tuple of str
        Parameters, in the order of theta.
    components : tuple of Component

    Raises
    ------
    ValueError
        If there is no component, or one names an unknown parameter.
    """

    names: tuple[str, ...]
    components: tuple[Component, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "components", tuple(self.components))
        if not self.components:
            raise ValueError("a mixture needs at least one component")
        for component in self.components:
            for name in (component.yield_name, *component.args):
                if isinstance(name, str) and name not in self.names:
                    raise ValueError(f"a component uses the parameter {name!r}, which is not one of {self.names}")

    def __call__(self, key: Array, theta: ArrayLike) -> tuple[Array, Array]:
        """One toy; `theta` must be known, because the size of the padded array depends on it.

        Returns
        -------
        values : (padded size,) float64
            Events; what stands behind the first n has no meaning.
        n : () int64
        """
        return self.draw(key, self.prepare(theta))

    def prepare(self, theta: ArrayLike) -> Tables:
        """Poisson tables of all components.

        Raises
        ------
        ValueError
            If theta has the wrong length or is not finite, or a yield is negative or larger than 1e9.
        """
        theta = np.array(theta, dtype=np.float64)
        if theta.shape != (len(self.names),):
            raise ValueError(f"theta must have shape ({len(self.names)},), got {theta.shape}")
        if not np.all(np.isfinite(theta)):
            raise ValueError(f"theta must be finite, got {dict(zip(self.names, theta.tolist(), strict=True))}")
        made = []
        for component in self.components:
            mean = theta[self.names.index(component.yield_name)]
            if not 0.0 <= mean <= _LARGEST_MEAN:
                raise ValueError(f"the yield {component.yield_name} must lie in [0, 1e9], got {mean}")
            made.append(poisson_table(mean))
        tables = np.full((len(made), _padded_size(max(len(table) for _, table in made))), 2.0)
        for row, (_, table) in zip(tables, made, strict=True):
            row[: len(table)] = table
        most = tuple(_padded_size(least + len(table)) for least, table in made)
        return Tables(theta, tables, np.array([least for least, _ in made], np.int64), most)

    def draw(self, key: Array, tables: Tables) -> tuple[Array, Array]:
        """One toy from prepared tables, as `__call__`; `tables` may be traced."""
        with jax.enable_x64(True):
            drawn: list[Array] = []
            total: Any = 0
            position = source = jnp.arange(sum(tables.most))
            for c, component in enumerate(self.components):
                u = randombits.uniform(jax.random.fold_in(key, 2 * c), 1)[0]
                n = jnp.searchsorted(jnp.asarray(tables.tables[c]), u, side="right") + tables.least[c]
                u = randombits.uniform(jax.random.fold_in(key, 2 * c + 1), tables.most[c])
                drawn.append(component.events(u, tables.theta, self.names))
                # the events of this component begin behind the valid ones of those before
                source = jnp.where(position >= total, position - total + sum(tables.most[:c]), source)
                total += n
            return jnp.concatenate(drawn).at[source].get(mode="clip"), total

    def generate(self, theta: ArrayLike, *, n_toys: int, seed: int, first: int = 0, backend: str = "numba") -> Ragged:
        """Toys first to first + n_toys; toy k depends on (seed, k) and theta alone.

        Parameters
        ----------
        theta : (n_params,) float64
        n_toys, first : int
            first + n_toys <= 2^32.
        seed : int
            0 <= seed < 2^64.
        backend : "numba" or "jax"
            Both give the same counts, and events that differ by rounding only.

        Raises
        ------
        ValueError
            If an argument is out of range, or a component has no events at theta.
        UntranslatableError
            If a ppf has no scalar form for numba.
        """
        tables = self.prepare(theta)
        _check_range(n_toys=n_toys, first=first)
        if backend == "jax":
            chunk = max(1, min(_EVENTS_AT_ONCE // sum(tables.most), _padded_size(n_toys)))
            toys = draw_toys(self.draw, tables, n_toys=n_toys, seed=seed, first=first, chunk=chunk)
        elif backend == "numba":
            toys = self._generate_numba(tables, n_toys=n_toys, seed=seed, first=first)
        else:
            raise ValueError(f"backend must be 'numba' or 'jax', got {backend!r}")
        if not np.all(np.isfinite(toys.values)):
            raise ValueError(
                f"a component has no density at {dict(zip(self.names, tables.theta.tolist(), strict=True))}"
            )
        return toys

    def _generate_numba(self, tables: Tables, *, n_toys: int, seed: int, first: int) -> Ragged:
        key = randombits.key_words(seed)
        counts = np.empty((n_toys, len(self.components)), np.int64)
        randombits.table_counts(*key, first, tables.tables, tables.least, counts)
        offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        values = np.empty(offsets[-1])
        starts = offsets[:-1].copy()
        for c, component in enumerate(self.components):
            of_component = counts[:, c].copy()
            function = _compiled(component, self.names)
            randombits.map_uniforms(function, tables.theta, *key, first, c, starts, of_component, values.reshape(1, -1))
            starts += of_component
        return Ragged(values, offsets)


def poisson_table(mean: float) -> tuple[int, np.ndarray]:
    """Cumulative Poisson probabilities as a table, for inversion.

    The count of a uniform number u is least + number of entries <= u. The probabilities are summed from the
    ratios p(k + 1) / p(k) = mean / (k + 1) in elementary operations of IEEE 754 and a fixed order, so that
    the table is the same on every machine. (scipy.special.pdtr is wrong by 1e-6 at a mean of 1e8.)

    Returns
    -------
    least : int
        Smallest count that a uniform number gives.
    table : (length,) float64
        P(N <= k) for k = least, least + 1, ..., without entries above or below all uniform numbers.
    """
    if mean == 0.0:
        return 0, np.empty(0)
    # beyond 10 standard deviations (and 40 events at small means) the probability is far below 2^-53
    lowest = max(0, int(mean - 10.0 * np.sqrt(mean)) - 10)
    highest = int(mean + 10.0 * np.sqrt(mean)) + 40
    k = np.arange(lowest, highest + 1, dtype=np.float64)
    mode = int(mean) - lowest
    upward = np.cumprod(mean / k[mode + 1 :])
    downward = np.cumprod(k[mode:0:-1] / mean)
    ratios = np.concatenate([downward[::-1], [1.0], upward])
    # each tail is summed from its own end
    below, above = np.cumsum(ratios), np.append(np.cumsum(ratios[:0:-1])[::-1], 0.0)
    total = below[mode] + above[mode]
    cdf = np.where(k < mode + lowest, below, total - above) / total
    reached = int(np.count_nonzero(cdf <= randombits.SMALLEST_UNIFORM))
    return lowest + reached, cdf[reached : np.count_nonzero(cdf <= randombits.LARGEST_UNIFORM)]


def draw_toys(draw: Callable, argument: Any, *, n_toys: int, seed: int, first: int = 0, chunk: int = 256) -> Ragged:
    """Toys first to first + n_toys by JAX.

    Parameters
    ----------
    draw : callable
        `draw(key, argument) -> (padded values, n)`, one toy: a sampler, with theta as the argument.
    argument : pytree of arrays
    n_toys, seed, first : int
    chunk : int
        Toys drawn at once; has no effect on the result.
    """
    _check_range(n_toys=n_toys, first=first)
    words = np.array(randombits.key_words(seed), np.uint32)
    values, counts = [np.empty(0)], [np.empty(0, np.int64)]
    with jax.enable_x64(True):
        for begin in range(0, n_toys, chunk):
            # the last chunk is filled up, so that only one shape is compiled
            toys = np.minimum(np.arange(begin, begin + chunk), n_toys - 1) + first
            padded, n = jax.device_get(_draw_chunk(draw, argument, words, toys.astype(np.uint32)))
            counts.append(n[: n_toys - begin])
            values += [toy[:length].copy() for toy, length in zip(padded, counts[-1], strict=False)]
    return Ragged(np.concatenate(values), np.concatenate([[0], np.cumsum(np.concatenate(counts))]))


@partial(jax.jit, static_argnums=0)
def _draw_chunk(draw: Callable, argument: Any, words: Array, toys: Array) -> tuple[Array, Array]:
    root = jax.random.wrap_key_data(words, impl="threefry2x32")
    keys = jax.vmap(jax.random.fold_in, (None, 0))(root, toys)
    return jax.vmap(lambda key: _one_toy(draw(key, argument)))(keys)


def _one_toy(drawn: Any) -> tuple[Array, Array]:
    """What a sampler returned, if it is one toy."""
    try:
        values, n = (jnp.asarray(part) for part in drawn)
        if values.ndim == 1 and n.ndim == 0 and jnp.issubdtype(n.dtype, jnp.integer):
            return values, n
        got = f"shapes {values.shape} and {n.shape} of {values.dtype} and {n.dtype}"
    except (TypeError, ValueError):
        got = type(drawn).__name__
    raise TypeError(f"a sampler must return (padded values, n): a 1-D array and a whole number, got {got}")


@lru_cache(maxsize=256)
def _compiled(component: Component, names: tuple[str, ...]) -> Any:
    return compile_map(lambda u, *theta: component.events(u, theta, names), len(names))


def _padded_size(n: int) -> int:
    """`n` and up to 1/8 more, so that few shapes are compiled."""
    n = operator.index(n)
    step = 1 << max(0, n.bit_length() - 4)
    return max(1, -(-n // step) * step)


def _check_range(*, n_toys: int, first: int) -> None:
    if n_toys < 0 or first < 0 or first + n_toys > 2**32:
        raise ValueError(f"toys must have indices 0 <= k < 2^32, got n_toys = {n_toys} from first = {first} on")
