"""Toys of any sampler, drawn by JAX and put together as data for `fit_batch`, as `toys.forms` has them."""

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from engine.cost import Cost, model_mistakes
from engine.data import shown
from engine.device_memory import free_memory
from engine.lanes import bucket
from engine.resident import Resident
from kernels import randombits
from toys.forms import Events, Form, Points, Row, Together, form_of

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
    "one_toy",
    "padded_size",
    "uses_key",
]

# JAX draws as many toys at once as have this many numbers: 32 MiB on a CPU, and on an accelerator 512 MiB, since to
# tell it to draw takes longer than to draw 128 MiB
_NUMBERS_AT_ONCE = {"cpu": 2**22, "accelerator": 2**26}
# an accelerator draws no fewer, so that a single toy and the rest of a run need no compilation of their own
_FEWEST_NUMBERS = 2**22


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
        on_cpu, size = _device().platform == "cpu", max(1, self.size(tables))
        at_once = _NUMBERS_AT_ONCE["cpu" if on_cpu else "accelerator"]
        fewest = 1 if on_cpu else bucket(_FEWEST_NUMBERS // size, 1)
        chunk = max(1, min(at_once // size, max(fewest, padded_size(len(keys)))))
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
        Toys drawn at once; has no effect on the result but for rounding.
    cost : Cost, optional
        What will be fitted: `toys.forms` says what a sampler returns for it. Without it, the data are unbinned.

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
    """One toy for each key, as `form` joins them; events stay on an accelerator that holds them."""
    n_toys = len(keys)
    words = keys if n_toys else np.zeros((1, 2), np.uint32)  # one toy tells the shapes
    with jax.enable_x64(True):
        argument = jax.device_put(argument)  # once for all chunks
        # the last chunk is filled up, so that only one shape is compiled
        chunks: Iterator = (
            _draw_chunk(draw, form, argument, words[np.minimum(np.arange(begin, begin + chunk), len(words) - 1)])
            for begin in range(0, len(words), chunk)
        )
        first = next(chunks)
        chunks = chain([first], chunks)
        if isinstance(form, Events) and n_toys and _stays(first[0].nbytes // len(first[0]) * n_toys):
            return _resident(form, chunks, n_toys)
        made = [form.cut(jax.device_get(drawn), min(chunk, n_toys - k * chunk)) for k, drawn in enumerate(chunks)]
    return form.join(made)


def _device() -> jax.Device:
    """Where JAX draws."""
    return _default(jax.config.jax_default_device)  # type: ignore[attr-defined]


@lru_cache
def _default(told: Any) -> jax.Device:
    """Asked of JAX once for each default that it is told, since it computes something there to tell."""
    [device] = jnp.zeros(()).devices()
    return device


def _stays(n_bytes: int) -> bool:
    """Whether so many bytes of toys stay there: on an accelerator of which they take a quarter of the free memory."""
    device = _device()
    memory = free_memory([device])
    return device.platform != "cpu" and (memory is None or n_bytes <= memory // 4)


def _resident(form: Events, chunks: Iterable[tuple[Array, Array]], n_toys: int) -> Resident:
    """All chunks in one array, which is filled in place, so that not all of them are in memory besides."""
    whole: Any = None
    n = []
    for k, (values, counts) in enumerate(chunks):
        n.append(counts)
        if len(values) >= n_toys:
            whole = values
            continue
        if not k:
            whole = jnp.zeros((-(-n_toys // len(values)) * len(values), *values.shape[1:]))
        whole = _placed(whole, values, k * len(values))
    return Resident(whole, form.counts(np.concatenate(jax.device_get(n))[:n_toys], whole.shape[-1]))


@partial(jax.jit, donate_argnums=0)
def _placed(whole: Array, part: Array, begin: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, begin, axis=0)


@partial(jax.jit, static_argnums=(0, 1))
def _draw_chunk(draw: Callable, form: Form, argument: Any, words: Array) -> Any:
    keys = jax.random.wrap_key_data(words, impl="threefry2x32")
    return jax.vmap(lambda key: form.check(one_toy(draw, key, argument)))(keys)


def one_toy(draw: Callable, key: Array, argument: Any) -> Any:
    """What a sampler returns, or the draw of one; TypeError says what goes wrong inside a function of the user."""
    if isinstance(getattr(draw, "__self__", None), Sampler):
        return draw(key, argument)
    advice = (
        "it is called as sampler(key, theta) with an array of the parameters in their order, and traced by JAX, so "
        "write it with jax.numpy and jax.random"
    )
    with model_mistakes(draw, "one toy", advice, "the sampler"):
        return draw(key, argument)


def uses_key(draw: Callable, argument: Any) -> bool:
    """Whether toys depend on the key of a sampler: those of `numpy.random` are drawn once, when JAX traces it."""
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(draw)(jax.random.key(0, impl="threefry2x32"), argument).jaxpr
    needed = {id(v) for v in jaxpr.outvars}
    for eqn in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in eqn.outvars):
            needed.update(id(v) for v in eqn.invars)
    return id(jaxpr.invars[0]) in needed


def _keys(*, n_toys: int, seed: int, first: int) -> np.ndarray:
    """Words of the keys of toys, (n_toys, 2)."""
    for name, value in (("n_toys", n_toys), ("seed", seed), ("first", first)):
        if not isinstance(value, int | np.integer):
            raise TypeError(f"{name} must be a whole number, got {shown(value)}")
    if n_toys < 0 or first < 0 or first + n_toys > 2**32:
        raise ValueError(f"toys must have indices 0 <= k < 2^32, got n_toys = {n_toys} from first = {first} on")
    keys = np.empty((n_toys, 2), np.uint32)
    randombits.toy_keys(*map(np.uint32, randombits.key_words(seed)), first, keys)
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
