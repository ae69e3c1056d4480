"""The one-pass kernel, interpreted, against the sums by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import norm, truncexpon, truncnorm
from kernels.pallas import row_sums_pallas
from kernels.program import build_program
from kernels.xla import row_sums


def spectrum(ns, nb, mu, sigma, lam, x):
    return -jnp.log(ns * truncnorm.pdf(x, 1.0, 9.0, mu, sigma) + nb * truncexpon.pdf(x, 1.0, 9.0, 0.0, lam))


def weighted_line(a, b, y, x, aux):
    return (y - a - b * x) ** 2 * aux


CASES = {
    "spectrum": (spectrum, lambda ns, nb, *_: ns + nb, {"n_params": 5, "n_columns": 1}),
    "shared": (weighted_line, None, {"n_params": 2, "n_columns": 1, "n_shared": 1, "n_aux": 1}),
}
THETA = {"spectrum": [2000.0, 13500.0, 5.0, 0.5, 4.0], "shared": [1.0, 2.0]}


@pytest.mark.parametrize(("name", "order"), [("spectrum", 2), ("shared", 0), ("shared", 1), ("shared", 2)])
def test_sums_are_those_of_xla(name, order):
    term, rest, sizes = CASES[name]
    rng = np.random.default_rng(4)
    n_rows, n = 300, np.array([300, 256, 255, 1, 0])
    theta = np.array(THETA[name]) * rng.uniform(0.9, 1.1, (len(n), sizes["n_params"]))
    columns = rng.uniform(1.0, 9.0, (len(n), 1, n_rows))
    # what lies beyond a toy's rows counts for nothing
    columns = np.where(np.arange(n_rows) < n[:, None, None], columns, np.nan)
    shared = rng.uniform(size=(sizes.get("n_shared", 0), n_rows))
    aux = rng.uniform(1.0, 2.0, (len(n), sizes.get("n_aux", 0)))
    with jax.enable_x64(True):
        program = build_program(term, rest, **sizes)
        ours, theirs = (
            np.asarray(jax.jit(jax.vmap(sums, in_axes=(0, 0, None, 0, 0)))(theta, columns, shared, aux, n))
            for sums in (row_sums_pallas(program, order, interpret=True), row_sums(program, n_rows, order))
        )
    assert np.isfinite(theirs).all() and ours.shape == theirs.shape
    scale = np.maximum(np.abs(theirs).max(axis=1, keepdims=True), 1.0)
    np.testing.assert_allclose(ours / scale, theirs / scale, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_what_the_device_has_not_is_refused():
    with jax.enable_x64(True):
        smooth = build_program(lambda mu, x: jnp.log(norm.cdf(x, mu, 1.0)), None, n_params=1, n_columns=1)
    with pytest.raises(ValueError, match="has no form of erf"):
        row_sums_pallas(smooth)
