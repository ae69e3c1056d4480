import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.kernel_source import kernel_source
from kernels.program import ABSOLUTE, GRADIENT, SECOND, VALUE, build_program
from kernels.translate import cache_directory, compile_kernel, compile_map
from kernels.xla import row_sums, row_sums_untranslated


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache that starts empty, so that what is tested is compiled here and not by an earlier version."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("cache")
        patch.setenv("BATCHFIT_CACHE", str(directory))
        yield directory


class Case(NamedTuple):
    term: object
    rest: object
    program: object
    kernel: object


def make_case(term, rest=None, **sizes):
    program = build_program(term, rest, **sizes)
    return Case(term, rest, program, compile_kernel(program))


def by_numba(case, theta, columns, shared=None, aux=(), begin=0, end=None):
    columns = np.ascontiguousarray(columns, dtype=float)
    end = columns.shape[1] if end is None else end
    shared = np.zeros((0, 0)) if shared is None else np.ascontiguousarray(shared)
    out = np.full(len(case.program.combinations), 777.0)
    case.kernel(np.array(theta, dtype=float), columns, shared, np.array(aux, dtype=float), begin, end, SECOND, out)
    return out


def by_xla(case, theta, columns, shared=None, aux=(), *, n=None, tile=None, order=2, untranslated=False):
    columns = np.asarray(columns, dtype=float)
    n_rows = columns.shape[1] if shared is None or columns.size else np.shape(shared)[1]
    shared = np.zeros((0, n_rows)) if shared is None else shared
    tile = n_rows if tile is None else tile
    with jax.enable_x64(True):
        if untranslated:
            sums = row_sums_untranslated(case.term, case.rest, case.program.n_params, tile, order)
        else:
            sums = row_sums(case.program, tile, order)
        args = (jnp.array(theta, dtype=float), jnp.array(columns), jnp.array(shared), jnp.array(aux, dtype=float))
        return np.asarray(jax.jit(sums)(*args, n_rows if n is None else n))


BOTH = pytest.mark.parametrize("driver", [by_numba, by_xla])


# A plane through two observables, with a shared column and a measured value.
@pytest.fixture(scope="module")
def plane():
    def term(a, b, x, y, width, measured):
        return 0.5 * ((y - a * x) / width) ** 2 + jnp.log(1 + b * b * x * x) - 1

    def rest(a, b, x, y, width, measured):
        return -0.5 * (a - measured) ** 2 * b

    return make_case(term, rest, n_params=2, n_columns=2, n_shared=1, n_aux=1)


def plane_data(n=50):
    rng = np.random.default_rng(7)
    x = rng.uniform(0.5, 2, n)
    return np.stack([x, 1.5 * x + rng.normal(0, 0.2, n)]), rng.uniform(0.1, 0.3, (1, n))


def plane_truth(a, b, columns, shared, measured):
    """The outputs by hand."""
    (x, y), (width,) = columns, shared
    residual, bend = (y - a * x) / width, 1 + b * b * x * x
    each = 0.5 * residual**2 + np.log(bend) - 1  # of both signs, as the value of the rest is negative
    penalty = -0.5 * (a - measured) ** 2 * b
    outputs = [each.sum() + penalty, np.abs(each).sum() + abs(penalty)]
    outputs += [(-residual * x / width).sum() - (a - measured) * b]
    outputs += [(2 * b * x * x / bend).sum() - 0.5 * (a - measured) ** 2]
    outputs += [(x**2 / width**2).sum() - b, measured - a]
    outputs += [(2 * x * x / bend - (2 * b * x * x / bend) ** 2).sum()]
    return np.array(outputs)


THETA, AUX = (1.4, 0.6), (1.45,)


@BOTH
def test_columns_shared_and_aux_against_the_formula(driver, plane):
    columns, shared = plane_data()
    found = driver(plane, THETA, columns, shared, AUX)
    np.testing.assert_allclose(found, plane_truth(*THETA, columns, shared, *AUX), rtol=1e-13)


def test_layout_of_the_outputs(plane):
    columns, shared = plane_data()
    found = by_numba(plane, THETA, columns, shared, AUX)
    truth = plane_truth(*THETA, columns, shared, *AUX)
    assert (VALUE, ABSOLUTE, GRADIENT) == (0, 1, 2)
    step = 1e-5
    for k in range(2):
        shift = np.eye(2)[k] * step
        above, below = (by_numba(plane, THETA + sign * shift, columns, shared, AUX) for sign in (1, -1))
        # central differences: step^2 = 1e-10 of the third derivative
        np.testing.assert_allclose((above[VALUE] - below[VALUE]) / (2 * step), truth[GRADIENT + k], rtol=1e-6)
        np.testing.assert_allclose((above[2:4] - below[2:4])[: k + 1] / (2 * step), found[4:][k : 2 * k + 1], rtol=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 17, 49, 50])
def test_parts_of_the_rows_add_up(cut, plane):
    columns, shared = plane_data()
    rest = plane_truth(*THETA, columns[:, :0], shared[:, :0], *AUX)
    first = by_numba(plane, THETA, columns, shared[:, :cut], AUX, 0, cut)
    second = by_numba(plane, THETA, columns, shared[:, cut:], AUX, cut, 50)
    np.testing.assert_allclose(first + second - rest, by_numba(plane, THETA, columns, shared, AUX), rtol=1e-13)


def test_the_rows_of_one_toy_only(plane):
    columns, shared = plane_data()
    others = np.full((2, 9), np.nan)
    found = by_numba(plane, THETA, np.hstack([others, columns, others]), shared, AUX, 9, 59)
    np.testing.assert_array_equal(found, by_numba(plane, THETA, columns, shared, AUX))


@BOTH
def test_no_rows_leave_the_rest(driver, plane):
    # nothing of a row may enter, not even where rows lie next to it
    columns, shared = plane_data()
    none = {"end": 0} if driver is by_numba else {"n": 0}
    expected = plane_truth(*THETA, columns[:, :0], shared[:, :0], *AUX)
    np.testing.assert_allclose(driver(plane, THETA, columns, shared, AUX, **none), expected, rtol=1e-15)


@pytest.mark.parametrize("untranslated", [False, True])
def test_tiles_change_rounding_only(untranslated, plane):
    columns, shared = plane_data(48)
    expected = plane_truth(*THETA, columns, shared, *AUX)
    for tile in (48, 100, 16, 3):
        found = by_xla(plane, THETA, columns, shared, AUX, tile=tile, untranslated=untranslated)
        np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("untranslated", [False, True])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("n", [1, 16, 37])
def test_padding_counts_for_nothing(n, garbage, untranslated, plane):
    columns, shared = plane_data(48)
    expected = plane_truth(*THETA, columns[:, :n], shared[:, :n], *AUX)
    columns[:, n:] = garbage
    shared[:, n:] = garbage
    found = by_xla(plane, THETA, columns, shared, AUX, n=n, tile=16, untranslated=untranslated)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@pytest.mark.parametrize("order, n_outputs", [(0, 2), (1, 4), (2, 7)])
@pytest.mark.parametrize("untranslated", [False, True])
def test_lower_orders_are_the_same_numbers(order, n_outputs, untranslated, plane):
    columns, shared = plane_data()
    found = by_xla(plane, THETA, columns, shared, AUX, order=order, untranslated=untranslated)
    np.testing.assert_allclose(found, plane_truth(*THETA, columns, shared, *AUX)[:n_outputs], rtol=1e-13)


@pytest.mark.parametrize("untranslated", [False, True])
def test_toys_side_by_side_agree_with_toys_alone(untranslated, plane):
    columns, shared = plane_data(32)
    thetas, auxs = np.array([[1.4, 0.6], [0.2, 2.0], [np.nan, 1.0]]), np.array([[1.45], [0.0], [1.0]])
    with jax.enable_x64(True):
        sums = row_sums_untranslated(plane.term, plane.rest, 2, 16) if untranslated else row_sums(plane.program, 16)
        together = jax.jit(jax.vmap(sums, in_axes=(0, None, None, 0, 0)))(thetas, columns, shared, auxs, np.full(3, 32))
    for found, theta, aux in zip(np.asarray(together)[:2], thetas, auxs, strict=False):
        np.testing.assert_allclose(found, plane_truth(*theta, columns, shared, *aux), rtol=1e-13)
    assert np.isnan(together[2]).any()


@BOTH
def test_shared_columns_alone(driver):
    case = make_case(lambda a, edge: jnp.exp(-a * edge), n_params=1, n_columns=0, n_shared=1)
    edges = np.linspace(0, 1, 12)
    found = driver(case, [2.0], np.zeros((0, 12)), edges[None], **({"end": 12} if driver is by_numba else {}))
    each = np.exp(-2 * edges)
    np.testing.assert_allclose(found, [each.sum()] * 2 + [-(edges @ each), edges**2 @ each], rtol=1e-14)


# Gaussian, in three units: the reference is the sufficient statistics of centred data.
@pytest.fixture(scope="module")
def gauss():
    def term(mu, sigma, x):
        return -jnp.log(jnp.exp(-0.5 * ((x - mu) / sigma) ** 2) / (jnp.sqrt(2 * jnp.pi) * sigma))

    return make_case(term, n_params=2, n_columns=1)


@BOTH
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_a_narrow_peak_far_from_zero(driver, unit, offset, gauss):
    mu, sigma, n = 5280.0 * unit, 10.0 * unit, 5000
    x = np.random.default_rng(11).normal(mu, sigma, n)
    theta = [mu + offset * sigma, sigma]
    found = driver(gauss, theta, x[None])
    z = (x.astype(np.longdouble) - theta[0]) / sigma
    value = float(np.sum(0.5 * z * z) + n * np.log(np.sqrt(2 * np.pi) * sigma))
    gradient = np.array([-z.sum(), n - (z * z).sum()], dtype=float) / sigma
    hessian = np.array([n, 2 * z.sum(), 3 * (z * z).sum() - n], dtype=float) / sigma**2
    h00, h11 = hessian[0], hessian[2]
    # x - mu is rounded at eps * 528 of sigma in x itself, which all methods see alike
    assert found[VALUE] == pytest.approx(value, rel=1e-13, abs=1e-13 * n)
    assert np.all(np.abs(found[2:4] - gradient) < 1e-12 * np.sqrt([h00 * n, h11 * n]))
    assert np.all(np.abs(found[4:] - hessian) < 1e-9 * np.sqrt([h00 * h00, h00 * h11, h11 * h11]))


# Densities that are no densities.
@pytest.fixture(scope="module")
def linear_density():
    return make_case(lambda a, b, x: -jnp.log(a * x + b), n_params=2, n_columns=1)


def kind(values):
    """nan, inf, -inf or finite, of each."""
    return [str(v) if not np.isfinite(v) else "finite" for v in np.atleast_1d(values)]


@pytest.mark.parametrize(
    "x, expected",
    [
        (2.0, "finite"),
        (-1.0, "nan"),
        (-1e-30, "nan"),
        (0.0, "inf"),
        (1e-310, "inf"),
        (np.nan, "nan"),
        (np.inf, "-inf"),
        (-np.inf, "nan"),
    ],
)
@pytest.mark.parametrize("place", [0, 6])
def test_a_bad_density_is_no_quiet_number(x, expected, place, linear_density):
    columns = np.linspace(1, 2, 11)[None]
    columns[0, place] = x
    theta = [1.0, 0.0]
    found = [
        by_numba(linear_density, theta, columns),
        by_xla(linear_density, theta, columns),
        by_xla(linear_density, theta, columns, untranslated=True),
    ]
    assert [kind(f[VALUE]) for f in found] == [[expected]] * 3
    finite = [np.isfinite(f).tolist() for f in found]
    assert finite[0] == finite[1] == finite[2]
    # a gradient at a negative density is finite (1 / negative): the value alone tells
    assert expected == "finite" or not np.isfinite(found[0][ABSOLUTE])


# Which function a row calls is written in the row, so that one kernel holds them all.
POISONS = [
    lambda a, x: jnp.sqrt(a * x),
    lambda a, x: jnp.power(x, 0.5 * a),
    lambda a, x: jnp.log1p(a * x),
    lambda a, x: a / x,
    lambda a, x: x**-2 * a,
    lambda a, x: jnp.exp(a * x * 1000),
    lambda a, x: jnp.maximum(a * x, 0.0),
    lambda a, x: jnp.minimum(0.0, a * x),
    lambda a, x: jnp.clip(a * x, -1.0, 1.0),
    lambda a, x: jnp.abs(a * x),
    lambda a, x: jnp.sign(x) * a,
    lambda a, x: jnp.arcsin(a * x),
    lambda a, x: jnp.arctanh(a * x),
    lambda a, x: jnp.arccosh(a * x),
    lambda a, x: jnp.cbrt(a * x),
    lambda a, x: jax.lax.rem(x, a),
    lambda a, x: a * jax.scipy.special.erf(x) + a * jax.scipy.special.erfc(x),
    lambda a, x: jnp.where(jnp.isfinite(x), a * x, -a),
    lambda a, x: jnp.sinh(a * x * 500) + jnp.tanh(a * x),
    lambda a, x: jnp.floor(x) * a + jnp.ceil(x),
    lambda a, x: jnp.expm1(a * x * 1000),
    lambda a, x: jax.lax.rsqrt(a * x),
    lambda a, x: jnp.where(x > 0, jnp.log(jnp.where(x > 0, a * x, 1.0)), 0.0),
    lambda a, x: jax.nn.softplus(a * x * 1000),
]


@pytest.fixture(scope="module")
def poisons():
    def term(a, x, which):
        total = 0.0
        for k, poison in enumerate(POISONS):
            total = jnp.where(which == k, poison(a, x), total)
        return total

    return make_case(term, n_params=1, n_columns=2)


@pytest.fixture(scope="module")
def poisoned_values(poisons):
    """(numba, XLA, JAX itself) of every function at every point: value and derivative."""
    points = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 3.0, 1e300, 1e-100])
    which, x = (a.ravel() for a in np.meshgrid(np.arange(len(POISONS)), points, indexing="ij"))
    columns = np.stack([x, which.astype(float)])
    numba = np.array([by_numba(poisons, [1.0], columns, begin=i, end=i + 1)[[VALUE, GRADIENT]] for i in range(len(x))])
    with jax.enable_x64(True):
        each = jax.jit(jax.vmap(lambda column: row_sums(poisons.program, 1)(*one_row(column))))
        xla = np.asarray(each(columns.T))[:, [VALUE, GRADIENT]]
        direct = []
        for k, poison in enumerate(POISONS):
            # forward, as in the program: reverse mode multiplies a branch that is not taken by 0, which may give NaN
            along = lambda a, x, f=poison: jnp.stack(jax.jvp(lambda a: f(a, x), (a,), (jnp.ones(()),)))  # noqa: E731
            with_slope = jax.jit(jax.vmap(along, in_axes=(None, 0)))
            direct.append(np.asarray(with_slope(jnp.array(1.0), jnp.array(x[which == k]))))
    return which, x, numba, xla, np.concatenate(direct)


def one_row(column):
    return jnp.ones(1), column[:, None], jnp.zeros((0, 1)), jnp.zeros(0), 1


@pytest.mark.parametrize("k", range(len(POISONS)))
def test_special_values_are_those_of_jax(k, poisoned_values):
    _which, x, numba, xla, direct = (v[poisoned_values[0] == k] for v in poisoned_values)
    for point, *found in zip(x, numba, xla, direct, strict=True):
        kinds = [kind(values)[0] for values in found]
        assert kinds[0] == kinds[1] == kinds[2], (point, found)
        if kinds[0] == "finite":
            np.testing.assert_allclose(found[0][0], found[2][0], rtol=1e-13, atol=1e-300)
        # the derivative may meet 0 * inf in another order, but a bad one is bad everywhere
        assert np.isfinite(found[0][1]) == np.isfinite(found[1][1]) == np.isfinite(found[2][1]), (point, found)


# The cache.
def scaled(factor):
    return lambda a, x: factor * a * x


def test_one_text_with_two_closures_is_two_kernels():
    kernels = [make_case(scaled(factor), n_params=1, n_columns=1) for factor in (2.0, 3.0, np.nextafter(3.0, 4.0))]
    found = [by_numba(kernel, [1.0], np.ones((1, 1)))[VALUE] for kernel in kernels]
    assert found == [2.0, 3.0, np.nextafter(3.0, 4.0)]
    assert len({id(case.kernel) for case in kernels}) == 3


def test_one_source_is_one_kernel():
    first, second = (make_case(scaled(2.0), n_params=1, n_columns=1) for _ in range(2))
    assert first.kernel is second.kernel
    assert kernel_source(first.program) == kernel_source(second.program)


PROGRAM = """
from kernels.program import build_program
from kernels.translate import compile_kernel
kernel = compile_kernel(build_program(lambda a, x: 2.0 * a * x, None, n_params=1, n_columns=1))
[hits] = kernel.stats.cache_hits.values() or [0]
print(hits, len(kernel.stats.cache_misses))
"""


def test_a_second_process_finds_the_machine_code(cache):
    kernel = make_case(scaled(2.0), n_params=1, n_columns=1).kernel
    path = Path(kernel.py_func.__code__.co_filename)
    assert path.parent == cache
    stored = sorted(file.suffix for file in cache.glob(f"__pycache__/{path.stem}*.nb?"))
    assert stored == [".nbc", ".nbi"]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    ran = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "0"]


def test_a_file_that_was_changed_is_not_run():
    case = make_case(scaled(5.0), n_params=1, n_columns=1)
    path = Path(case.kernel.py_func.__code__.co_filename)
    path.write_text(path.read_text().replace("5.0", "6.0"))
    del sys.modules[path.stem]
    with pytest.raises(RuntimeError, match=f"{path.stem}.*delete it"):
        compile_kernel(case.program)


def test_a_compilation_that_was_interrupted_can_be_repeated(monkeypatch):
    program = build_program(scaled(7.0), None, n_params=1, n_columns=1)
    with monkeypatch.context() as patch:
        patch.setattr("kernels.vectormath.COMPILE_ROW", {"fastmath": "nonsense"})
        with pytest.raises(ValueError):
            compile_kernel(program)
    out = np.empty(4)
    compile_kernel(program)(np.ones(1), np.ones((1, 1)), np.zeros((0, 0)), np.zeros(0), 0, 1, SECOND, out)
    assert out[VALUE] == 7.0


def test_a_cache_that_cannot_be_written_is_replaced(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("BATCHFIT_CACHE", str(blocked / "below"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = cache_directory()
    assert directory.is_dir() and directory.parent == tmp_path and directory.name.startswith("batchfit-")


def test_the_cache_is_private(monkeypatch, tmp_path):
    monkeypatch.setenv("BATCHFIT_CACHE", str(tmp_path / "new" / "cache"))
    assert cache_directory().stat().st_mode & 0o077 == 0


def test_a_map_replaces_one_column():
    mapped = compile_map(lambda u, a, b: a + b * jnp.log(u), 2)
    rows = np.array([[1.0, 0.5, np.nan, -1.0, 0.0, 2.0], [9.0] * 6])
    before = rows.copy()
    mapped(np.array([3.0, 2.0]), rows, 1, 5)
    with np.errstate(invalid="ignore", divide="ignore"):
        np.testing.assert_allclose(rows[0, 1:5], 3 + 2 * np.log(before[0, 1:5]), rtol=1e-15)
    np.testing.assert_array_equal(rows[0, [0, 5]], before[0, [0, 5]])
    np.testing.assert_array_equal(rows[1], before[1])


def test_the_loop_over_rows_is_vectorised(gauss):
    [code] = gauss.kernel.inspect_llvm().values() if gauss.kernel.overloads else [""]
    assert " x double>" in code
