"""The ready-made studies against what tutorials and lectures print, and against fits that are written otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from iminuit import Minuit

from engine import fit_batch
from toys.models import STUDIES, bent, histogram, noisy_parabola, parabola, peak, peak_bias, polynomial, signal_strength
from toys.run import Options, run
from toys.signal_strength import NORMALISATIONS, NUISANCES, SHAPES, expected_events, templates
from toys.study import generate
from toys.tally import calibration


def minimum(cost, start, errordef, limits=None):
    """MIGRAD, as precise as it gets without a gradient."""
    minuit = Minuit(lambda par: cost(par), np.array(start, dtype=float))
    minuit.errordef, minuit.strategy, minuit.tol = errordef, 2, 1e-4
    if limits:
        minuit.limits = limits
    minuit.migrad()
    assert minuit.valid
    return minuit


def test_names_are_those_of_the_list():
    assert [make().name for make in STUDIES.values()] == list(STUDIES)
    for make in STUDIES.values():
        assert make.__doc__ and make().description


# --- peak --------------------------------------------------------------------------------------------------


def test_peak_is_the_tutorials(peak_fit):
    """The tutorial's own data, cost and start."""
    x, fit, study = peak_fit
    assert len(x) == 15_542
    low, high = study.observable

    def nll(par):
        n_sig, n_bkg, mu, sigma, lambd = par
        s, b = scipy.stats.norm(mu, sigma), scipy.stats.expon(0, lambd)
        sn, bn = np.diff(s.cdf([low, high]))[0], np.diff(b.cdf([low, high]))[0]
        return (n_sig + n_bkg) - np.sum(np.log(s.pdf(x) / sn * n_sig + b.pdf(x) / bn * n_bkg))

    assert fit.fval == pytest.approx(nll(fit.values), rel=1e-12)
    minuit = minimum(nll, fit.values, 0.5)
    assert np.all(np.abs(fit.values - np.array(minuit.values)) < 1e-3 * fit.errors)
    np.testing.assert_allclose(fit.errors, np.sqrt(np.diag(minuit.covariance)), rtol=0.01)


@pytest.fixture(scope="module")
def peak_fit():
    rng = np.random.RandomState(1)  # what np.random.seed(1) sets
    x = np.concatenate([rng.normal(5.0, 0.5, 2000), rng.exponential(4.0, 20000)])
    x = x[(x > 1.0) & (x < 9.0)]
    study = peak()
    start = {"ns": 2000, "nb": 20000, "mu": 5.0, "sigma": 0.5, "lam": 4.0}
    return x, fit_batch(study.cost, [x], start, limits=study.limits, backend="numba")[0], study


def test_a_wrong_background_is_a_bias_of_the_signal(tmp_path):
    study = peak_bias()
    assert study.names != study.cost.names and study.start == peak().truth
    report = run(study, tmp_path / "toys.h5", Options(n_toys=100, validate=2, device="cpu"))
    assert report.result.valid.all() and report.validation.agrees.all()
    rows = {row.name: row for row in calibration(report.result, study.truth)}
    assert list(rows) == ["ns", "nb", "mu", "sigma", "lam"]
    # a curved background is taken for signal: 140 events, 1.5 of its errors
    assert 1.0 < rows["ns"].pull_mean < 2.0 and rows["ns"].bias > 10 * rows["ns"].bias_error
    assert rows["lam"].n == 100 and np.isnan([rows["lam"].truth, rows["lam"].bias, rows["lam"].coverage]).all()
    # with a wide Gaussian as background, all but flat in slope, the exponential is right and the bias is gone
    unbiased = study.at({"centre": -4995.0, "width": np.sqrt(4.0 * 5000.0)})
    fits = fit_batch(study.cost, generate(unbiased, 100, seed=2), study.start, limits=study.limits, backend="numba")
    (row, *_) = calibration(fits, unbiased.truth)
    assert row.name == "ns" and abs(row.pull_mean) < 4 * row.pull_mean_error


# --- histogram ---------------------------------------------------------------------------------------------


def test_histogram_has_the_tutorials_numbers():
    study = histogram()
    assert study.data.shape == (1, 1000) and study.data.sum() == 10_000
    assert study.start == {"amp": 1.5 * study.data.sum(), "mu": 1.0, "sigma": 2.0}
    fits = fit_batch(study.cost, study.data, study.start, limits=study.limits, backend="numba")
    fit = fits[0]
    # printed: FCN = 496.2 with errordef 0.5, and the errors of HESSE and of automatic differentiation
    assert round(fit.fval, 1) == 496.2 and fit.errordef == 0.5
    assert [f"{fit.errors['amp']:.1f}", f"{fit.errors['mu']:.4f}", f"{fit.errors['sigma']:.4f}"] == [
        "100.0",
        "0.0100",
        "0.0071",
    ]
    edges, n = study.cost.edges, study.data[0]

    def nll(par):
        mu = par[0] * np.diff(scipy.stats.norm.cdf(edges, par[1], par[2]))
        return np.sum(mu - n + n * np.log(n / (mu + 1e-100) + 1e-100))

    minuit = minimum(nll, list(study.start.values()), 0.5, [(0, None), (None, None), (0, None)])
    assert np.all(np.abs(fit.values - np.array(minuit.values)) < 1e-3 * fit.errors)
    minuit.hesse()
    difference = fit.covariance - np.array(minuit.covariance)
    assert np.all(np.abs(difference) < 1e-2 * np.outer(fit.errors, fit.errors))
    toys = generate(study, 200, seed=1)
    assert toys.shape == (200, 1000)
    # 2 of 10 000 events lie outside of the bins; 4 standard errors
    assert abs(toys.sum(axis=1).mean() - 10_000) < 4 * 100 / np.sqrt(200) + 2


# --- polynomial --------------------------------------------------------------------------------------------


def test_polynomial_has_the_tutorials_numbers():
    study = polynomial()
    fit = fit_batch(study.cost, study.data, {"a": 0, "b": 0, "c": 0}, backend="numba")[0]
    assert fit.valid and round(fit.fval, 2) == 23.14 and fit.errordef == 1.0
    assert [round(float(v), d) for v, d in zip(fit.values, (2, 1, 1), strict=True)] == [1.25, 1.5, 1.6]
    printed = [[0.0223, -0.039, -0.150], [-0.039, 0.24, 0.17], [-0.150, 0.17, 2.32]]
    np.testing.assert_allclose(fit.covariance, printed, rtol=0.02)  # as many digits as are printed
    x, y, yerror, xerror = study.data

    def chi2(par):
        return np.sum((y[0] - np.polyval(par, x)) ** 2 / (yerror**2 + (np.polyval(np.polyder(par), x) * xerror) ** 2))

    assert chi2(np.zeros(3)) == pytest.approx(876.49545695, abs=1e-8)  # printed
    assert np.all(np.abs(fit.values - np.array(minimum(chi2, np.zeros(3), 1.0).values)) < 1e-3 * fit.errors)


# --- parabola ----------------------------------------------------------------------------------------------


def test_parabola_by_gradient_descent_and_by_newton():
    """The loop of the lecture, 500 steps from its start, ends where Newton's method does, as does `optax.sgd`."""
    key = jax.random.key(42)
    with jax.enable_x64(True):
        x_key, noise_key = jax.random.split(key)
        xs = jax.random.uniform(x_key, (128, 1), minval=-3, maxval=3)
        ys = bent(xs + jax.random.normal(noise_key, (128, 1)) * 0.15, 0.2, 1.1)

        def loss(params):
            return jnp.mean((bent(xs, params["a"], params["b"]) - ys) ** 2)

        a_key, b_key = jax.random.split(key)
        first = {"a": jax.random.normal(a_key, ()), "b": jax.random.normal(b_key, ())}

        def update(_, params):
            return jax.tree.map(lambda p, g: p - 0.005 * g, params, jax.grad(loss)(params))

        looped = jax.lax.fori_loop(0, 500, update, first)
        x, y = noisy_parabola(key, 0.2, 1.1)
        last = float(loss(looped))
    # the study throws the points of the lecture
    np.testing.assert_array_equal(x, xs[:, 0])
    np.testing.assert_allclose(y, ys[:, 0], rtol=1e-12)
    study = parabola()
    data, start = (np.asarray(x), np.asarray(y)[None], 1.0), {name: float(value) for name, value in first.items()}
    newton = fit_batch(study.cost, data, start, backend="numba")
    # a sum of 128 squares instead of their mean
    descent = fit_batch(study.cost, data, start, optimizer=optax.sgd(0.005 / 128), max_steps=500)
    for fit in (newton[0], descent[0]):
        assert fit.valid and fit.fval == pytest.approx(128 * last, rel=1e-12)
        np.testing.assert_allclose(fit.values, [looped["a"], looped["b"]], rtol=1e-10)
    # the lecture prints two digits of values near the truth
    np.testing.assert_allclose(newton.values[0], [0.2, 1.1], atol=0.05)
    assert newton.nfev[0] < 10 < descent.nfev[0]


def test_toys_of_the_parabola(tmp_path):
    """The problem is linear: every fit has a closed form."""
    study = parabola()
    report = run(study, tmp_path / "toys.h5", Options(n_toys=200, validate=3, device="cpu"))
    assert report.validation.agrees.all() and report.fitted == "LeastSquares of 128 points"
    x, y, yerror = generate(study, 200, seed=1)
    assert x.shape == y.shape == (200, 128) and len(np.unique(x)) > 20_000
    for k in (0, 7, 199):
        design = np.stack([-4.0 * x[k], x[k] ** 2 - 1.0], axis=1)
        np.testing.assert_allclose(report.result.values[k], np.linalg.lstsq(design, y[k])[0], rtol=1e-10)
        # f(x + e) = f(x) + f'(x) e + b e^2
        assert abs(np.std(y[k] - bent(x[k], 0.2, 1.1)) - np.ravel(yerror)[0]) < 0.2


# --- signal strength ---------------------------------------------------------------------------------------


def independent_expectation(par):
    """mu S + B, written process by process and bin by bin."""
    mu, alpha = par[0], dict(zip(NUISANCES, par[1:], strict=True))
    total = np.zeros(20)
    for process, nominal in templates().items():
        for k in range(20):
            events, z = nominal[k], -1 + (2 * k + 1) / 20
            for name, kappas in NORMALISATIONS.items():
                events *= kappas.get(process, 1.0) ** alpha[name]
            for name, changes in SHAPES.items():
                up, down = changes.get(process, (0.0, 0.0))
                u, d, a = 1 + up * z, 1 + down * z, alpha[name]
                events *= u ** ((a + a**2) / 2) * d ** ((a**2 - a) / 2)
            total[k] += mu * events if process == "signal" else events
    return total


def test_signal_strength_against_an_independent_fit():
    """Best fit and t_mu of the Asimov data of mu = 1 and of one toy, both for mu = 0."""
    study = signal_strength()
    names = study.cost.names
    truth = np.array([study.truth[name] for name in names])
    asimov = independent_expectation(truth)
    counts, measured = generate(study, 40, seed=1)
    assert counts.shape == (40, 20) and measured.shape == (40, 7)
    data = (np.vstack([asimov, counts[:1]]), np.vstack([np.zeros(7), measured[:1]]))
    fits = fit_batch(study.cost, data, study.truth, backend="numba")
    background = fit_batch(study.cost, data, study.truth, fixed={"mu": 0.0}, backend="numba")
    assert fits.valid.all() and background.valid.all()
    t_0 = 2.0 * (background.fval - fits.fval)
    for k in range(2):
        n, m = data[0][k], data[1][k]

        def nll(par, n=n, m=m):
            nu = independent_expectation(par)
            return np.sum(nu - n * np.log(nu)) + 0.5 * np.sum((par[1:] - m) ** 2)

        free = minimum(nll, truth, 0.5)
        assert np.all(np.abs(fits.values[k] - np.array(free.values)) < 2e-3 * fits.errors[k])
        np.testing.assert_allclose(fits.errors[k], np.sqrt(np.diag(free.covariance)), rtol=0.01)
        held = minimum(lambda alphas: nll(np.append(0.0, alphas)), background.values[k, 1:], 0.5)
        assert t_0[k] == pytest.approx(2.0 * (held.fval - free.fval), rel=1e-6)
    # Asimov: the truth, at which the saturated likelihood is 0; and more than 3 sigma are expected
    np.testing.assert_allclose(fits.values[0], truth, atol=1e-9)
    assert fits.fval[0] == pytest.approx(0.0, abs=1e-9) and 3.0 < np.sqrt(t_0[0]) < 6.0


def test_nuisance_parameters_have_the_variations_that_they_say():
    def varied(theta):
        with jax.enable_x64(True):
            return np.asarray(expected_events(*theta))

    far = np.random.default_rng(1).normal(size=8)
    np.testing.assert_allclose(varied(far), independent_expectation(far), rtol=1e-12)
    nominal = varied(np.eye(8)[0])
    for i, name in enumerate(NUISANCES):
        up, down = (varied(np.eye(8)[0] + s * np.eye(8)[i + 1]) for s in (1.0, -1.0))
        changed = {**NORMALISATIONS, **SHAPES}[name]
        z = (2 * np.arange(20) + 1) / 20 - 1
        factors = {
            p: (v, 1 / v) if name in NORMALISATIONS else (1 + v[0] * z, 1 + v[1] * z) for p, v in changed.items()
        }
        for events, side in ((up, 0), (down, 1)):
            expected = sum(n * factors.get(p, (1.0, 1.0))[side] for p, n in templates().items())
            np.testing.assert_allclose(events, expected, rtol=1e-12)
    signal = templates()["signal"]
    assert np.all(np.diff(signal) > 0) and signal[-1] / (nominal - signal)[-1] > 0.5
