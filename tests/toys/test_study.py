"""What a study tells its fits."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine import PoissonNLL, fit_batch
from toys.counts import PoissonCounts
from toys.study import Study, generate


@pytest.fixture(scope="module")
def study():
    cost = PoissonNLL(lambda s, b: jnp.stack([s + b, b]))
    return Study(
        cost=cost,
        sampler=PoissonCounts.of(cost),
        truth={"s": 2.0, "b": 50.0},
        start={"s": 1.0, "b": 60.0},
        limits={"s": (0.0, None)},
        fixed="b",
    )


def test_fits_have_the_start_the_limits_and_what_is_held(study):
    data = generate(study, 64, seed=1)
    fits = study.fit(data, backend="numba")
    same = fit_batch(study.cost, data, {"s": 1.0, "b": 60.0}, limits={"s": (0.0, None)}, fixed=["b"], backend="numba")
    np.testing.assert_array_equal(fits.values, same.values)
    # with b held at 60, s is the excess of the first bin above it, or on its limit
    np.testing.assert_allclose(fits.values["s"], np.maximum(data[:, 0] - 60.0, 0.0), atol=1e-9)
    assert 0 < fits.at_limit[:, 0].sum() < 64


def test_another_start_holds_its_own_values(study):
    data = generate(study, 8, seed=1)
    assert (study.fit(data, {"s": 1.0, "b": 40.0}, backend="numba").values["b"] == 40.0).all()
    free = study.fit(data, fixed=(), limits={}, backend="numba")
    np.testing.assert_allclose(free.values["s"], data[:, 0] - data[:, 1], atol=1e-6)
