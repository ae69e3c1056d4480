"""The JAX driver compiles few programs."""

import numpy as np

from engine import UnbinnedNLL, fit_batch, xla
from kernels import norm


def test_one_step_is_compiled_for_all_lanes_whether_new_or_refilled(monkeypatch):
    traces = []
    step = xla.newton_step
    monkeypatch.setattr(xla, "newton_step", lambda *args, **options: traces.append(1) or step(*args, **options))
    rng = np.random.default_rng(0)
    toys = [rng.normal(3.0, 2.0, n) for n in rng.integers(3, 30, 1500)]
    cost, start = UnbinnedNLL(norm.pdf), {"loc": 2, "scale": 3}
    limits = {"scale": (1e-3, None)}
    fit_batch(cost, toys[:400], start, limits=limits, backend="jax")
    once = len(traces)
    assert once > 0
    # three times as many toys as lanes, and single ones
    result = fit_batch(cost, toys, start, limits=limits, backend="jax")
    np.testing.assert_allclose(result.values[:, 0], [np.mean(x) for x in toys], atol=1e-6)
    fit_batch(cost, toys[:1], start, limits=limits, backend="jax")
    assert len(traces) == once
