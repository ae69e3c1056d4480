"""The trust-region Newton: two implementations of one algorithm, on problems whose minima are known."""

import importlib
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numba import njit
from numba.core.dispatcher import Dispatcher

from engine import Cost, NormalConstraint, PoissonNLL, Status, cholesky, fit_batch, newton, newton_numba, xla
from engine import newton as newton_transformation
from engine.data import Rows
from kernels.derivatives import packed_index

COEFFICIENTS = (
    "unit_a", "unit_b", "aa", "bb", "ab", "a1", "b1", "quartic", "valley", "kink", "barrier", "tilt", "constant",
)  # fmt: skip


class Menu(Cost):
    """A choice of difficult functions of (a, b): one row for each toy, which holds their coefficients.

    One program and one compilation, however many problems.
    """

    names = ("a", "b")

    def rows(self, data):
        columns = np.array([[problem.get(name, name.startswith("unit")) for name in COEFFICIENTS] for problem in data])
        n_toys = len(data)
        columns = np.ascontiguousarray(columns.T, dtype=np.float64).reshape(len(COEFFICIENTS), n_toys)
        aux, good = np.zeros((n_toys, 0)), np.zeros(n_toys, dtype=bool)
        return Rows(columns, np.arange(n_toys + 1), np.zeros((0, 0)), aux, good, tuple(COEFFICIENTS))

    def term(self, theta, row, aux):
        (a, b), c = theta, row
        a, b = a * c["unit_a"], b * c["unit_b"]
        return (
            0.5 * c["aa"] * a * a
            + 0.5 * c["bb"] * b * b
            + c["ab"] * a * b
            + c["a1"] * a
            + c["b1"] * b
            + c["quartic"] * 0.25 * (a**4 + b**4)
            + c["valley"] * ((1.0 - a) ** 2 + 100.0 * (b - a * a) ** 2)
            + c["kink"] * jnp.abs(a - 0.3)
            + c["barrier"] * (a - jnp.log(jnp.where(c["barrier"] != 0.0, a, 1.0)))
            + c["tilt"] * jnp.arctan(a)
            + c["constant"]
        )


MENU = Menu()
BOWL = {"aa": 2.0, "bb": 3.0, "ab": 1.0, "a1": -1.0, "b1": 4.0}
BOWL_MINIMUM = np.linalg.solve([[2.0, 1.0], [1.0, 3.0]], [1.0, -4.0])

# name: (coefficients, start, minimum or minima)
GOOD = {
    "quadratic": (BOWL, (5.0, 7.0), [BOWL_MINIMUM]),
    "at the minimum": (BOWL, BOWL_MINIMUM, [BOWL_MINIMUM]),
    "poor start": (BOWL | {"quartic": 1.0, "a1": 0.0, "b1": 0.0}, (1e3, -1e4), [(0, 0)]),
    "saddle start": ({"aa": 1.0, "bb": -1.0, "quartic": 1.0}, (0.0, 0.0), [(0, 1), (0, -1)]),
    "indefinite start": ({"aa": 1.0, "bb": -1.0, "quartic": 1.0}, (0.3, 0.1), [(0, 1)]),
    "maximum start": ({"aa": -1.0, "bb": -4.0, "quartic": 1.0}, (0.0, 0.0), [(i, j) for i in (1, -1) for j in (2, -2)]),
    "NaN beyond": ({"bb": 1.0, "barrier": 1.0}, (5.0, 1.0), [(1, 0)]),
    "valley": ({"valley": 1.0}, (-1.2, 1.0), [(1, 1)]),
    "far valley": ({"valley": 1.0}, (-50.0, 80.0), [(1, 1)]),
    "steep": ({"aa": 1e-3, "tilt": 1.0, "bb": 1.0}, (40.0, 1.0), None),
}
BAD = {
    "flat": ({"aa": 1.0}, (3.0, 2.0), {Status.HESSIAN_NOT_POSDEF}),
    "flat everywhere": ({"constant": 1.0}, (3.0, 2.0), {Status.HESSIAN_NOT_POSDEF}),
    "linear": ({"a1": 1.0, "bb": 1.0}, (3.0, 2.0), {Status.UNBOUNDED}),
    "concave": ({"aa": -1.0, "bb": 1.0}, (3.0, 2.0), {Status.UNBOUNDED}),
    "not finite": ({"barrier": 1.0, "bb": 1.0}, (-1.0, 1.0), {Status.NONFINITE}),
    "infinite": ({"constant": np.inf, "bb": 1.0}, (-1.0, 1.0), {Status.NONFINITE}),
}


def fit(problems, starts, backend="numba", **options):
    # two lanes: JAX compiles the step once, and refills
    lanes = {"batch_size": 2} if backend == "jax" else {}
    return fit_batch(MENU, problems, np.array(starts, dtype=float), backend=backend, retries=0, **lanes, **options)


@pytest.fixture(scope="module")
def all_problems():
    # along a long narrow valley rounding grows with every step
    chosen = {name: problem for name, problem in (GOOD | BAD).items() if name != "far valley"}
    return [c for c, _, _ in chosen.values()], [start for _, start, _ in chosen.values()]


def assert_same_fits(mine, theirs, rtol=1e-9):
    """Equal decisions, and values to 1e-9 sigma: numba and XLA differ by some eps of each value and sum."""
    for name in ("status", "nfev", "valid", "at_limit", "has_posdef_covar"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name), err_msg=name)
    sigma = np.where(np.isfinite(mine.errors) & (mine.errors > 0), mine.errors, np.maximum(np.abs(mine.values), 1.0))
    rounding = 1e-14 * np.abs(mine.values)
    np.testing.assert_array_less(np.abs(mine.values - theirs.values), rtol * sigma + rounding)
    np.testing.assert_allclose(mine.covariance, theirs.covariance, rtol=1e-9)
    np.testing.assert_allclose(mine.fval, theirs.fval, rtol=1e-12, atol=1e-12)


def test_machine_code_is_kept_by_the_text_of_all_that_it_is_made_of(monkeypatch, tmp_path):
    parts, before = newton_numba.PARTS, newton_numba.fingerprint()
    for path in parts:
        module = importlib.import_module(f"{Path(path).parent.name}.{Path(path).stem}")
        called = [function for function in vars(module).values() if isinstance(function, Dispatcher)]
        assert all(function.py_func.__code__.co_filename in parts for function in called)
        edited = tmp_path / Path(path).name
        edited.write_text(Path(path).read_text() + "# edited")
        monkeypatch.setattr(newton_numba, "PARTS", tuple(str(edited) if one == path else one for one in parts))
        assert newton_numba.fingerprint.__wrapped__() != before


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_minima_are_found(backend):
    result = fit([c for c, _, _ in GOOD.values()], [start for _, start, _ in GOOD.values()], backend)
    assert result.valid.all(), dict(zip(GOOD, result.status, strict=True))
    for (name, (_, _, minima)), one in zip(GOOD.items(), result, strict=True):
        if minima is not None:
            nearest = min(np.max(np.abs(one.values - np.array(m)) / one.errors) for m in minima)
            # the last step is Newton's, taken at an EDM below 5e-14: sqrt(2 EDM) = 3e-7 sigma, squared by its own order
            assert nearest < 1e-9, name
        assert one.edm <= 5e-14 + 8 * np.finfo(float).eps * 200, name
    bowl = result[list(GOOD).index("quadratic")]
    np.testing.assert_allclose(bowl.covariance, np.linalg.inv([[2.0, 1.0], [1.0, 3.0]]), rtol=1e-12)
    np.testing.assert_allclose(bowl.fval, 0.5 * BOWL_MINIMUM @ [-1.0, 4.0], rtol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_failures_have_their_names(backend):
    result = fit([c for c, _, _ in BAD.values()], [start for _, start, _ in BAD.values()], backend)
    for (name, (_, _, statuses)), one in zip(BAD.items(), result, strict=True):
        assert one.status in statuses and not one.valid, (name, one.status)
        assert not one.has_posdef_covar, name


def test_both_forms_agree_after_every_evaluation(all_problems):
    for steps in (1, 2, 3, 4, 6, 9, 14, 30, 200):
        numba, jax_ = (fit(*all_problems, backend, max_steps=steps) for backend in ("numba", "jax"))
        if steps < 200:
            assert (numba.status == Status.MAX_STEPS).any()
        assert_same_fits(numba, jax_)


def test_the_form_for_accelerators_is_the_same(all_problems, monkeypatch):
    # in scalars, as it is compiled for a GPU
    step, covariance_of = xla.newton_step, xla.covariance_of
    monkeypatch.setattr(xla, "newton_step", lambda *args, **goals: step(*args, **goals | {"unrolled": True}))
    monkeypatch.setattr(xla, "covariance_of", lambda *args: covariance_of(*args[:3], unrolled=True))
    problems, starts = all_problems
    numba = fit(problems, starts)
    other = fit_batch(Menu(), problems, np.array(starts), backend="jax", retries=0, batch_size=2)
    assert_same_fits(numba, other)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_factors_in_scalars_are_those_of_the_library(n):
    rng = np.random.default_rng(n)
    root = rng.normal(size=(4, n, n))
    matrices = root @ root.transpose(0, 2, 1) + np.eye(n)
    matrices[1] -= 100.0 * np.eye(n)
    matrices[2, -1, -1] = np.nan
    b = rng.normal(size=(4, n))
    with jax.enable_x64(True):

        def solved(a, b, unrolled):
            factor, good = cholesky.factorise(a, 0.25, unrolled)
            return cholesky.solve(factor, b), cholesky.solve_lower(factor, b), good

        mine, library = (jax.vmap(partial(solved, unrolled=u))(matrices, b) for u in (True, False))
    np.testing.assert_array_equal(mine[2], [True, False, False, True])
    np.testing.assert_array_equal(library[2], mine[2])
    for ours, theirs in zip(mine[:2], library[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
    good = np.array([0, 3])
    exact = np.linalg.solve(matrices[good] + 0.25 * np.eye(n), b[good, :, None])[..., 0]
    np.testing.assert_allclose(np.asarray(mine[0])[good], exact, rtol=1e-10)
    np.testing.assert_array_equal(mine[0][1], b[1])  # of what is not positive definite, the unit matrix


def test_both_forms_agree_on_many_random_quartics():
    rng = np.random.default_rng(3)
    names = ("aa", "bb", "ab", "a1", "b1")
    problems = [dict(zip(names, rng.normal(size=5) * 3, strict=True)) | {"quartic": 0.5} for _ in range(200)]
    starts = rng.normal(size=(200, 2)) * 3
    limits = {"a": (-10, 10), "b": (-12, 9)}
    numba, jax_ = (fit(problems, starts.clip(-9, 9), backend, limits=limits) for backend in ("numba", "jax"))
    assert_same_fits(numba, jax_)
    assert numba.valid.all()
    # a minimum, seen from outside: the gradient in closed form vanishes
    c = {name: np.array([p[name] for p in problems]) for name in names}
    a, b = numba.values.T
    slope_a = c["aa"] * a + c["ab"] * b + c["a1"] + 0.5 * a**3
    slope_b = c["bb"] * b + c["ab"] * a + c["b1"] + 0.5 * b**3
    assert np.max(np.abs([slope_a, slope_b] * numba.errors.T)) < 1e-7


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_newton_needs_two_evaluations_on_a_quadratic(backend):
    starts = [(5.0, 7.0), (-1e4, 3.0), BOWL_MINIMUM]
    result = fit([BOWL] * 3, starts, backend)
    np.testing.assert_array_equal(result.nfev, [2, 2, 1])


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_nothing_depends_on_units(backend):
    units = [(1.0, 1.0), (1e-6, 1.0), (1e6, 1e-6), (1e3, 1e5)]
    for name in ("quadratic", "valley", "indefinite start", "NaN beyond"):
        coefficients, start, _ = GOOD[name]
        problems = [coefficients | {"unit_a": 1 / u, "unit_b": 1 / v} for u, v in units]
        result = fit(problems, np.array(start) * units, backend)
        assert result.valid.all()
        np.testing.assert_array_equal(result.nfev, result.nfev[0], err_msg=name)
        scaled = result.values / units
        assert np.max(np.abs(scaled - scaled[0]) / result.errors[0]) < 1e-9, name
        np.testing.assert_allclose(result.errors / units, result.errors[[0] * 4], rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_minimum_on_a_limit(backend):
    limits = {"a": (0.7, 2.0), "b": (-1.0, 3.0)}
    # free minimum of the bowl (1.4, -1.8): b ends at -1, and then a = (1 + 1) / 2
    inside_corner = BOWL | {"a1": 4.0}
    upper = BOWL | {"b1": -20.0, "ab": 0.0}
    tight = {"aa": 1.0, "bb": 1.0}  # minimum (0, 0): a ends at 0.7
    problems = [BOWL, inside_corner, upper, tight, BOWL]
    starts = [(1.5, 2.0), (2.0, 3.0), (0.7, -1.0), (0.7, 2.0), (2.0, -1.0)]
    result = fit(problems, starts, backend, limits=limits)
    assert result.valid.all()
    expected = [(1.0, -1.0), (0.7, -1.0), (0.7, 3.0), (0.7, 0.0), (1.0, -1.0)]
    on_limit = np.array([[0, 1], [1, 1], [1, 1], [1, 0], [0, 1]], dtype=bool)
    np.testing.assert_allclose(result.values, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(result.at_limit, on_limit)
    # on the limit itself, not next to it
    assert np.all(result.values[on_limit] == np.array(expected)[on_limit])
    np.testing.assert_array_equal(result.errors[on_limit], 0.0)
    # the free block alone: 1 / H_ii of the parameter that is left
    np.testing.assert_allclose(result.covariance[[0, 4], 0, 0], 0.5, rtol=1e-12)
    np.testing.assert_array_equal(result.covariance[1], 0.0)
    np.testing.assert_allclose(result.covariance[3], [[0, 0], [0, 1]], rtol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_value_is_the_limit_to_the_last_bit(backend):
    # theta + (limit - theta) is off by rounding for most of these starts
    starts = np.random.default_rng(12).uniform(0.7, 1e3, (40, 2))
    limits = {"a": (0.7, None), "b": (1 / 3, None)}
    result = fit([{"aa": 1.0, "bb": 1.0, "ab": 0.5}] * 40, starts, backend, limits=limits)
    assert result.valid.all() and result.at_limit.all()
    np.testing.assert_array_equal(result.values, [[0.7, 1 / 3]] * 40)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_minimum_exactly_at_a_limit_without_a_push_is_free(backend):
    result = fit([{"aa": 1.0, "bb": 1.0}], [(0.0, 2.0)], backend, limits={"a": (0.0, None)})
    assert result.valid.all() and not result.at_limit.any()
    np.testing.assert_allclose(result.covariance[0], np.eye(2), rtol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_start_on_a_limit_leaves_it(backend):
    # at the corner both gradients point outward or inward, and change while the other parameter moves
    problem = {"aa": 2.0, "bb": 3.0, "ab": -2.0, "a1": 0.1, "b1": -4.0}
    minimum = np.linalg.solve([[2.0, -2.0], [-2.0, 3.0]], [-0.1, 4.0])
    result = fit([problem], [(0.0, 0.0)], backend, limits={"a": (0, None), "b": (0, None)})
    assert result.valid.all() and not result.at_limit.any()
    np.testing.assert_allclose(result.values[0], minimum, rtol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_converged_needs_a_positive_definite_free_block(backend):
    # a leaves its limit by rounding in the last step of b, and is concave: the two forms must tell the same
    problem = {"bb": 1.0, "ab": 1.0, "aa": -1.0}
    result = fit([problem], [(0.0, 5e-8)], backend, limits={"a": (0.0, 4.0)})
    assert result.status[0] != Status.CONVERGED or result.valid[0]


def test_limits_are_never_crossed():
    # the barrier gives NaN below its limit: an evaluation there would be rejected and counted, so watch the results of
    # every number of evaluations
    lower, upper = np.array([0.5, -2.0]), np.array([4.0, 1.0])
    limits = {"a": (0.5, 4.0), "b": (-2.0, 1.0)}
    problems = [GOOD[name][0] for name in ("valley", "saddle start", "quadratic", "NaN beyond")] * 2
    starts = [(0.5, -2.0), (0.6, 0.0), (4.0, 1.0), (3.9, 1.0), (4.0, -2.0), (0.5, 1.0), (2.0, -2.0), (0.5, 0.0)]
    for steps in (1, 2, 3, 5, 8, 200):
        results = [fit(problems, starts, backend, limits=limits, max_steps=steps) for backend in ("numba", "jax")]
        for result in results:
            assert np.all((result.values >= lower) & (result.values <= upper))
        assert_same_fits(*results)
    assert results[0].valid.all()


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_kink_is_never_quietly_valid(backend):
    problems = [{"kink": k, "aa": q, "bb": 1.0} for k in (0.5, 1.0, 5.0) for q in (0.1, 1.0)]
    for start in ((2.0, 1.0), (-3.0, 1.0), (0.3, 1.0), (0.31, 0.0)):
        result = fit(problems, [start] * len(problems), backend)
        minimum = [min(0.3, p["kink"] / p["aa"]) for p in problems]
        wrong = np.abs(result.values[:, 0] - minimum) > 1e-3 * result.errors[:, 0]
        assert not (result.valid & wrong).any(), result.status
        assert (result.valid | (result.status != Status.CONVERGED)).all()


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_fixed_parameters_stay(backend):
    result = fit([BOWL] * 2, [(5.0, 0.25), (-5.0, 1.0)], backend, fixed=["b"])
    assert result.valid.all() and not result.at_limit.any()
    np.testing.assert_array_equal(result.values[:, 1], [0.25, 1.0])
    np.testing.assert_allclose(result.values[:, 0], [(1 - 0.25) / 2, (1 - 1.0) / 2], atol=1e-15)
    np.testing.assert_allclose(result.covariance, [[[0.5, 0], [0, 0]]] * 2, rtol=1e-14)
    # held where a limit is: pushed against it, and yet not at a limit
    on_limit = fit([BOWL], [(5.0, 0.25)], backend, fixed=["b"], limits={"b": (0.25, 1.0)})
    assert on_limit.valid.all() and not on_limit.at_limit.any()
    np.testing.assert_array_equal(on_limit.values, result.values[:1])
    everything = fit([BOWL], [(5.0, 0.25)], backend, fixed=["a", "b"])
    assert everything.valid.all() and everything.nfev[0] == 1
    np.testing.assert_array_equal(everything.covariance, 0.0)
    np.testing.assert_allclose(everything.fval[0], 25.0 + 1.5 / 16 + 1.25 - 5.0 + 1.0, rtol=1e-15)


def test_optax_transformation_in_a_users_loop():
    coefficients = np.array([[1.0, 100.0], [2.0, 10.0], [0.5, 1.0]])

    with jax.enable_x64(True):

        def nll(theta, c):
            return c[0] * (1.0 - theta[0]) ** 2 + c[1] * (theta[1] - theta[0] ** 2) ** 2

        optimizer = newton_transformation(lower=jnp.array([-5.0, -5.0]), upper=5.0)

        @jax.jit
        @jax.vmap
        def step(theta, state, c):
            value, gradient = jax.value_and_grad(nll)(theta, c)
            updates, state = optimizer.update(gradient, state, theta, value=value, hessian=jax.hessian(nll)(theta, c))
            return optax.apply_updates(theta, updates), state

        theta = jnp.array([[-1.2, 1.0], [4.0, -4.0], [1.0, 1.0]])
        state = jax.vmap(optimizer.init)(theta)
        for _ in range(60):
            theta, state = step(theta, state, coefficients)
        status, nfev = np.asarray(state.status), np.asarray(state.nfev)
        # a finished toy stays, and its evaluations are not counted on
        again, after = step(theta, state, coefficients)

    np.testing.assert_array_equal(status, Status.CONVERGED)
    assert nfev[2] == 1 and nfev.max() < 60
    np.testing.assert_allclose(theta, 1.0, rtol=1e-7)
    np.testing.assert_array_equal(again, theta)
    np.testing.assert_array_equal(after.nfev, nfev)


def test_optax_transformation_wants_the_parameters():
    optimizer = newton()
    with pytest.raises(ValueError, match="newton needs the parameters"):
        optimizer.update(jnp.zeros(2), optimizer.init(jnp.zeros(2)), value=0.0, hessian=jnp.eye(2))
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)


def test_packed_hessian_is_unpacked_symmetrically():
    from engine import matrices_numba

    @njit
    def unpack(outputs, gradient, hessian):
        return matrices_numba.unpack(outputs, gradient, hessian)

    n = 11
    outputs = np.arange(2.0 + n + n * (n + 1) // 2)
    gradient, hessian = np.empty(n), np.empty((n, n))
    assert unpack(outputs, gradient, hessian)
    np.testing.assert_array_equal(gradient, outputs[2 : 2 + n])
    np.testing.assert_array_equal(hessian, hessian.T)
    for i in range(n):
        for j in range(i + 1):
            assert hessian[i, j] == outputs[2 + n + packed_index(i, j)]
    outputs[-1] = np.nan
    assert not unpack(outputs, gradient, hessian)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_a_start_next_to_a_limit_is_no_minimum(backend):
    """The full step takes a and b across their limits; with a on its own b stays inside, far from where it started.

    The way to the first limit, which is next to the start, gains nothing, and is not the end.
    """
    problem = {"aa": 1.0, "bb": 1.0, "ab": 0.9, "a1": 1.0, "b1": -0.5}
    free = np.linalg.solve([[1.0, 0.9], [0.9, 1.0]], [-1.0, 0.5])
    assert free[0] < 0 and free[1] > 2.0
    starts = [(distance, 1.9) for distance in (1e-3, 1e-300, 1e-17, 1e-12, 1e-6)]
    result = fit([problem] * len(starts), starts, backend, limits={"a": (0, None), "b": (None, 2.0)})
    assert result.valid.all()
    np.testing.assert_array_equal(result.values[:, 0], 0.0)
    np.testing.assert_allclose(result.values[:, 1], 0.5, rtol=1e-9)
    np.testing.assert_array_equal(result.at_limit, [[True, False]] * len(starts))


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_a_perfect_fit_of_counts_ends_like_any_other(backend):
    """Where all counts are met the likelihood is 0, and has a scale all the same: it once went on until it stalled."""
    counts = PoissonNLL(lambda mu, alpha: jnp.stack([40 * mu + 60 + 9 * alpha, 4 * mu + 200 + 30 * alpha]))
    cost = counts + NormalConstraint("alpha", 0.0, 1.0)
    data = np.array([[120.0, 206.0], [100.0, 204.0], [80.0, 202.0]])
    result = fit_batch(cost, data, [1.0, 0.0], backend=backend, retries=0)
    assert result.valid.all() and result.nfev.max() <= 5
    np.testing.assert_allclose(result.fval, 0.0, atol=1e-12)
    np.testing.assert_allclose(result.values, [[1.5, 0], [1, 0], [0.5, 0]], atol=1e-9)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_quadratics_within_limits_are_solved_in_few_steps(backend):
    """Of correlated parameters many cross their limits at once, and some must be let go again: the gradient tells."""
    rng = np.random.default_rng(4018)
    n, n_toys = 9, 300
    root = rng.normal(size=(n, n))
    covariance = root @ root.T + 1e-3 * np.eye(n)
    names, measured = [f"p{k}" for k in range(n)], 2.0 * rng.normal(size=(n_toys, n))
    limits = dict.fromkeys(names, (0, None))
    cost, weight = NormalConstraint(names, np.zeros(n), covariance), np.linalg.inv(covariance)
    for start in (np.ones(n), 10.0 ** rng.uniform(-17, -3, (n_toys, n))):
        result = fit_batch(cost, measured, start, limits=limits, backend=backend, retries=0)
        assert result.valid.all() and result.nfev.max() <= 12 and result.nfev.mean() < 5
        slope = 2.0 * (result.values - measured) @ weight / np.sqrt(np.diag(weight))
        on_limit = result.values == 0.0
        assert on_limit.any(axis=1).all()
        assert slope[on_limit].min() > -1e-6 and np.abs(slope[~on_limit]).max() < 1e-6


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_a_step_as_far_as_a_limit_ends_on_it(backend):
    """From a saddle point: a hair's breadth beside the limit another set of parameters would move next."""
    rng = np.random.default_rng(11)
    problems = [
        {"aa": 1.0, "bb": -1.0, "ab": ab, "a1": a1, "quartic": 1e-3, "constant": 1.0}
        for ab, a1 in rng.uniform(-0.5, 0.5, (200, 2))
    ]
    starts = np.column_stack([np.full(200, 0.3), rng.uniform(-0.1, 0.1, 200)])
    box = {"a": (0.05, 0.7), "b": (-0.35, 0.65)}
    result = fit(problems, starts, backend, limits=box, max_steps=2)
    lower, upper = np.array(list(box.values())).T
    on = (result.values == lower) | (result.values == upper)
    beside = np.minimum(result.values - lower, upper - result.values) < 1e-12
    assert on[:, 1].any() and not (beside & ~on).any()
