"""Uniform random numbers by (seed, toy, stream, position), bit for bit the same in JAX and in numba.

Both sides are Threefry-2x32 with 20 rounds, the default generator of JAX: a key is two 32-bit words, a stream
is a key with a number folded in, and element i of a stream depends on (key, i) alone. The key of a toy is
`fold_in(key(seed), toy)`, so a toy does not depend on the chunk in which it is made.

A uniform number is u = (k + 1/2) 2^-52, where k is the upper 52 of 64 random bits. This is exact in float64
and lies between 2^-53 and 1 - 2^-53, so that neither u nor 1 - u is ever 0.

The numba side holds all of its helpers and its two loops over toys in this file, because numba's cache on
disk notices changes of one file only.

References
----------
Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3, SC'11 (2011), section 3.3.
"""

import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.random import threefry_2x32
from numba import njit, prange, types
from numba.core.sigutils import normalize_signature

from kernels.translate import MAP_SIGNATURE

__all__ = [
    "LARGEST_UNIFORM",
    "SMALLEST_UNIFORM",
    "fold_in",
    "key_words",
    "map_uniforms",
    "table_counts",
    "threefry2x32",
    "toy_key",
    "uniform",
    "uniforms",
]

SMALLEST_UNIFORM = 2.0**-53
LARGEST_UNIFORM = 1.0 - 2.0**-53


def key_words(seed: int) -> tuple[int, int]:
    """The two 32-bit words of `jax.random.key(seed)`: the high and the low half of the seed.

    Raises
    ------
    ValueError
        If the seed does not lie in 0 <= seed < 2^64.
    """
    seed = operator.index(seed)
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must lie in 0 <= seed < 2^64, got {seed}")
    return seed >> 32, seed & 0xFFFFFFFF


def toy_key(seed: int, toy: int | Array) -> Array:
    """Random key of a toy, `fold_in(key(seed), toy)`, whatever JAX's default generator is.

    Parameters
    ----------
    seed : int
        0 <= seed < 2^64.
    toy : int or () uint32
        0 <= toy < 2^32; may be traced.
    """
    root = jax.random.wrap_key_data(jnp.asarray(key_words(seed), np.uint32), impl="threefry2x32")
    return jax.random.fold_in(root, jnp.asarray(toy, jnp.uint32))


def uniform(key: Array, n: int) -> Array:
    """The first n uniform numbers of a stream, whatever JAX's flags for float64 and random bits are.

    Parameters
    ----------
    key : key of the "threefry2x32" generator
        The stream.
    n : int
        How many; a longer draw begins with the numbers of a shorter one.

    Returns
    -------
    (n,) float64
    """
    # these are the bits of jax.random.bits, which reads the flags once more when a caller's program is
    # lowered, where no context reaches
    counters = jnp.concatenate([jnp.zeros(n, jnp.uint32), jnp.arange(n, dtype=jnp.uint32)])
    high, low = jnp.split(threefry_2x32(jax.random.key_data(key), counters), 2)
    with jax.enable_x64(True):
        k = high.astype(jnp.float64) * 2.0**20 + (low >> 12).astype(jnp.float64)
        return (k + 0.5) * 2.0**-52


# No fast-math flag: sampling decides on these numbers.
_INLINE = {"error_model": "numpy"}
_LOOP = {"error_model": "numpy", "cache": True, "nogil": True}
_PARITY = np.uint32(0x1BD11BDA)
_ONE_BITS = np.uint64(0x3FF0000000000000)


@njit(**_INLINE)
def _mix(x0, x1, rotation):
    # numba widens every sum and shift to 64 bits; each is cut back
    x0 = np.uint32(x0 + x1)
    x1 = np.uint32(np.uint32(x1 << np.uint32(rotation)) | np.uint32(x1 >> np.uint32(32 - rotation)))
    return x0, np.uint32(x0 ^ x1)


@njit(**_INLINE)
def _four_rounds(x0, x1, r0, r1, r2, r3, key0, key1, injection):
    """Four rounds with their rotations, then the next two words of the key."""
    x0, x1 = _mix(x0, x1, r0)
    x0, x1 = _mix(x0, x1, r1)
    x0, x1 = _mix(x0, x1, r2)
    x0, x1 = _mix(x0, x1, r3)
    return np.uint32(x0 + key0), np.uint32(x1 + np.uint32(key1 + np.uint32(injection)))


@njit(**_INLINE)
def threefry2x32(key0, key1, x0, x1):
    """The two words of Threefry-2x32 with 20 rounds; all arguments are uint32."""
    key2 = np.uint32(np.uint32(key0 ^ key1) ^ _PARITY)
    x0, x1 = np.uint32(x0 + key0), np.uint32(x1 + key1)
    x0, x1 = _four_rounds(x0, x1, 13, 15, 26, 6, key1, key2, 1)
    x0, x1 = _four_rounds(x0, x1, 17, 29, 16, 24, key2, key0, 2)
    x0, x1 = _four_rounds(x0, x1, 13, 15, 26, 6, key0, key1, 3)
    x0, x1 = _four_rounds(x0, x1, 17, 29, 16, 24, key1, key2, 4)
    return _four_rounds(x0, x1, 13, 15, 26, 6, key2, key0, 5)


@njit(**_INLINE)
def fold_in(key0, key1, number):
    """`jax.random.fold_in` on the words of a key, for 0 <= number < 2^32."""
    return threefry2x32(key0, key1, np.uint32(0), np.uint32(number))


@njit(**_INLINE)
def _uniform(key0, key1, i):
    """Element i < 2^32 of a stream."""
    high, low = threefry2x32(key0, key1, np.uint32(0), np.uint32(i))
    bits = (np.uint64(high) << np.uint64(32)) | np.uint64(low)
    # 52 bits behind a leading 1 are a number in [1, 2)
    return np.uint64((bits >> np.uint64(12)) | _ONE_BITS).view(np.float64) - LARGEST_UNIFORM


@njit("void(u4, u4, f8[::1])", **_LOOP)
def uniforms(key0, key1, out):
    """Fill `out` with the first numbers of a stream."""
    for i in range(len(out)):
        out[i] = _uniform(key0, key1, i)


@njit("i8(f8[::1], f8)", **_LOOP)
def _entries_up_to(table, u):
    """How many entries of an increasing table are <= u."""
    low, high = 0, len(table)
    while low < high:
        middle = (low + high) // 2
        if table[middle] <= u:
            low = middle + 1
        else:
            high = middle
    return low


@njit("void(u4, u4, f8[:, ::1], i8[::1], i8[::1])", **_LOOP)
def _counts_of_toy(key0, key1, tables, least, counts):
    for c in range(len(counts)):
        stream0, stream1 = fold_in(key0, key1, 2 * c)
        counts[c] = least[c] + _entries_up_to(tables[c], _uniform(stream0, stream1, 0))


_MAP = types.FunctionType(types.void(*normalize_signature(MAP_SIGNATURE)[0]))
_FILL = types.void(_MAP, types.f8[::1], types.u4, types.u4, types.f8[:, ::1], types.i8, types.i8)


@njit(_FILL, **_LOOP)
def _fill_stream(function, theta, key0, key1, rows, begin, end):
    uniforms(key0, key1, rows[0, begin:end])
    function(theta, rows, begin, end)


@njit("void(u4, u4, i8, f8[:, ::1], i8[::1], i8[:, ::1])", parallel=True, **_LOOP)
def table_counts(key0, key1, first, tables, least, counts):
    """Counts of every toy and component: least + number of table entries <= u.

    Component c of a toy takes the first number of stream 2 c of the toy's key.

    Parameters
    ----------
    key0, key1 : uint32
        Words of the key of the seed.
    first : int64
        Index of the first toy.
    tables : (n_components, length) float64
        Each row increases.
    least : (n_components,) int64
    counts : (n_toys, n_components) int64
        The result.
    """
    for t in prange(len(counts)):
        toy0, toy1 = fold_in(key0, key1, first + t)
        _counts_of_toy(toy0, toy1, tables, least, counts[t])


@njit(
    types.void(
        _MAP,
        types.f8[::1],
        types.u4,
        types.u4,
        types.i8,
        types.i8,
        types.i8[::1],
        types.i8[::1],
        types.f8[:, ::1],
    ),
    parallel=True,
    **_LOOP,
)
def map_uniforms(function, theta, key0, key1, first, component, starts, counts, rows):
    """Events of one component of every toy: `function` of the first numbers of stream 2 component + 1.

    Parameters
    ----------
    function : compiled by `kernels.translate.compile_map`
    theta : (n_params,) float64
    key0, key1 : uint32
        Words of the key of the seed.
    first, component : int64
        Index of the first toy; number of the component.
    starts, counts : (n_toys,) int64
        Toy t gets rows[0, starts[t] : starts[t] + counts[t]].
    rows : (1, n_events) float64
        The result.
    """
    for t in prange(len(starts)):
        toy0, toy1 = fold_in(key0, key1, first + t)
        stream0, stream1 = fold_in(toy0, toy1, 2 * component + 1)
        _fill_stream(function, theta, stream0, stream1, rows, starts[t], starts[t] + counts[t])
