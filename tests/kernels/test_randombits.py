import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from engine import cpu
from kernels import randombits, threads
from kernels.inversion import map_quantiles

WORDS = np.random.default_rng(1).integers(0, 2**32, size=(6, 2)).astype(np.uint32)


def as_key(words):
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def numba_uniforms(words, n):
    out = np.empty(n)
    randombits.uniforms(*words, out)
    return out


# Random123 1.14, tests/kat_vectors, "threefry2x32 20"
@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(counter, key, expected):
    assert randombits.threefry2x32(*np.array([*key, *counter], np.uint32)) == expected


@pytest.mark.parametrize("words", WORDS)
def test_uniforms_are_the_bits_of_jax(words):
    with jax.enable_x64(True):
        bits = np.asarray(jax.random.bits(as_key(words), (1001,), jnp.uint64))
    expected = [(int(b >> np.uint64(12)) + 0.5) / 2**52 for b in bits]
    np.testing.assert_array_equal(numba_uniforms(words, 1001), expected)
    np.testing.assert_array_equal(randombits.uniform(as_key(words), 1001), expected)


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("number", [0, 1, 77, 2**31, 2**32 - 1])
def test_fold_in_is_that_of_jax(words, number):
    expected = jax.random.key_data(jax.random.fold_in(as_key(words), np.uint32(number)))
    assert randombits.fold_in(*words, number) == tuple(int(word) for word in expected)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32 + 5, 2**63 - 1])
@pytest.mark.parametrize("toy", [0, 3, 2**32 - 1])
def test_toy_key_is_that_of_jax(seed, toy):
    with jax.enable_x64(True):
        expected = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), np.uint32(toy))
    found = jax.random.key_data(randombits.toy_key(seed, toy))
    np.testing.assert_array_equal(found, jax.random.key_data(expected))
    assert randombits.fold_in(*map(np.uint32, randombits.key_words(seed)), toy) == tuple(int(w) for w in found)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match="0 <= seed < 2\\^64"):
        randombits.key_words(seed)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("partitionable", [False, True])
def test_flags_and_transformations_change_nothing(x64, partitionable):
    expected = [numba_uniforms(words, 64) for words in WORDS]
    with jax.enable_x64(x64), jax.threefry_partitionable(partitionable):
        assert randombits.uniform(as_key(WORDS[0]), 64).dtype == np.float64
        padded = jax.jit(jax.vmap(lambda key: randombits.uniform(key, 100)))(as_key(WORDS))
    np.testing.assert_array_equal(padded[:, :64], expected)


def test_uniforms_are_uniform():
    u = np.concatenate([numba_uniforms(words, 200_000) for words in WORDS])
    assert u.min() >= randombits.SMALLEST_UNIFORM
    assert u.max() <= randombits.LARGEST_UNIFORM
    # k + 1/2 in units of 2^-52 is odd in units of 2^-53: nothing was rounded, neither here nor in 1 - u
    assert np.all(u * 2.0**53 % 2 == 1)
    np.testing.assert_array_equal(1.0 - (1.0 - u), u)
    # one fixed draw of 1.2e6: a distribution function that is off by 0.002 anywhere fails
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    # neighbours, and streams at the same position: standard error 1/sqrt(n)
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(len(u))
    assert abs(np.corrcoef(u[:200_000], u[200_000:400_000])[0, 1]) < 4 / np.sqrt(200_000)


def test_loops_over_toys_are_entered_by_one_thread_at_a_time(monkeypatch):
    """numba's threading layer `workqueue`, the only one on some machines, ends the process otherwise."""
    inside = []
    lock = threads.ONE_AT_A_TIME
    for name in ("_map_uniforms", "_table_counts"):
        monkeypatch.setattr(randombits, name, lambda: lambda *_: inside.append(lock.locked()))
    randombits.map_uniforms(map_quantiles, None, None, 0, None, None, None)
    randombits.table_counts(randombits.tally, None, None, None, None)
    assert inside == [True, True] and not lock.locked() and lock is cpu.ONE_AT_A_TIME
