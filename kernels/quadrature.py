"""Integrals over a fixed window by Gauss-Legendre quadrature, for densities without a closed integral.

The nodes are constants and the sum is elementwise in everything else, so that an integral can be differentiated,
batched and translated like any other expression. It costs n evaluations of the function, once per toy where only
parameters enter. With n nodes a polynomial of degree 2 n - 1 is exact, and an analytic function converges
geometrically; a kink within the window spoils this, so split the window there. How well a given n does is a property
of the function: compute `error` once, for the narrowest peak that the fit may reach.

    mass = integral(lambda x: voigt.pdf(x, gamma, loc, scale), xmin, xmax, n=96)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["cumulative", "error", "integral"]


def integral(function: Callable, xmin: Array | float, xmax: Array | float, n: int = 64) -> Array:
    """int_xmin^xmax of `function`, by n Gauss-Legendre nodes.

    Parameters
    ----------
    function : callable
        `function(x) -> ()`, elementwise; everything else that it needs is closed over.
    xmin, xmax : any shapes that broadcast
        Edges, finite. The integral changes sign where they are exchanged.
    n : int
        Number of nodes.

    Returns
    -------
    Array of the common shape, in units of the function times x.
    """
    dtype = jnp.result_type(xmin, xmax, float)
    nodes, weights = (jnp.asarray(a, dtype=dtype) for a in np.polynomial.legendre.leggauss(n))
    half = 0.5 * (xmax - xmin)
    middle = xmin + half
    terms = jax.vmap(lambda node, weight: weight * function(middle + half * node))(nodes, weights)
    return half * jnp.sum(terms, axis=0)


def error(function: Callable, xmin: Array | float, xmax: Array | float, n: int = 64) -> Array:
    """|integral with n nodes - integral with 2 n nodes|: the error of `integral` with n nodes, if it converges at all.

    Rounding leaves about eps times the integral of |function|. A peak that falls between the nodes of both is not seen.
    """
    return jnp.abs(integral(function, xmin, xmax, n) - integral(function, xmin, xmax, 2 * n))


def cumulative(value: Callable, density: Callable) -> Callable:
    """An integral up to x whose derivative in x is its integrand, and not the derivative of a sum over nodes.

    Parameters
    ----------
    value : callable
        `value(x, a) -> ()`, elementwise: the integral from a constant to x of the density, which has one parameter a.
    density : callable
        `density(x, a) -> ()`.

    Returns
    -------
    callable
        `value`, with derivatives of any order: those in a alone are of the sum, all others of the density.
    """
    function = jax.custom_jvp(value)

    @function.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        in_a = cumulative(_in_second(value), _in_second(density))
        return function(*primals), density(*primals) * tangents[0] + in_a(*primals) * tangents[1]

    return function


def _in_second(function: Callable) -> Callable:
    """Derivative in the second argument."""
    return lambda x, a: jax.jvp(lambda a: function(x, a), (a,), (jnp.ones_like(a),))[1]
