import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy import special

from kernels import loops, rolling
from kernels.arrays import function_source
from kernels.buffers import Pool
from kernels.expectation import expectation_kernel
from kernels.nodes import UntranslatableError
from kernels.program import ABSOLUTE, GRADIENT, SECOND, VALUE
from kernels.translate import import_source, memory_of
from tests.kernels.density_cases import value_and_derivatives

RNG = np.random.default_rng(1)
X = RNG.uniform(0.2, 0.9, 6)
Y = RNG.uniform(-1.5, 1.5, (4, 6))
TABLE = RNG.normal(size=(6, 5))
STACK = RNG.normal(size=(3, 4, 6))
GRID = np.linspace(0.0, 1.0, 9)


@jax.custom_jvp
def tripled_slope(x):
    return jnp.sin(x)


@tripled_slope.defjvp
def _(primals, tangents):
    return tripled_slope(primals[0]), 3 * jnp.cos(primals[0]) * tangents[0]


def backward_scan(x, y):
    return lax.scan(lambda c, row: (c * x + row, jnp.sum(c * row)), x, y, reverse=True)


# f(x, y): 0.2 < x (6,) < 0.9, -1.5 < y (4, 6) < 1.5, a tuple of arrays
CASES = {
    "add sub mul div neg": lambda x, y: ((x + y) * (y - 2.0) / (1.0 + x), -y),
    "abs sign": lambda x, y: (jnp.abs(y), jnp.sign(y) * x),
    "exp exp2 log": lambda x, y: (jnp.exp(y), jnp.exp2(y), jnp.log(x)),
    "log1p expm1": lambda x, y: (jnp.log1p(x), jnp.expm1(y)),
    "sqrt rsqrt cbrt": lambda x, y: (jnp.sqrt(x), lax.rsqrt(x), jnp.cbrt(y)),
    "sin cos tan": lambda x, y: (jnp.sin(y), jnp.cos(y), jnp.tan(x)),
    "asin acos atan atan2": lambda x, y: (jnp.arcsin(x), jnp.arccos(x), jnp.arctan(y), jnp.arctan2(y, x - 0.5)),
    "sinh cosh tanh": lambda x, y: (jnp.sinh(y), jnp.cosh(y), jnp.tanh(y)),
    "asinh acosh atanh": lambda x, y: (jnp.arcsinh(y), jnp.arccosh(1.1 + x), jnp.arctanh(x)),
    "erf erfc lgamma": lambda x, y: (special.erf(y), special.erfc(y), special.gammaln(x + 2.0)),
    "digamma trigamma": lambda x, y: (special.digamma(x + 2.0), special.polygamma(1, x + 2.0)),
    "floor ceil rem pow": lambda x, y: (jnp.floor(y), jnp.ceil(y), lax.rem(y, x + y * 0), x**y),
    "max min": lambda x, y: (jnp.maximum(x, y), jnp.minimum(x, y)),
    "comparisons": lambda x, y: tuple(
        jnp.where(c, x, y) for c in (y < x, y <= x, y > x, y >= x, y == x, y != x, (y < x) & ~(y > 0) | (x > 0.5))
    ),
    "is_finite": lambda x, y: (jnp.where(jnp.isfinite(jnp.log(y)), y, 0.0),),
    "integer_pow square": lambda x, y: (y**5, x**-3, lax.square(y)),
    "logistic": lambda x, y: (jax.nn.sigmoid(y),),
    "clamp": lambda x, y: (jnp.clip(y, -0.5, 0.5), lax.clamp(0.3, x, 0.6)),
    "convert_element_type": lambda x, y: (jnp.sum(y > 0, 0) * x, (3 * y).astype(int) * 0.5, y.astype(bool) * 1.0),
    "iota": lambda x, y: (lax.iota(float, 6) * x, lax.broadcasted_iota(int, (4, 6), 0) * y),
    "broadcast_in_dim": lambda x, y: (jnp.broadcast_to(x[:, None], (6, 3)) * 2.0, jnp.broadcast_to(x, (3, 4, 6)) * y),
    "reshape": lambda x, y: ((2 * y).reshape(3, 8), y.T.reshape(8, 3), jnp.ravel(y[:, ::2]), x.reshape(1, 6, 1)),
    "transpose": lambda x, y: (y.T * x[:, None], jnp.transpose(y[None] * STACK, (2, 0, 1))),
    "slice": lambda x, y: (y[1:3, ::2] * 2, x[3] * y[2], y[:, -1]),
    "concatenate": lambda x, y: (jnp.concatenate([x, y[0] * x, jnp.zeros(2)]), jnp.concatenate([y, 2 * y], axis=1)),
    "pad": lambda x, y: (
        jnp.pad(x * 2, (2, 1)),
        lax.pad(y, 1.0, ((1, 0, 0), (-1, 2, 1))),
        lax.pad(x, 0.0, ((-2, -1, 0),)),
    ),
    "rev": lambda x, y: (x[::-1] * x, jnp.flip(y * x, (0, 1))),
    "stack unstack split": lambda x, y: (
        jnp.stack([x[4], x[2], x[0]]) * 2,
        jnp.stack([x[4], x[3], x[0], x[1]]) * 2,
        jnp.stack([x, y[1] * x], axis=1),
        sum(jnp.split(y, 2, axis=1)),
        jnp.stack([*y]) * x,
    ),
    "tile repeat": lambda x, y: (jnp.tile(y, (2, 3)), jnp.repeat(x, 2)),
    "reductions": lambda x, y: (
        jnp.sum(y, 0),
        jnp.prod(y, 1),
        jnp.max(y * x, (0, 1)),
        jnp.min(y, 1),
        jnp.sum(STACK * y),
    ),
    "all any": lambda x, y: (jnp.where(jnp.all(y > -1, 0), x, 0.0), jnp.where(jnp.any(y > 1, 1), 1.0, 2.0)),
    "empty": lambda x, y: (jnp.sum(x[:0]) + x, jnp.prod(y[:0], 0) * x),
    "matrix products": lambda x, y: (x @ TABLE, y @ TABLE, jnp.dot(y, x), jnp.outer(x, y[0])),
    "batched product": lambda x, y: (jnp.einsum("kbi,bi->kb", STACK, y), jnp.einsum("kbi,bj,i->kij", STACK, y, x)),
    "cumulative": lambda x, y: (jnp.cumsum(y, 0), jnp.cumprod(x), lax.cumsum(y, 1, reverse=True), lax.cummax(y, 1)),
    "convolve": lambda x, y: (
        *(jnp.convolve(x, jnp.array([0.2, -0.5, 0.3]) * x[:3], mode=mode) for mode in ("same", "full", "valid")),
        jax.vmap(lambda row: jnp.convolve(row, x[:4], mode="same"))(y),
        jax.vmap(lambda row: jnp.convolve(row, row[1:4], mode="full"))(y),
        lax.conv_general_dilated(
            jnp.stack([y, 2 * y]) * x,
            jnp.stack([y[:2, :3], y[2:, 1:4]] * 2),
            (2,),
            [(-1, 3)],
            rhs_dilation=(2,),
            dimension_numbers=("NCH", "OIH", "HNC"),
            feature_group_count=2,
        ),
    ),
    "take": lambda x, y: (
        x[np.array([3, 0, 5])],
        y[:, np.array([[1, 1], [4, 0]])] * 2,
        y[np.array([0, 2]), np.array([1, 5])],
    ),
    "computed index": lambda x, y: (
        jnp.asarray(TABLE)[(x * 6).astype(int)],
        jnp.take(x, (y * 4).astype(int), mode="clip"),
        jnp.take(x, (y * 6).astype(int) + 7, mode="fill", fill_value=-1.0),
    ),
    "interp": lambda x, y: (jnp.interp(x, GRID, GRID**2), jnp.interp(y, GRID, jnp.exp(GRID) * x[0])),
    "dynamic_slice": lambda x, y: (
        lax.dynamic_slice(y, ((x[0] * 3).astype(int), 7), (2, 3)),
        lax.dynamic_update_slice(y * 2, y[:2, :2], (1, (x[1] * 9).astype(int))),
    ),
    "scatter": lambda x, y: (
        x.at[np.array([1, 1, 4])].add(y[0, :3]),
        x.at[(x * 8).astype(int)].add(1.0, mode="drop"),
        (2 * y).at[1:3, ::2].set(0.5),
        x.at[np.array([0, 2])].mul(3.0),
        jnp.zeros(3).at[(x * 3).astype(int)].add(x, mode="clip"),
    ),
    # the sum of shape (3,) and the additions share a loop, which must follow the copy of 2 x
    "scatter into a copy": lambda x, y: (
        jnp.cumsum(x[:3])[::-1] * x[3:],
        (2 * x).at[np.array([1, 1, 4])].add(x[:3] * 3),
    ),
    "jit": lambda x, y: (jax.jit(lambda u: jax.jit(jnp.exp)(u) + u)(x), jax.checkpoint(jnp.sin)(y)),
    "custom_jvp": lambda x, y: (jax.jvp(tripled_slope, (x,), (x,))[1],),
    "cond switch": lambda x, y: (
        lax.cond(x[0] > 0.5, lambda: y * 2, lambda: y - 1),
        lax.switch((x[1] * 4).astype(int), [lambda: x, lambda: 2 * x, lambda: 3 * x, lambda: 4 * x]),
    ),
    "scan": lambda x, y: (*backward_scan(x, y), lax.fori_loop(0, 3, lambda i, total: total * x + i, x)),
    "gather derivatives": lambda x, y: (jax.hessian(lambda u: jnp.sum(jnp.interp(u, GRID, GRID**2) ** 3))(x),),
    "sparse derivatives": lambda x, y: (
        jax.jacfwd(lambda u: jnp.sum(jnp.exp(u[:, None] * TABLE) * (1 + u[:, None]), 0))(x),
        jax.hessian(lambda u: jnp.prod(1 + u[:, None] * TABLE))(x),
    ),
    "constant outputs": lambda x, y: (jnp.zeros(3), jnp.asarray(TABLE), x),
}
POINTS = {
    "inside": (X, Y),
    "other": (X[::-1].copy(), -Y),
    "special": (X, np.where(Y > 1, np.nan, np.where(Y < -1, np.inf, Y))),
}


class Compiled:
    """A function of arrays of some shapes, with the outputs and the memory that it keeps from call to call."""

    def __init__(self, function, shapes):
        pool = Pool()
        text, self.masks, n_memory = function_source(function, shapes, "evaluate", pool)
        signature = f"void({', '.join(['f8[::1]'] * (2 + len(shapes) + len(self.masks)))})"
        self.evaluate = import_source(text.replace("@lowered(", f"@lowered({signature!r}, cache=True, ")).evaluate
        self.constants, self.memory = pool.flat(), np.zeros(n_memory)
        self.outputs = [np.zeros(mask.shape) for mask in self.masks]

    def __call__(self, *inputs):
        arrays = [np.ascontiguousarray(a).ravel() for a in inputs]
        self.evaluate(self.constants, *arrays, *(o.reshape(-1) for o in self.outputs), self.memory)
        return self.outputs


@pytest.mark.parametrize("name", CASES)
def test_primitive_equals_jax(name):
    function = CASES[name]
    compiled = Compiled(function, [X.shape, Y.shape])
    with jax.enable_x64(True):
        reference = jax.jit(function)
        # what is kept of another point must not matter
        for point in ["inside", "other", "inside"]:
            expected = [np.asarray(v, dtype=float) for v in reference(*POINTS[point])]
            for got, wanted in zip(compiled(*POINTS[point]), expected, strict=True):
                assert got.shape == wanted.shape
                # the scale of the array stands for terms that cancel
                np.testing.assert_allclose(got, wanted, rtol=1e-13, atol=1e-13 * np.max(np.abs(wanted), initial=0.0))


@pytest.mark.parametrize("name", ["max min", "exp exp2 log", "comparisons", "is_finite", "reductions", "clamp"])
def test_special_values_equal_jax(name):
    function = CASES[name]
    compiled = Compiled(function, [X.shape, Y.shape])
    with jax.enable_x64(True):
        expected = [np.asarray(v) for v in jax.jit(function)(*POINTS["special"])]
    for got, wanted in zip(compiled(*POINTS["special"]), expected, strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-13)


def test_zero_outputs_are_recognised():
    quadratic = lambda x: jnp.sum((x @ TABLE) * TABLE[0])  # noqa: E731
    _, masks, _ = function_source(lambda x: (jax.hessian(quadratic)(x), x), [(6,)], "f", Pool())
    assert [mask.any() for mask in masks] == [False, True]


def test_untranslatable_operation_is_named_with_its_line():
    line = inspect.currentframe().f_lineno + 1
    looping = lambda x: (lax.while_loop(lambda u: u[0] < 9, lambda u: 2 * u, x),)  # noqa: E731
    with pytest.raises(UntranslatableError, match=f"'while' at .*test_arrays.py:{line}"):
        function_source(looping, [(2,)], "f", Pool())
    with pytest.raises(UntranslatableError, match=r"'sort' at .*test_arrays.py"):
        function_source(lambda x: (jnp.sort(x),), [(2,)], "f", Pool())
    with pytest.raises(UntranslatableError, match=r"loop of 65 turns, more than 64 at .*test_arrays.py"):
        function_source(lambda x: (lax.fori_loop(0, 65, lambda i, u: u * x, x),), [(2,)], "f", Pool())


def templates(n_params, n_bins):
    rng = np.random.default_rng(5)
    signal, background = rng.uniform(1, 5, n_bins), rng.uniform(5, 10, (n_params - 1, n_bins)) / n_params
    up, down = rng.normal(0, 0.03, (2, n_params - 1, n_bins))

    def expected(mu, *nuisances):
        t = jnp.stack(nuisances)[:, None]
        shape = jnp.where(t > 0, t * up, -t * down)
        return mu * signal + jnp.sum((1 + 0.05 * t) * background * (1 + shape), axis=0)

    return expected


def linear(n_params, n_bins):
    table = np.random.default_rng(6).uniform(1, 2, (n_params, n_bins))
    return lambda *par: jnp.stack(par) @ table


def factors(n_params, n_bins):
    table = np.random.default_rng(7).uniform(0.8, 1.25, (n_params - 1, n_bins))
    return lambda mu, *t: (20 + mu) * jnp.prod(table ** jnp.stack(t)[:, None], axis=0)


def written_out(n_params, n_bins):
    table = np.random.default_rng(8).uniform(1, 2, (n_params, n_bins))

    def expected(*par):
        total = par[0] * table[0]
        for p, row in zip(par[1:], table[1:], strict=True):
            total = total + jnp.exp(0.1 * p * row) * row
        return total

    return expected


def interpolated(n_params, n_bins):
    x = np.linspace(0.05, 0.95, n_bins)

    def expected(mu, *knots):
        return 10 + mu * jnp.interp(x, np.linspace(0, 1, n_params - 1), jnp.stack(knots)) ** 2

    return expected


def shifted(n_params, n_bins):
    x = np.linspace(0.2, 0.8, n_bins)
    return lambda mu, scale, shift: 5 + mu * jnp.interp(x * (1 + 0.01 * scale) + 0.01 * shift, GRID, np.sin(3 * GRID))


def groups(n_params, n_bins):
    """Three backgrounds, each with nuisance parameters of its own, which scale and bend it."""
    n_each = (n_params - 1) // 3
    backgrounds = np.random.default_rng(9).uniform(5, 20, (3, n_bins))
    bends = 0.1 * np.random.default_rng(10).normal(size=(3, n_each - 1, n_bins))

    def expected(mu, *alphas):
        total, each = mu * np.linspace(1, 2, n_bins), jnp.stack(alphas).reshape(3, n_each)
        for own, background, bend in zip(each, backgrounds, bends, strict=True):
            total += jnp.exp(0.1 * own[0]) * (background + own[1:] @ bend)
        return total

    return expected


def samples(n_params, n_bins):
    """A loop over samples, each with a yield and a template of its own, some of which are equal."""
    rng = np.random.default_rng(8)
    yields, slopes = rng.uniform(1.0, 9.0, (2, n_params - 1))
    shapes = rng.uniform(0.5, 2.0, (n_params - 1, n_bins))[np.arange(n_params - 1) // 2 % 3]

    def expected(mu, *nuisance):
        total = 0.0
        for k, alpha in enumerate(nuisance):
            shape = shapes[k] + 0.01 * float(slopes[k]) * alpha * shapes[-1 - k]
            total = total + (mu if k == 0 else 1.0) * float(yields[k]) * jnp.exp(0.1 * alpha) * shape
        return total

    return expected


MODELS = {
    "groups": (groups, 10, 24),
    "two bins": (templates, 3, 2),
    "templates": (templates, 101, 200),
    "more parameters than bins": (templates, 12, 5),
    "linear": (linear, 7, 30),
    "factors": (factors, 6, 31),
    "written out": (written_out, 8, 20),
    "interpolated knots": (interpolated, 7, 25),
    "interpolated x": (shifted, 3, 40),
}
IN_A_LOOP = {
    "samples in a loop": (samples, 10, 12),
    "written out in a loop": (written_out, 8, 20),
}


def reference(expected):
    """Value, gradient and Hessian by JAX; the counts are an argument, so that it compiles once."""

    def nll(theta, counts):
        mu = expected(*theta)
        return jnp.sum(mu - counts + special.xlogy(counts, counts) - special.xlogy(counts, mu))

    derivatives = lambda theta, counts: value_and_derivatives(lambda t: nll(t, counts), jax.grad)(theta)  # noqa: E731
    return jax.jit(lambda theta, counts: (expected(*theta), *derivatives(theta, counts)))


def evaluate(model, theta, counts):
    n = len(theta)
    columns = np.full((2, len(counts) + 5), np.nan)
    columns[0, 3:-2] = counts
    n_outputs = GRADIENT + n + n * (n + 1) // 2
    out = np.zeros(n_outputs + memory_of(model.kernel))
    # what the kernel keeps of another point, or of none, must not matter
    for point in (0.9 * theta, np.full(n, np.nan), theta):
        model.kernel(point, columns, model.shared, np.empty(0), 3, 3 + len(counts), SECOND, out)
    hessian = np.zeros((n, n))
    hessian[np.tril_indices(n)] = out[GRADIENT + n : n_outputs]
    return out[VALUE], out[ABSOLUTE], out[GRADIENT : GRADIENT + n], hessian


@pytest.mark.parametrize("name", MODELS | IN_A_LOOP)
def test_poisson_derivatives_equal_jax(name, monkeypatch):
    if name in IN_A_LOOP:
        monkeypatch.setattr(rolling, "MOST_REPEATED", {"few": 0, "many": 0})
        monkeypatch.setattr(loops, "MOST_TERMS", 3)
    make, n_params, n_bins = (MODELS | IN_A_LOOP)[name]
    expected = make(n_params, n_bins)
    model = expectation_kernel(expected, n_params, n_bins)
    # the second derivatives of a linear expectation are left out
    assert ("bend" in model.kernel.py_func.__globals__) == (name != "linear")
    rng, by_jax = np.random.default_rng(3), reference(expected)
    for _ in range(3):
        theta = np.concatenate([rng.uniform(0.5, 1.5, 1), rng.uniform(0.1, 1.5, n_params - 1) * rng.choice([1, -1])])
        theta = np.abs(theta) if make is linear else theta
        with jax.enable_x64(True):
            mu = np.asarray(by_jax(theta, np.ones(n_bins))[0])
            counts = rng.poisson(np.maximum(mu, 0.1)) * rng.choice([0.0, 1.0, 1.0], n_bins)
            wanted, gradient, hessian = map(np.asarray, by_jax(theta, counts)[1:])
        value, absolute, got_gradient, got_hessian = evaluate(model, theta, counts)
        # the reference subtracts n log n and n log mu
        assert value == pytest.approx(float(wanted), abs=1e-14 * np.sum(mu + counts * (1 + np.abs(np.log(mu)))))
        assert absolute == pytest.approx(value, rel=1e-12)  # no saturated term is negative
        np.testing.assert_allclose(got_gradient, gradient, rtol=1e-12, atol=1e-13 * np.max(np.abs(gradient)))
        scale = np.max(np.abs(hessian))
        np.testing.assert_allclose(got_hessian, np.tril(hessian), rtol=1e-12, atol=1e-13 * scale)


def test_the_source_does_not_grow_with_samples(monkeypatch):
    def lines(n_samples):
        direct = samples(1 + n_samples, 30)
        text, *_ = function_source(lambda t: jax.jvp(lambda t: direct(*t), (t,), (t,)), [(1 + n_samples,)], "f", Pool())
        return text.partition("@lowered")[2].count("\n")

    assert lines(200) < lines(100) + 10
    monkeypatch.setattr(rolling, "MOST_REPEATED", {"few": 10**9, "many": 10**9})
    assert lines(200) > lines(100) + 900


def test_poisson_at_the_edge():
    model = expectation_kernel(lambda a, b: jnp.stack([a, b]), 2, 2)
    value = lambda mu, counts: evaluate(model, np.array(mu), np.array(counts))[0]  # noqa: E731
    assert value([3.0, 2.0], [3.0, 2.0]) == 0.0
    assert value([3.0, 2.0], [0.0, 0.0]) == 5.0
    assert value([0.0, 2.0], [0.0, 2.0]) == 0.0
    assert value([0.0, 2.0], [1.0, 2.0]) == np.inf
    for mu, counts in [([-1.0, 2.0], [1.0, 2.0]), ([-1.0, 2.0], [0.0, 2.0]), ([np.nan, 2.0], [0.0, 2.0])]:
        assert np.isnan(value(mu, counts))
    assert np.isnan(value([1.0, 2.0], [np.nan, 2.0]))
    assert np.isnan(value([1.0, 2.0], [-1.0, 2.0]))
    np.testing.assert_array_equal(evaluate(model, np.array([0.0, 2.0]), np.array([0.0, 4.0]))[2], [1.0, -1.0])


def test_poisson_keeps_its_digits_near_the_minimum():
    model = expectation_kernel(lambda a: jnp.stack([a, a]), 1, 2)
    value = evaluate(model, np.array([1e10 + 1.0]), np.array([1e10, 1e10]))[0]
    assert value == pytest.approx(1e-10, rel=1e-5)  # 2 * 1 / (2 * 1e10), where n log n has an error of 1e-5


def test_wrong_number_of_bins_raises():
    with pytest.raises(ValueError, match=r"shape \(4,\), one value per bin, got \(3,\)"):
        expectation_kernel(lambda a: a * jnp.ones(3), 1, 4)


def test_second_use_comes_from_the_cache():
    first, second = (expectation_kernel(templates(4, 6), 4, 6) for _ in range(2))
    assert first.kernel is second.kernel
    np.testing.assert_array_equal(first.shared, second.shared)


def test_source_does_not_grow_with_the_square_of_the_parameters():
    def n_lines(n_params):
        expected = templates(n_params, 10)
        function = lambda t: jax.jacfwd(jax.grad(lambda u: jnp.sum(expected(*u))))(t)  # noqa: E731
        text, *_ = function_source(lambda t: (function(t),), [(n_params,)], "f", Pool())
        return text.count("\n")

    n = [n_lines(k) for k in (6, 12, 24)]
    assert n[2] - n[1] <= 2.2 * (n[1] - n[0])


def test_a_sum_of_terms_that_are_mostly_zero_takes_what_its_terms_take():
    """The Jacobian of groups of parameters: each row belongs to one group, and so is written once, not five times."""
    n_params, n_bins = 31, 24
    directions = np.eye(n_params)

    def jacobian(theta):
        push = lambda direction: jax.jvp(lambda t: groups(n_params, n_bins)(*t), (theta,), (direction,))[1]  # noqa: E731
        return (jax.vmap(push)(directions),)

    text, *_ = function_source(jacobian, [(n_params,)], "f", Pool())
    assert f"for i0 in range(U{n_params})" not in text and text.count(f"for i1 in range(U{n_bins})") > 5

    def used_twice(x):
        first, second, third = (jnp.where(np.arange(12) // 2 == k, x * (k + 1.5), 0.0) for k in range(3))
        partly = first * 2.0 + second
        return partly + third, partly, jnp.flip(partly + third * 3.0)

    x = np.random.default_rng(11).normal(size=12)
    with jax.enable_x64(True):
        expected = [np.asarray(y) for y in used_twice(x)]
    compiled = Compiled(used_twice, [(12,)])
    compiled(-x)  # what is kept of another point must not matter
    for mine, theirs in zip(compiled(x), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-14)
