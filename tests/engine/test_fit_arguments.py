"""Start, fixed, limits and optimizer of `fit_batch`, and one sentence for each that is wrong."""

import jax
import numpy as np
import optax
import pandas
import pytest

from engine import Status, fit_batch, newton
from tests.engine.normal_fits import (
    BACKENDS,
    COST,
    LIMITS,
    START,
    assert_close,
    assert_identical,
    closed_form,
    fit,
    normal_toys,
)

# --- start, fixed, limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_forms_of_start(backend):
    toys = normal_toys(6)
    rng = np.random.default_rng(7)
    per_toy = np.array([30.0, 0.3, 1.2]) * rng.uniform(0.8, 1.2, (6, 3))
    one = fit(toys, backend=backend)
    assert_identical(fit(toys, [30.0, 0.3, 1.2], backend=backend), one)
    assert_identical(fit(toys, dict(reversed(START.items())), backend=backend), one)
    assert_identical(fit(toys, np.tile([30.0, 0.3, 1.2], (6, 1)), backend=backend), one)
    each = fit(toys, per_toy, backend=backend)
    assert_close(each, one, 1e-9)
    assert_identical(fit(toys, dict(zip(COST.names, per_toy.T, strict=True)), backend=backend), each)
    assert_identical(fit(toys[4:5], per_toy[4], backend=backend), each[4:5], ("nfev", "status", "valid"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_fixed_parameters(backend):
    toys = normal_toys(6)
    n, _, _ = closed_form(toys).T
    at_start = fit(toys, START | {"mu": 0.25}, backend=backend, fixed=["mu"])
    by_value = fit(toys, backend=backend, fixed={"mu": 0.25})
    by_text = fit(toys, START | {"mu": 0.25}, backend=backend, fixed="mu")
    assert_identical(by_value, at_start)
    assert_identical(by_text, at_start)
    sigma = np.sqrt([np.mean((x - 0.25) ** 2) for x in toys])
    np.testing.assert_allclose(at_start.values, np.stack([n, np.full(6, 0.25), sigma], 1), rtol=1e-9)
    np.testing.assert_array_equal(at_start.errors[:, 1], 0.0)
    np.testing.assert_array_equal(at_start.covariance[:, 1], 0.0)
    np.testing.assert_array_equal(at_start.covariance[:, :, 1], 0.0)
    np.testing.assert_allclose(at_start.errors[:, 2], sigma / np.sqrt(2 * n), rtol=1e-5)
    assert at_start.valid.all() and not at_start.at_limit.any()
    everything = fit(toys, closed_form(toys), backend=backend, fixed=["n", "mu", "sigma"])
    assert everything.valid.all() and np.all(everything.nfev == 1)
    np.testing.assert_array_equal(everything.values, closed_form(toys))
    np.testing.assert_allclose(everything.fval, fit(toys, backend=backend).fval, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_profile_scan_is_one_batch(backend):
    x = normal_toys(1)[0]
    n = len(x)
    mu = np.linspace(x.mean() - 0.5, x.mean() + 0.5, 9)
    scan = fit([x] * 9, backend=backend, fixed={"mu": mu})
    best = fit([x], backend=backend)
    assert scan.valid.all()
    np.testing.assert_array_equal(scan.values[:, 1], mu)
    # profile of a normal's mean: n / 2 log(1 + (mean - mu)^2 / s^2)
    profile = 0.5 * n * np.log1p((x.mean() - mu) ** 2 / x.var())
    np.testing.assert_allclose(scan.fval - best.fval, profile, atol=1e-10)


def test_a_start_of_pandas_is_taken_by_its_names():
    toys = normal_toys(3)
    start = pandas.Series(START)[::-1]
    assert_identical(fit(toys, start), fit(toys, START))
    assert_identical(fit(toys, pandas.DataFrame([start] * 3)), fit(toys, START))
    held = {"mu": 0.2, "sigma": 1.1}
    assert_identical(fit(toys, fixed=pandas.Series(held)), fit(toys, fixed=held))


@pytest.mark.parametrize("backend", BACKENDS)
def test_limits(backend):
    toys = normal_toys(12)
    n, mean, _ = closed_form(toys).T
    middle = np.median(mean)
    result = fit(toys, START | {"mu": middle + 0.1}, backend=backend, limits=LIMITS | {"mu": (middle, None)})
    low = mean < middle
    assert low.sum() == 6 and result.valid.all()
    np.testing.assert_array_equal(result.at_limit, low[:, None] & [False, True, False])
    assert np.all(result.values[low, 1] == middle)
    np.testing.assert_allclose(result.values[~low, 1], mean[~low], rtol=1e-9)
    sigma = np.sqrt([np.mean((x - max(m, middle)) ** 2) for x, m in zip(toys, mean, strict=True)])
    np.testing.assert_allclose(result.values[:, 2], sigma, rtol=1e-9)
    np.testing.assert_array_equal(result.errors[low, 1], 0.0)
    np.testing.assert_allclose(result.errors[:, 2], sigma / np.sqrt(2 * n), rtol=1e-5)
    # an open side, said in three ways
    for pair in ((None, None), (-np.inf, np.inf), None):
        assert_identical(fit(toys, backend=backend, limits=LIMITS | {"mu": pair}), fit(toys, backend=backend))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"start": {"n": 1.0, "mu": 0.0}}, ValueError, "start has no value for sigma"),
        (
            {"start": START | {"sigmma": 1.0}},
            ValueError,
            "start names 'sigmma', but the parameters are n, mu, sigma: did you mean 'sigma'?",
        ),
        (
            {"start": START | {"mu": np.zeros(3)}},
            ValueError,
            "start['mu'] must be a number or have shape (n_toys,) = (2,)",
        ),
        ({"start": START | {"mu": "much"}}, TypeError, "start['mu'] must be a number or an array of 2, got 'much'"),
        ({"start": START | {"mu": np.nan}}, ValueError, "start values must be finite, but mu is nan for toy 0"),
        (
            {"start": START | {"mu": np.array([0, np.inf])}},
            ValueError,
            "start values must be finite, but mu is inf for toy 1",
        ),
        ({"start": [1.0, 2.0]}, ValueError, "start must have shape (3,) or (n_toys, 3) = (2, 3), got (2,)"),
        ({"start": np.zeros((3, 2))}, ValueError, "start must have shape (3,) or (n_toys, 3) = (2, 3), got (3, 2)"),
        ({"start": {1: 2.0}}, ValueError, "start names 1, but the parameters are"),
        ({"start": None}, TypeError, "start must be a dict or an array of numbers, got NoneType"),
        ({"start": "here"}, TypeError, "start must be a dict or an array of numbers, got str"),
        (
            {"limits": {"sigam": (0, 1)}},
            ValueError,
            "limits names 'sigam', but the parameters are n, mu, sigma: did you mean",
        ),
        ({"limits": [(0, 1)]}, TypeError, "limits must be a dict name -> (lower, upper), got list"),
        ({"limits": {"mu": (1, 0)}}, ValueError, "limits['mu']: the lower limit 1 must be below the upper limit 0"),
        ({"limits": {"mu": (1, 1)}}, ValueError, "limits['mu'] leave 1 alone: use fixed={'mu': 1}"),
        (
            {"limits": {"mu": (np.nan, 1)}},
            ValueError,
            "limits['mu']: the lower limit nan must be below the upper limit 1",
        ),
        ({"limits": {"mu": 3}}, ValueError, "limits['mu'] must be (lower, upper) with None for an open side, got 3"),
        (
            {"limits": {"mu": (1, 2, 3)}},
            ValueError,
            "limits['mu'] must be (lower, upper) with None for an open side, got (1",
        ),
        ({"limits": {"mu": (0.5, 2)}}, ValueError, "the start mu = 0.3 of toy 0 is outside of its limits (0.5, 2)"),
        (
            {"fixed": {"mu": -1.0}, "limits": {"mu": (0, 2)}},
            ValueError,
            "the fixed mu = -1 of toy 0 is outside of its limits",
        ),
        ({"fixed": ["tau"]}, ValueError, "fixed names 'tau', but the parameters are n, mu, sigma"),
        (
            {"fixed": {"mu": np.zeros(5)}},
            ValueError,
            "fixed['mu'] must be a number or have shape (n_toys,) = (2,), got (5,)",
        ),
        ({"fixed": {"mu": np.nan}}, ValueError, "values of fixed parameters must be finite"),
        ({"fixed": 3}, TypeError, "fixed must be names, or a dict name -> value, got int"),
        ({"fixed": {"mu": True}}, TypeError, "fixed['mu'] must be the value at which it is held, got True"),
        ({"fixed": [1]}, ValueError, "fixed names 1, but the parameters are n, mu, sigma"),
        ({"backend": "torch"}, ValueError, "backend must be one of 'auto', 'numba', 'jax', got 'torch'"),
        ({"device": "cuda"}, ValueError, "device must be one of 'auto', 'cpu', 'gpu', 'tpu', got 'cuda'"),
        ({"device": None}, ValueError, "device must be one of 'auto', 'cpu', 'gpu', 'tpu', got None"),
        ({"optimizer": "bfgs"}, ValueError, "optimizer must be one of 'newton', 'lbfgs', 'adam', got 'bfgs'"),
        (
            {"optimizer": optax.adam},
            TypeError,
            "optimizer must be 'newton', 'lbfgs', 'adam' or an optax transformation, got function",
        ),
        (
            {"optimizer": None},
            TypeError,
            "optimizer must be 'newton', 'lbfgs', 'adam' or an optax transformation, got None",
        ),
        (
            {"optimizer": newton()},
            TypeError,
            "a transformation that wants a Hessian, as engine.newton(), is for loops of your own: pass 'newton'",
        ),
        (
            {"backend": "numba", "device": "gpu"},
            ValueError,
            "backend 'numba' runs on the CPU only: pass backend='jax' for",
        ),
        (
            {"backend": "numba", "optimizer": "adam"},
            ValueError,
            "backend 'numba' has the optimizer 'newton' only: pass backend='jax' for any other",
        ),
        (
            {"backend": "numba", "optimizer": optax.sgd(0.1)},
            ValueError,
            "backend 'numba' has the optimizer 'newton' only",
        ),
        ({"tol": 0.0}, ValueError, "tol must be above 0 and at most 1e-06 (in units of errordef), got 0.0"),
        ({"tol": 1.0}, ValueError, "tol must be above 0 and at most 1e-06 (in units of errordef), got 1.0"),
        ({"tol": "small"}, ValueError, "tol must be above 0 and at most 1e-06 (in units of errordef), got 'small'"),
        ({"max_steps": 0}, ValueError, "max_steps must be a whole number of at least 1, got 0"),
        ({"max_steps": 1.5}, ValueError, "max_steps must be a whole number of at least 1, got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
        ({"max_steps": 10**30}, ValueError, "max_steps must be at most 100000000, got 1000000000000000000000000000000"),
        ({"limits": {"mu": (0, 10**400)}}, ValueError, "limits['mu'] must be (lower, upper) with None for"),
        ({"retries": -1}, ValueError, "retries must be a whole number of at least 0, got -1"),
        ({"retries": None}, ValueError, "retries must be a whole number of at least 0, got None"),
    ],
)
def test_wrong_arguments(options, error, message):
    arguments = {"start": START, **options}
    with pytest.raises(error) as caught:
        fit_batch(COST, normal_toys(2), **arguments)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_device_that_is_not_there(device):
    found = {d.platform for d in jax.devices()}
    if device in found:
        pytest.skip(f"there is a {device} here")
    with pytest.raises(
        ValueError, match=f"no {device.upper()} here, JAX sees .* only: pass device 'cpu', or pip install"
    ):
        fit_batch(COST, normal_toys(2), START, device=device)


# --- optimisers ---------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": "adam",
    "lbfgs": "lbfgs",
    # a transformation of one's own sees the parameters as they are, here of size 1
    "noisy": optax.noisy_sgd(1e-3, eta=1e-4, gamma=0.5, key=0),  # its state holds a key of jax.random
    "own": optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.5), optax.scale(-3e-3)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_first_order_optimizers_reach_the_same_minimum(name):
    toys = normal_toys(6)
    by_newton = fit(toys, backend="jax")
    result = fit(toys, {"n": 40.0, "mu": 0.1, "sigma": 1.3}, backend="auto", batch_size=2, optimizer=OPTIMIZERS[name])
    assert result.backend == "jax" and result.valid.all() and not result.rescued.any()
    assert_close(result, by_newton, 1e-6)
    # the optimiser did its part before Newton polished
    assert np.all(result.nfev > by_newton.nfev)


def test_step_limit_and_tolerance():
    toys = normal_toys(8)
    for backend in BACKENDS:
        stopped = fit(toys, backend=backend, max_steps=2, retries=0)
        np.testing.assert_array_equal(stopped.status, Status.MAX_STEPS)
        np.testing.assert_array_equal(stopped.nfev, 2)
        assert not stopped.valid.any()
        loose = fit(toys, backend=backend, tol=1e-6)
        assert loose.valid.all() and np.all(loose.edm <= 0.5e-6)
        assert loose.nfev.sum() < fit(toys, backend=backend).nfev.sum()
