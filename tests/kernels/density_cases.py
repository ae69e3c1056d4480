"""The densities beyond the basic five: parameters, support, and where to look at them."""

import functools
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from kernels import argus, cauchy, cruijff, crystalball, crystalball_ex, lognorm, qgaussian, t, voigt
from kernels.truncated import trunccauchy, trunccrystalball


def of_numba_stats(name: str) -> ModuleType:
    """Compiled where it is imported, so not before it is needed."""
    return import_module(f"numba_stats.{name}")


class Case(NamedTuple):
    density: Any
    theta: tuple[float, ...]
    # of each parameter: "p" for a position, "w" for a width, "s" for a shape without a unit
    kinds: str
    lower: float
    upper: float
    # where derivatives are taken: one point on each branch, clear of kinks
    at: tuple[float, ...]
    functions: tuple[str, ...] = ("pdf", "logpdf", "cdf", "ppf")

    def moved(self, shift: float, scale: float) -> tuple[float, ...]:
        by = {"p": (scale, shift), "w": (scale, 0.0), "s": (1.0, 0.0)}
        return tuple(value * by[kind][0] + by[kind][1] for value, kind in zip(self.theta, self.kinds, strict=True))


INF = np.inf
NO_CDF = ("pdf", "logpdf")
DOUBLE = (1.1, 2.7, 0.9, 1.6, 3.4, 1.3, 0.3)
CASES = {
    "cauchy": Case(cauchy, (0.3, 1.2), "pw", -INF, INF, (-0.8, 30.0)),
    "lognorm": Case(lognorm, (0.7, 0.3, 1.2), "spw", 0.3, INF, (0.9, 4.0)),
    "crystalball": Case(crystalball, (1.1, 2.7, 0.3, 1.2), "sspw", -INF, INF, (-2.5, 0.9)),
    "crystalball_ex": Case(crystalball_ex, DOUBLE, "sswsswp", -INF, INF, (-2.5, -0.2, 1.3, 5.0)),
    "t": Case(t, (3.7, 0.3, 1.2), "spw", -INF, INF, (-9.0, 0.9, 3.5)),
    "qgaussian": Case(qgaussian, (1.4, 0.3, 1.2), "spw", -INF, INF, (-9.0, 0.9, 3.5)),
    "voigt": Case(voigt, (0.6, 0.3, 1.2), "wpw", -INF, INF, (0.9, 9.0, 30.0), NO_CDF),
    "voigt, narrow": Case(voigt, (0.02, 0.3, 1.2), "wpw", -INF, INF, (0.4, 6.0, 30.0), NO_CDF),
    "argus": Case(argus, (1.3, 2.1, 0.7), "sws", 0.0, 2.1, (0.4, 1.7)),
    "cruijff": Case(cruijff, (-4.0, 5.0, 0.1, 0.2, 0.3, 0.9, 1.3), "ppsspww", -4.0, 5.0, (-2.0, 2.0)),
    "trunccauchy": Case(trunccauchy, (-0.8, 2.1, 0.3, 1.2), "pppw", -0.8, 2.1, (0.9,)),
    "trunccrystalball": Case(trunccrystalball, (-3.0, 2.1, 1.1, 2.7, 0.3, 1.2), "ppsspw", -3.0, 2.1, (-2.3, 0.9)),
}
# qgaussian.ppf is that of t
INVERTIBLE = {name: case for name, case in CASES.items() if "ppf" in case.functions and name != "qgaussian"}
# a shift would move the lower edge of argus, which is 0
FRAMES = [(0.0, 1.0), (10.0, 1e-3), (-5.0, 1e3)]

each_case = pytest.mark.parametrize("name", CASES)
each_invertible = pytest.mark.parametrize("name", INVERTIBLE)


# each is called a few times: the compiler's effort would be most of the test
QUICKLY = {"xla_backend_optimization_level": 0}


@functools.cache
def compiled(density: Any, function: str):
    """A function of points, in one program for as many as there are in multiples of 128."""
    evaluate = jax.jit(getattr(density, function), compiler_options=QUICKLY)

    def padded(x, *theta):
        x = np.asarray(x, dtype=float)
        values = evaluate(np.resize(x, -(-x.size // 128) * 128), *np.array(theta, dtype=float))
        return np.asarray(values)[: x.size].reshape(x.shape)

    return padded


def value_and_derivatives(f, slope=jax.jacfwd):
    """Value, gradient (forwards, or by `jax.grad`) and Hessian, each of them once in what is compiled."""

    def with_value(x):
        value = f(x)
        return value, value

    def with_both(x):
        gradient, value = slope(with_value, has_aux=True)(x)
        return gradient, (value, gradient)

    def everything(x):
        hessian, (value, gradient) = jax.jacfwd(with_both, has_aux=True)(x)
        return value, gradient, hessian

    return everything


@functools.cache
def compiled_derivatives(density: Any, function: str):
    """Value, gradient and Hessian in all arguments."""
    f = lambda arguments: getattr(density, function)(*arguments)  # noqa: E731
    return jax.jit(value_and_derivatives(f), compiler_options=QUICKLY)


def points(case: Case, n: int = 100) -> np.ndarray:
    """Random points within the support, tails included."""
    rng = np.random.default_rng(11)
    x = np.concatenate([rng.uniform(-6.0, 8.0, n), rng.uniform(-40.0, 40.0, n // 4)])
    return x[(x > case.lower + 1e-3) & (x < case.upper - 1e-3)]
