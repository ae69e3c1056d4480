"""Toys of any sampler, drawn by JAX and put together as data for `fit_batch`.

A sampler is called as `sampler(key, theta)`, draws one toy and can be traced by JAX. What it returns follows from the
cost that is fitted:

| cost | one toy | data |
| --- | --- | --- |
| unbinned | `(padded values, n)`, values `(m,)` or `(d, m)`: n events | `Ragged` |
| binned | counts `(n_bins,)` | `(n_toys, n_bins)` |
| `LeastSquares` | `(x, y, yerror[, xerror])`, or `(x, y)` with a covariance | each with a leading toy axis |
| constraint | measured values `(k,)` | `(n_toys, k)` |
| sum | a tuple with one of these for each cost; None for a constraint that does not vary | a tuple |
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from engine import ExtendedUnbinnedNLL, UnbinnedNLL
from engine.cost import Cost
from engine.data import Ragged, shown
from engine.leastsquares import LeastSquares
from engine.sums import SumCost
from kernels import randombits

__all__ = [
    "Events",
    "Form",
    "Points",
    "Row",
    "Sampler",
    "Together",
    "checked_theta",
    "draw_toys",
    "drawn_by_jax",
    "evaluated",
    "form_of",
    "padded_size",
]

# JAX draws as many toys at once as have this many numbers (32 MiB)
_NUMBERS_AT_ONCE = 2**22


class Form(Protocol):
    """What one toy of a cost looks like, and how many of them become its data."""

    def check(self, drawn: Any) -> Any:
        """One toy as arrays of float64; TypeError if it is none."""

    def cut(self, drawn: Any, n: int) -> Any:
        """The first n toys of a chunk."""

    def join(self, chunks: list) -> Any:
        """Data of all chunks."""


@dataclass(frozen=True)
class Events:
    """(padded values, n): a toy of n events."""

    def check(self, drawn: Any) -> tuple[Array, Array]:
        try:
            values, n = (jnp.asarray(part) for part in drawn)
            of_events = values.ndim == 1 or (values.ndim == 2 and len(values) > 1)
            if of_events and n.ndim == 0 and jnp.issubdtype(n.dtype, jnp.integer):
                return values.astype(jnp.float64), n
            got = f"shapes {values.shape} and {n.shape} of {values.dtype} and {n.dtype}"
        except (TypeError, ValueError):
            got = type(drawn).__name__
        raise TypeError(
            "a sampler must return (padded values, n): a 1-D array, or (d, m) for d > 1 observables, and a whole "
            f"number, got {got}"
        )

    def cut(self, drawn: tuple[np.ndarray, np.ndarray], n: int) -> Ragged:
        counts = drawn[1][:n]
        values = [toy[..., :length] for toy, length in zip(drawn[0], counts, strict=False)]
        joined = np.concatenate(values, axis=-1) if n else drawn[0][0, ..., :0]
        return Ragged(joined, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    def join(self, chunks: list[Ragged]) -> Ragged:
        counts = np.concatenate([np.diff(chunk.offsets) for chunk in chunks])
        values = np.concatenate([chunk.values for chunk in chunks], axis=-1)
        return Ragged(values, np.concatenate([[0], np.cumsum(counts)]))


class _Stacked:
    """Toys of one shape, stacked."""

    def cut(self, drawn: Any, n: int) -> Any:
        return jax.tree.map(lambda array: array[:n], drawn)

    def join(self, chunks: list) -> Any:
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *chunks)


@dataclass(frozen=True)
class Row(_Stacked):
    """One number for each bin, or for each parameter of a constraint."""

    what: str = "counts (n_bins,)"

    def check(self, drawn: Any) -> Array:
        [array] = _real([drawn], self.what)
        if array.ndim != 1:
            raise TypeError(f"a sampler must return {self.what}, a 1-D array, got shape {array.shape}")
        return array


@dataclass(frozen=True)
class Points(_Stacked):
    """Points with errors; an error may be one number for all points, x may hold several observables.

    Attributes
    ----------
    names : tuple of str
        Of the arrays, in order.
    """

    names: tuple[str, ...] = ("x", "y", "yerror")

    def check(self, drawn: Any) -> tuple[Array, ...]:
        what = f"({', '.join(self.names)})"
        if not isinstance(drawn, tuple) or len(drawn) != len(self.names):
            got = f"a tuple of {len(drawn)}" if isinstance(drawn, tuple) else type(drawn).__name__
            raise TypeError(f"a sampler must return {what}, a tuple of arrays, got {got}")
        arrays = dict(zip(self.names, _real(drawn, what), strict=True))
        n = arrays["y"].shape
        shapes = {"x": [n, (*arrays["x"].shape[:1], *n)], "y": [n]}
        if len(n) != 1 or not all(a.shape in shapes.get(name, [n, ()]) for name, a in arrays.items()):
            got = ", ".join(str(array.shape) for array in arrays.values())
            raise TypeError(f"a sampler must return {what}, each of the shape (n,) of y, got shapes {got}")
        return tuple(array if array.ndim else jnp.broadcast_to(array, n) for array in arrays.values())


def _real(parts: Iterable, what: str) -> list[Array]:
    """Arrays of float64."""
    given = list(parts)
    try:
        arrays = [jnp.asarray(part) for part in given]
        if all(jnp.issubdtype(a.dtype, jnp.floating) or jnp.issubdtype(a.dtype, jnp.integer) for a in arrays):
            return [array.astype(jnp.float64) for array in arrays]
        got = ", ".join(str(array.dtype) for array in arrays)
    except (TypeError, ValueError):
        got = ", ".join(type(part).__name__ for part in given)
    raise TypeError(f"a sampler must return {what}, real numbers, got {got}")


@dataclass(frozen=True)
class Together:
    """A tuple with one entry for each cost of a sum; None stands for what does not vary."""

    forms: tuple[Form, ...]
    optional: tuple[bool, ...]

    def check(self, drawn: Any) -> tuple:
        if not isinstance(drawn, tuple) or len(drawn) != len(self.forms):
            got = f"a tuple of {len(drawn)}" if isinstance(drawn, tuple) else type(drawn).__name__
            raise TypeError(
                f"a sampler for a sum of {len(self.forms)} costs must return a tuple with one entry for each, got {got}"
            )
        checked = []
        for k, (form, optional, entry) in enumerate(zip(self.forms, self.optional, drawn, strict=True)):
            try:
                checked.append(None if entry is None and optional else form.check(entry))
            except TypeError as error:
                raise TypeError(f"entry {k} of the toy of a sum: {error}") from None
        return tuple(checked)

    def cut(self, drawn: tuple, n: int) -> tuple:
        pairs = zip(self.forms, drawn, strict=True)
        return tuple(None if part is None else form.cut(part, n) for form, part in pairs)

    def join(self, chunks: list[tuple]) -> tuple:
        pairs = zip(self.forms, zip(*chunks, strict=True), strict=True)
        return tuple(None if parts[0] is None else form.join(list(parts)) for form, parts in pairs)


def form_of(cost: Cost | None) -> Form:
    """The form of the toys of a cost; without one, that of unbinned data."""
    if cost is None or isinstance(cost, UnbinnedNLL | ExtendedUnbinnedNLL):
        return Events()
    if isinstance(cost, SumCost):
        return Together(tuple(map(form_of, cost.costs)), tuple(not part.takes_data for part in cost.costs))
    if isinstance(cost, LeastSquares):
        correlated = getattr(cost, "covariance", None) is not None
        return Points(("x", "y", "yerror", "xerror")[: 2 if correlated else 4 if cost.xerror else 3])
    return Row() if cost.takes_data else Row(f"measured values ({len(cost.names)},)")


class Sampler:
    """What the ready-made samplers share: tables are made once for given parameters, toys drawn on either backend.

    Attributes
    ----------
    names : tuple of str
        Parameters, in the order of theta.
    form : Form
        Of what `draw` returns.
    """

    names: tuple[str, ...]
    form: Form

    def prepare(self, theta: ArrayLike) -> Any:
        """What depends on the parameters alone, as a pytree of arrays; ValueError where they are not possible."""
        raise NotImplementedError

    def draw(self, key: Array, tables: Any) -> Any:
        """What varies in one toy, from prepared tables, which may be traced."""
        raise NotImplementedError

    def throw(self, tables: Any, keys: np.ndarray) -> Any:
        """What varies in the toys of these keys, (n_toys, 2) words, by numba."""
        raise NotImplementedError

    def size(self, tables: Any) -> int:
        """How many numbers JAX holds for one toy."""
        raise NotImplementedError

    def complete(self, tables: Any, drawn: Any) -> Any:
        """Data, from what varies."""
        return drawn

    def __call__(self, key: Array, theta: ArrayLike) -> Any:
        """One toy; `theta` must be known, because tables are made from it."""
        tables = self.prepare(theta)
        with jax.enable_x64(True):
            return self.complete(tables, self.draw(key, tables))

    def generate(self, theta: ArrayLike, *, n_toys: int, seed: int, first: int = 0, backend: str = "numba") -> Any:
        """Toys first to first + n_toys, as data for `fit_batch`; toy k depends on (seed, k) and theta alone.

        Parameters
        ----------
        theta : (n_params,) float64
        n_toys, first : int
            first + n_toys <= 2^32.
        seed : int
            0 <= seed < 2^64.
        backend : "numba" or "jax"
            Both give the same counts, and real numbers that differ by rounding only.

        Raises
        ------
        ValueError
            If an argument is out of range, or nothing can be drawn at theta.
        UntranslatableError
            If a ppf has no scalar form for numba.
        """
        theta = np.array(theta, dtype=np.float64)
        tables = _prepared(self, theta.shape, theta.tobytes())
        keys = _keys(n_toys=n_toys, seed=seed, first=first)
        if backend == "jax":
            return self.complete(tables, self.draw_all(tables, keys))
        if backend == "numba":
            return self.complete(tables, self.throw(tables, keys))
        raise ValueError(f"backend must be 'numba' or 'jax', got {backend!r}")

    def draw_all(self, tables: Any, keys: np.ndarray) -> Any:
        """What varies in the toys of these keys, by JAX."""
        chunk = max(1, min(_NUMBERS_AT_ONCE // max(1, self.size(tables)), padded_size(len(keys))))
        return drawn_by_jax(self.draw, tables, keys, self.form, chunk)


@lru_cache(maxsize=2)
def _prepared(sampler: Sampler, shape: tuple[int, ...], theta: bytes) -> Any:
    """Tables, which the chunks of a run share."""
    return sampler.prepare(np.frombuffer(theta).reshape(shape))


def draw_toys(
    draw: Callable,
    argument: Any,
    *,
    n_toys: int,
    seed: int,
    first: int = 0,
    chunk: int = 256,
    cost: Cost | None = None,
) -> Any:
    """Toys first to first + n_toys of any sampler, by JAX, as data for `fit_batch`.

    Parameters
    ----------
    draw : callable
        `draw(key, argument)`, one toy: a sampler, with theta as the argument.
    argument : pytree of arrays
    n_toys, seed, first : int
    chunk : int
        Toys drawn at once; has no effect on the result.
    cost : Cost, optional
        What will be fitted: the module says what a sampler returns for it. Without it, the data are unbinned.

    Raises
    ------
    TypeError
        If the sampler returns something else.
    ValueError
        If an index or the seed is out of range.

    Examples
    --------
    Points whose x is measured with an error, and reported without a correction:

    >>> def sampler(key, theta):
    ...     a, b, c = jax.random.split(key, 3)
    ...     x = jax.random.uniform(a, (30,), jnp.float64, -3.0, 3.0)
    ...     y = line(x + 0.15 * jax.random.normal(b, (30,), jnp.float64), *theta)
    ...     return x, y + 0.1 * jax.random.normal(c, (30,), jnp.float64), 0.1
    >>> draw_toys(sampler, np.array([1.0, 2.0]), n_toys=1000, seed=1, cost=LeastSquares(line))
    """
    return drawn_by_jax(draw, argument, _keys(n_toys=n_toys, seed=seed, first=first), form_of(cost), chunk)


def drawn_by_jax(draw: Callable, argument: Any, keys: np.ndarray, form: Form, chunk: int = 256) -> Any:
    """One toy for each key, as `form` joins them."""
    n_toys, made = len(keys), []
    words = keys if n_toys else np.zeros((1, 2), np.uint32)  # one toy tells the shapes
    with jax.enable_x64(True):
        for begin in range(0, len(words), chunk):
            # the last chunk is filled up, so that only one shape is compiled
            toys = np.minimum(np.arange(begin, begin + chunk), len(words) - 1)
            drawn = jax.device_get(_draw_chunk(draw, form, argument, words[toys]))
            made.append(form.cut(drawn, min(chunk, n_toys - begin)))
    return form.join(made)


@partial(jax.jit, static_argnums=(0, 1))
def _draw_chunk(draw: Callable, form: Form, argument: Any, words: Array) -> Any:
    keys = jax.random.wrap_key_data(words, impl="threefry2x32")
    return jax.vmap(lambda key: form.check(draw(key, argument)))(keys)


def _keys(*, n_toys: int, seed: int, first: int) -> np.ndarray:
    """Words of the keys of toys, (n_toys, 2)."""
    for name, value in (("n_toys", n_toys), ("seed", seed), ("first", first)):
        if not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be a whole number, got {shown(value)}")
    if n_toys < 0 or first < 0 or first + n_toys > 2**32:
        raise ValueError(f"toys must have indices 0 <= k < 2^32, got n_toys = {n_toys} from first = {first} on")
    keys = np.empty((n_toys, 2), np.uint32)
    randombits.toy_keys(*randombits.key_words(seed), first, keys)
    return keys


def checked_theta(theta: ArrayLike, names: Iterable[str]) -> np.ndarray:
    """Parameters as (n_params,) float64; ValueError if their number is wrong or one is not finite."""
    array, names = np.array(theta, dtype=np.float64), tuple(names)
    if array.shape != (len(names),):
        raise ValueError(f"theta must have shape ({len(names)},), got {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"theta must be finite, got {dict(zip(names, array.tolist(), strict=True))}")
    return array


def evaluated(function: Callable, *args: Any) -> np.ndarray:
    """A function of known numbers in jax.numpy, computed now in float64, even where a caller is being traced."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        return np.array(function(*(jnp.asarray(a, jnp.float64) for a in args)), dtype=np.float64)


def padded_size(n: int) -> int:
    """`n` and up to 1/8 more, so that few shapes are compiled."""
    step = 1 << max(0, int(n).bit_length() - 4)
    return max(1, -(-n // step) * step)
