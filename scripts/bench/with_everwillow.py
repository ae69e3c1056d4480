"""everwillow: likelihoods in JAX, minimised by optimistix; all toys of a block at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench.cases import Case
from bench.contest import Outcome

from kernels import truncexpon, truncnorm
from toys.models import XMAX, XMIN

__all__ = ["prepare"]

BLOCK_ROWS = 2**18


def prepare(case: Case, errors: np.ndarray) -> tuple[Callable[[Sequence[int]], Outcome], int]:
    """(fit(toys), toys of a block), compiled for one block.

    Its BFGS starts from a unit matrix, so that it is given parameters in units of their errors.
    """
    import everwillow
    import everwillow.statelib
    import optimistix

    theta, scale = case.theta, errors
    block = int(max(1, min(64, BLOCK_ROWS // case.rows)))
    observed, nll = observation(case)
    solver: Any = optimistix.BFGS(rtol=1e-6, atol=3e-4)
    n = len(theta)

    def fit_one(toy: Any) -> tuple:
        result: Any = everwillow.fit(
            lambda params, observation: nll(theta + scale * params["u"], observation),
            everwillow.statelib.State.from_pytree({"u": jnp.zeros(n)}),
            toy,
            solver=solver,
            throw=False,
        )
        return theta + scale * result.params.to_pytree()["u"], result.success, result.solver_result.stats["num_steps"]

    fit_block = jax.jit(jax.vmap(fit_one))

    def fit(toys: Sequence[int]) -> Outcome:
        found = []
        with jax.enable_x64(True):
            for first in range(0, len(toys), block):
                some = np.resize(toys[first : first + block], block)
                found.append(jax.tree.map(np.asarray, fit_block(observed(some))))
        values, valid, steps = (np.concatenate(each)[: len(toys)] for each in zip(*found, strict=True))
        return Outcome(values, valid, float(steps.mean()))

    return fit, block


def observation(case: Case) -> tuple[Callable[[np.ndarray], Any], Callable]:
    """(data of some toys, as arrays with a leading toy axis; nll(theta, data of one))."""
    if case.family == "peak":
        most = int(np.diff(case.data.offsets).max())
        events, used = np.full((case.n_toys, most), 0.5 * (XMIN + XMAX)), np.zeros((case.n_toys, most))
        for k in range(case.n_toys):
            toy = case.toy(k)
            events[k, : len(toy)], used[k, : len(toy)] = toy, 1.0

        def peak(theta: Any, toy: Any) -> Any:
            ns, nb, mu, sigma, lam = theta
            x, use = toy
            density = ns * truncnorm.pdf(x, XMIN, XMAX, mu, sigma) + nb * truncexpon.pdf(x, XMIN, XMAX, 0.0, lam)
            return ns + nb - jnp.sum(use * jnp.log(density / (ns + nb))) - jnp.sum(use) * jnp.log(ns + nb)

        return lambda toys: (events[toys], used[toys]), peak
    if case.family == "line":
        x, y, error = case.data
        return lambda toys: y[toys], lambda theta, toy: 0.5 * jnp.sum(((toy - theta[0] - theta[1] * x) / error) ** 2)
    if case.family == "convolution":
        events, detail = np.stack([case.toy(k) for k in range(case.n_toys)]), case.detail

        def convolution(theta: Any, x: Any) -> Any:
            density = jax.vmap(lambda m: detail.density(m, *theta))
            norm = jnp.sum(detail.point_weights * density(detail.points))
            return len(x) * jnp.log(norm) - jnp.sum(jnp.log(density(x)))

        return lambda toys: events[toys], convolution
    counts = np.stack([case.toy(k) for k in range(case.n_toys)])

    def poisson(nu: Any, n: Any) -> Any:
        return jnp.sum(nu - n - n * jnp.log(nu / jnp.where(n > 0, n, 1.0)))

    if case.family == "histogram":

        def histogram(theta: Any, n: Any) -> Any:
            ns, nb, mu, sigma, lam = theta
            cdf = ns * truncnorm.cdf(case.detail, XMIN, XMAX, mu, sigma)
            return poisson(jnp.diff(cdf + nb * truncexpon.cdf(case.detail, XMIN, XMAX, 0.0, lam)), n)

        return lambda toys: counts[toys], histogram
    likelihood, constraint = case.cost.leaves
    measured = np.array([case.cost.names.index(name) for name in constraint.names])
    value, error = constraint.value, np.sqrt(np.diag(constraint.covariance))

    def templates(theta: Any, n: Any) -> Any:
        return poisson(likelihood.model(*theta), n) + 0.5 * jnp.sum(((theta[measured] - value) / error) ** 2)

    return lambda toys: counts[toys], templates
