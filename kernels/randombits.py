"""Uniform random numbers by (seed, toy, stream, position), bit for bit the same in JAX and in numba.

Both sides are Threefry-2x32 with 20 rounds, the default generator of JAX: a key is two 32-bit words, a stream
is a key with a number folded in, and element i of a stream depends on (key, i) alone. The key of a toy is
`fold_in(key(seed), toy)`, so a toy does not depend on the chunk in which it is made.

A uniform number is u = (k + 1/2) 2^-52, where k is the upper 52 of 64 random bits. This is exact in float64
and lies between 2^-53 and 1 - 2^-53, so that neither u nor 1 - u is ever 0.

The numba side holds all of its helpers and its loops over toys in this file, because numba's cache on disk
notices changes of one file only. All of it is compiled when it is first called: who reads a file throws no toys.

References
----------
Salmon, Moraes, Dror & Shaw, Parallel random numbers: as easy as 1, 2, 3, SC'11 (2011), section 3.3.
"""

import operator
import sys
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.random import threefry_2x32
from numba import njit, prange, types
from numba.core.sigutils import normalize_signature

from kernels.threads import ONE_AT_A_TIME
from kernels.translate import MAP_SIGNATURE
from kernels.vectormath import use_wide_vectors

__all__ = [
    "LARGEST_UNIFORM",
    "SMALLEST_UNIFORM",
    "bin_counts",
    "entries_up_to",
    "fold_in",
    "fold_keys",
    "key_words",
    "map_entries",
    "map_uniforms",
    "stream_counts",
    "table_counts",
    "tally",
    "threefry2x32",
    "toy_key",
    "toy_keys",
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
_AT_ONCE = 64  # toys or numbers that are looked up in a table together
_BLOCK = 512  # numbers whose bits wait in the first cache
_PART = 1024
_PLACE_OF_LOW = np.uint64(0 if sys.byteorder == "little" else 1)  # the low word in the memory of 64 bits
_PARITY = np.uint32(0x1BD11BDA)
_ONE_BITS = np.uint64(0x3FF0000000000000)
# rotations and injections; of plain integers numba would compile the helpers for each anew
_A0, _A1, _A2, _A3, _B0, _B1, _B2, _B3 = map(np.uint32, (13, 15, 26, 6, 17, 29, 16, 24))
_FIRST, _SECOND, _THIRD, _FOURTH, _FIFTH = map(np.uint32, range(1, 6))


@njit(**_INLINE)
def _mix(x0, x1, rotation):
    # numba widens every sum and shift to 64 bits; each is cut back
    x0 = np.uint32(x0 + x1)
    x1 = np.uint32(np.uint32(x1 << rotation) | np.uint32(x1 >> np.uint32(32 - rotation)))
    return x0, np.uint32(x0 ^ x1)


@njit(**_INLINE)
def _four_rounds(x0, x1, r0, r1, r2, r3, key0, key1, injection):
    """Four rounds with their rotations, then the next two words of the key."""
    x0, x1 = _mix(x0, x1, r0)
    x0, x1 = _mix(x0, x1, r1)
    x0, x1 = _mix(x0, x1, r2)
    x0, x1 = _mix(x0, x1, r3)
    return np.uint32(x0 + key0), np.uint32(x1 + np.uint32(key1 + injection))


@njit(**_INLINE)
def threefry2x32(key0, key1, x0, x1):
    """The two words of Threefry-2x32 with 20 rounds; all arguments are uint32."""
    key2 = np.uint32(np.uint32(key0 ^ key1) ^ _PARITY)
    x0, x1 = np.uint32(x0 + key0), np.uint32(x1 + key1)
    x0, x1 = _four_rounds(x0, x1, _A0, _A1, _A2, _A3, key1, key2, _FIRST)
    x0, x1 = _four_rounds(x0, x1, _B0, _B1, _B2, _B3, key2, key0, _SECOND)
    x0, x1 = _four_rounds(x0, x1, _A0, _A1, _A2, _A3, key0, key1, _THIRD)
    x0, x1 = _four_rounds(x0, x1, _B0, _B1, _B2, _B3, key1, key2, _FOURTH)
    return _four_rounds(x0, x1, _A0, _A1, _A2, _A3, key2, key0, _FIFTH)


@njit(**_INLINE)
def fold_in(key0, key1, number):
    """`jax.random.fold_in` on the words of a key, for 0 <= number < 2^32."""
    return threefry2x32(key0, key1, np.uint32(0), np.uint32(number))


@njit(**_INLINE)
def _in_unit_interval(bits):
    # 52 bits behind a leading 1 are a number in [1, 2)
    return np.uint64((bits >> np.uint64(12)) | _ONE_BITS).view(np.float64) - LARGEST_UNIFORM


@njit(**_INLINE)
def _uniform(key0, key1, i):
    """Element i < 2^32 of a stream."""
    high, low = threefry2x32(key0, key1, np.uint32(0), np.uint32(i))
    return _in_unit_interval((np.uint64(high) << np.uint64(32)) | np.uint64(low))


@njit(**_LOOP)
def _fill(key0, key1, first, out):
    """Fill `out` with the numbers of a stream from `first` on."""
    use_wide_vectors()
    words, bits = out.view(np.uint32), out.view(np.uint64)
    # where 64-bit numbers stand in the loop of the 32-bit words, LLVM takes half as many words at once; unsigned, or
    # numba would look for negative indices at every number
    for begin in range(np.uint64(0), np.uint64(len(out)), np.uint64(_BLOCK)):
        n = min(np.uint64(_BLOCK), np.uint64(len(out)) - begin)
        block = words[np.int64(2 * begin) :]
        for i in range(np.uint32(n)):
            high, low = threefry2x32(key0, key1, np.uint32(0), np.uint32(np.uint32(first + begin) + np.uint32(i)))
            block[np.uint64(2) * np.uint64(i) + _PLACE_OF_LOW] = low
            block[np.uint64(2) * np.uint64(i) + (np.uint64(1) - _PLACE_OF_LOW)] = high
        for i in range(begin, begin + n):
            out[i] = _in_unit_interval(bits[i])


@njit(**_LOOP)
def uniforms(key0, key1, out):
    """Fill `out`, (n,) float64, with the first numbers of a stream; key0 and key1 are uint32."""
    _fill(key0, key1, np.uint32(0), out)


@njit(**_LOOP)
def entries_up_to(table, begin, end, u, found):
    """How many of the entries begin to end of an increasing table are <= u, for each of several u."""
    # many searches at once, and no branch that depends on u: LLVM makes vectors of them
    use_wide_vectors()
    found[:] = 0
    n = end - begin
    while n > 0:
        half = (n + 1) // 2
        last = np.uint64(begin + half - 1)
        for i in range(len(u)):
            found[i] += half if table[last + np.uint64(found[i])] <= u[i] else 0
        n -= half


@njit(**_LOOP)
def map_entries(table, rows, begin, end):
    """`entries_up_to` of row 0 in place, for `map_uniforms`."""
    n = end - begin
    u, found = np.empty(n), np.empty(n, np.int64)
    for i in range(n):
        u[i] = rows[0, begin + i]
    entries_up_to(table, 0, len(table), u, found)
    for i in range(n):
        rows[0, begin + i] = found[i]


@njit(**_LOOP)
def toy_keys(key0, key1, first, keys):
    """Words of the keys of the toys first, first + 1, ... of a seed, whose words are uint32, into (n_toys, 2)."""
    for t in range(len(keys)):
        keys[t, 0], keys[t, 1] = fold_in(key0, key1, first + t)


@njit(**_LOOP)
def fold_keys(keys, number, folded):
    """`fold_in` of one number on many keys, (n_toys, 2)."""
    for t in range(len(keys)):
        folded[t, 0], folded[t, 1] = fold_in(keys[t, 0], keys[t, 1], number)


_COUNT_SIGNATURE = "void(u4[:, ::1], f8[::1], i8[::1], f8[:, ::1])"


@njit(**_LOOP)
def _look_up(tables, whole, counts):
    """Counts of uniform numbers in place, one table after the other, so that it stays in the cache."""
    n_toys, n = counts.shape
    u, found = np.empty(n_toys), np.empty(n_toys, np.int64)
    for c in range(n):
        for t in range(n_toys):
            u[t] = counts[t, c]
        entries_up_to(tables, whole[c], whole[c + 1], u, found)
        for t in range(n_toys):
            counts[t, c] = whole[n + 1 + c] + found[t]


@njit(**_LOOP)
def stream_counts(keys, tables, whole, counts):
    """Count c of every toy with the first number of stream 2 c.

    `whole` holds offsets (n + 1,) and the least counts (n,): count c is least[c] plus the number of entries <= u in
    tables[offsets[c]:offsets[c + 1]].
    """
    for t in range(len(keys)):
        for c in range(counts.shape[1]):
            stream0, stream1 = fold_in(keys[t, 0], keys[t, 1], 2 * c)
            counts[t, c] = _uniform(stream0, stream1, 0)
    _look_up(tables, whole, counts)


@njit(**_LOOP)
def bin_counts(keys, tables, whole, counts):
    """As `stream_counts`, but count c with number c of stream 0."""
    for t in range(len(keys)):
        stream0, stream1 = fold_in(keys[t, 0], keys[t, 1], 0)
        uniforms(stream0, stream1, counts[t])
    _look_up(tables, whole, counts)


@njit(**_LOOP)
def tally(keys, table, whole, counts):
    """How many of the first whole[0] numbers of stream 0 have c table entries <= u, for each c."""
    u, found = np.empty(_AT_ONCE), np.empty(_AT_ONCE, np.int64)
    counts[:] = 0.0
    for t in range(len(keys)):
        stream0, stream1 = fold_in(keys[t, 0], keys[t, 1], 0)
        for begin in range(0, whole[0], _AT_ONCE):
            _fill(stream0, stream1, np.uint32(begin), u)
            entries_up_to(table, 0, len(table), u, found)
            for i in range(min(_AT_ONCE, whole[0] - begin)):
                counts[t, found[i]] += 1.0


_COUNT = types.FunctionType(types.void(*normalize_signature(_COUNT_SIGNATURE)[0]))


def table_counts(function: Any, keys: np.ndarray, tables: np.ndarray, whole: np.ndarray, counts: np.ndarray) -> None:
    """Counts of all toys.

    Parameters
    ----------
    function : `stream_counts`, `bin_counts` or `tally`
    keys : (n_toys, 2) uint32
        Words of the keys of the toys.
    tables : (length,) float64
    whole : int64
        See the function.
    counts : (n_toys, n) float64
        The result.
    """
    function.compile(_COUNT_SIGNATURE)
    with ONE_AT_A_TIME:
        _table_counts()(function, keys, tables, whole, counts)


@cache
def _table_counts() -> Any:
    @njit(types.void(_COUNT, types.u4[:, ::1], types.f8[::1], types.i8[::1], types.f8[:, ::1]), parallel=True, **_LOOP)
    def table_counts(function, keys, tables, whole, counts):
        for block in prange((len(keys) + _AT_ONCE - 1) // _AT_ONCE):
            begin, end = block * _AT_ONCE, min((block + 1) * _AT_ONCE, len(keys))
            function(keys[begin:end], tables, whole, counts[begin:end])

    return table_counts


_MAP = types.FunctionType(types.void(*normalize_signature(MAP_SIGNATURE)[0]))


@njit(**_LOOP)
def _fill_stream(function, theta, key0, key1, rows, begin, end):
    # in parts that stay in the first cache
    for first in range(begin, end, _PART):
        last = min(first + _PART, end)
        _fill(key0, key1, np.uint32(first - begin), rows[0, first:last])
        function(theta, rows, first, last)


def map_uniforms(
    function: Any, theta: np.ndarray, keys: np.ndarray, stream: int, starts: np.ndarray, counts: np.ndarray,
    rows: np.ndarray,
) -> None:  # fmt: skip
    """`function` of the first numbers of one stream of every toy.

    Parameters
    ----------
    function : compiled by `kernels.translate.compile_map`, or for its signature
    theta : (n_params,) float64
    keys : (n_toys, 2) uint32
        Words of the keys of the toys.
    stream : int64
    starts, counts : (n_toys,) int64
        Toy t gets rows[0, starts[t] : starts[t] + counts[t]].
    rows : (1, n_events) float64
        The result.
    """
    if not function.signatures:
        function.compile(MAP_SIGNATURE)
    with ONE_AT_A_TIME:
        _map_uniforms()(function, theta, keys, stream, starts, counts, rows)


@cache
def _map_uniforms() -> Any:
    @njit(
        types.void(_MAP, types.f8[::1], types.u4[:, ::1], types.i8, types.i8[::1], types.i8[::1], types.f8[:, ::1]),
        parallel=True,
        **_LOOP,
    )
    def map_uniforms(function, theta, keys, stream, starts, counts, rows):
        for t in prange(len(starts)):
            stream0, stream1 = fold_in(keys[t, 0], keys[t, 1], stream)
            _fill_stream(function, theta, stream0, stream1, rows, starts[t], starts[t] + counts[t])

    return map_uniforms
