"""A study: its parameters, those of its toys, and what it tells its fits."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pandas
import pytest

from engine import ExtendedUnbinnedNLL, PoissonNLL, fit_batch
from engine.data import Ragged
from kernels import expon
from tests.toys.small_runs import decay, traced_sampler
from toys.counts import PoissonCounts
from toys.sampling import Component, ExtendedMixture
from toys.study import Study, generate


@pytest.fixture(scope="module")
def counting():
    cost = PoissonNLL(lambda s, b: jnp.stack([s + b, b]))
    return Study(
        cost=cost,
        sampler=PoissonCounts.of(cost),
        truth={"s": 2.0, "b": 50.0},
        start={"s": 1.0, "b": 60.0},
        limits={"s": (0.0, None)},
        fixed="b",
    )


def test_fits_have_the_start_the_limits_and_what_is_held(counting):
    data = generate(counting, 64, seed=1)
    fits = counting.fit(data, backend="numba")
    same = fit_batch(
        counting.cost, data, {"s": 1.0, "b": 60.0}, limits={"s": (0.0, None)}, fixed=["b"], backend="numba"
    )
    np.testing.assert_array_equal(fits.values, same.values)
    # with b held at 60, s is the excess of the first bin above it, or on its limit
    np.testing.assert_allclose(fits.values["s"], np.maximum(data[:, 0] - 60.0, 0.0), atol=1e-9)
    assert 0 < fits.at_limit[:, 0].sum() < 64


def test_another_start_holds_its_own_values(counting):
    data = generate(counting, 8, seed=1)
    assert (counting.fit(data, {"s": 1.0, "b": 40.0}, backend="numba").values["b"] == 40.0).all()
    free = counting.fit(data, fixed=(), limits={}, backend="numba")
    np.testing.assert_allclose(free.values["s"], data[:, 0] - data[:, 1], atol=1e-6)


@pytest.mark.parametrize("kind", [dict, pandas.Series])
def test_values_at_which_parameters_are_held_become_the_start(study, kind):
    held = dataclasses.replace(study, fixed=kind({"sigma": 0.6}))
    assert held.fixed == ("sigma",) and held.start == {**study.start, "sigma": 0.6} and held.truth == study.truth


def test_study_checks_its_parameters(study):
    with pytest.raises(ValueError, match=r"truth names 'sigm', .*: did you mean 'sigma'"):
        study.at({"sigm": 1.0})
    with pytest.raises(ValueError, match=r"start must have a value for each of ns, nb, mu, sigma, lam, got {'ns': 1}"):
        dataclasses.replace(study, start={"ns": 1})
    with pytest.raises(ValueError, match=r"truth must hold numbers, got {'n': 'many', 'tau': 1}"):
        Study(ExtendedUnbinnedNLL(decay), traced_sampler, {"n": "many", "tau": 1})
    for changes, words in [
        ({"limits": {"sigm": (0, 1)}}, "limits names 'sigm', .*: did you mean 'sigma'"),
        ({"fixed": ["lamb"]}, "fixed names 'lamb', .*: did you mean 'lam'"),
    ]:
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(study, **changes)
    with pytest.raises(TypeError, match=r"cost must be a cost such as ExtendedUnbinnedNLL\(model\), got function"):
        dataclasses.replace(study, cost=decay)
    with pytest.raises(TypeError, match=r"sampler must be a function sampler\(key, theta\), got NoneType"):
        dataclasses.replace(study, sampler=None)
    assert isinstance(generate(study, 0, seed=1), Ragged)


def test_toys_of_another_model(study):
    """The parameters of the sampler are not those of the fit."""
    other = ExtendedMixture(("mu", "n", "tau"), (Component("n", expon.ppf, ("mu", "tau")),))
    truth = {"n": 50.0, "tau": 2.0, "mu": 0.0}
    with pytest.raises(
        ValueError, match=r"start must be given: the truth .* has no value for ns, nb, sigma, lam of the"
    ):
        Study(study.cost, other, truth)
    with pytest.raises(ValueError, match="truth must have a value for each of mu, n, tau"):
        dataclasses.replace(study, sampler=other)
    bias = dataclasses.replace(study, sampler=other, truth=truth)
    np.testing.assert_array_equal(bias.theta, [0.0, 50.0, 2.0])
    assert bias.start == study.start
    moved = bias.at({"mu": 4.0, "tau": 3.0})
    # the fit starts at the new truth where it has the parameter
    assert moved.truth == truth | {"mu": 4.0, "tau": 3.0} and moved.start == study.start | {"mu": 4.0}
    # and nowhere else, nor where it holds it
    far = dataclasses.replace(study, start=study.start | {"nb": 900.0, "sigma": 0.6}, fixed=("sigma",))
    assert far.at({"ns": 50.0, "sigma": 0.4}).start == far.start | {"ns": 50.0}
    assert generate(moved, 3, seed=1).values.min() >= 4.0
    with pytest.raises(ValueError, match="truth names 'lam', but the parameters are mu, n, tau"):
        bias.at({"lam": 1.0})
