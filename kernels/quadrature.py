"""Integrals over a fixed window by Gauss-Legendre quadrature, for densities without a closed integral.

The nodes are constants and the sum is elementwise in everything else, so that an integral can be differentiated,
batched and translated like any other expression. It costs n evaluations of the function, once per toy where only
parameters enter. With n nodes a polynomial of degree 2 n - 1 is exact, and an analytic function converges
geometrically; a kink within the window spoils this, so split the window there. How well a given n does is a property
of the function: compute `error` once, for the narrowest peak that the fit may reach.

    mass = integral(lambda x: voigt.pdf(x, gamma, loc, scale), xmin, xmax, n=96)

`adaptive` and `over_box` are for NumPy functions, and choose their nodes by what they find: for checks, not for fits.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = ["adaptive", "cumulative", "error", "integral", "over_box", "written_out"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_PANELS = 64  # of `adaptive`, at first
_MAX_PANELS = 4096  # in one round
_ROUNDS = 40
_TOLERANCE = 1e-9  # relative to the integral of |function|


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


def written_out(function: Callable, xmin: Array | float, xmax: Array | float, n: int) -> Array:
    """`integral` as a sum of n terms and not of an array, where few nodes are evaluated for each row."""
    half = 0.5 * (xmax - xmin)
    nodes = zip(*np.polynomial.legendre.leggauss(n), strict=True)
    return half * sum(weight * function(xmin + half + half * node) for node, weight in nodes)


def error(function: Callable, xmin: Array | float, xmax: Array | float, n: int = 64) -> Array:
    """|integral with n nodes - integral with 2 n nodes|: the error of `integral` with n nodes, if it converges at all.

    Rounding leaves about eps times the integral of |function|. A peak that falls between the nodes of both is not seen.
    """
    return jnp.abs(integral(function, xmin, xmax, n) - integral(function, xmin, xmax, 2 * n))


def adaptive(function: Callable, xmin: float, xmax: float) -> tuple[float, float]:
    """int_xmin^xmax of a NumPy function by Gauss-Legendre panels, split where halves and whole differ.

    Starts from 64 panels of 16 nodes; a peak narrower than about 1e-4 of the range may fall between them.

    Parameters
    ----------
    function : callable
        `function(x (n,)) -> (n,)`. It may have jumps and integrable poles.
    xmin, xmax : float
        Edges, xmin < xmax. An infinite one is reached by x = t / (1 - t^2), or an edge plus t / (1 - t).

    Returns
    -------
    (integral, error) : float
        The error is the sum of the differences of halves and whole over all panels. NaN, and infinite, where the
        function is NaN or infinite at a node.
    """
    function, low, high = _within_finite(function, float(xmin), float(xmax))
    edges = np.linspace(low, high, _PANELS + 1)
    left, right = edges[:-1], edges[1:]
    whole = _panels(function, left, right)
    value, uncertainty, size = 0.0, 0.0, float(np.sum(np.abs(whole)))
    for k in range(_ROUNDS):
        middle = 0.5 * (left + right)
        halves = np.stack([_panels(function, left, middle), _panels(function, middle, right)])
        if not np.isfinite(halves).all():
            return np.nan, np.inf
        total = halves.sum(axis=0)
        difference = np.abs(total - whole)
        size = max(size, abs(value) + float(np.sum(np.abs(halves))))
        # the difference is the error of the whole panel; that of its halves is far smaller unless there is a jump
        rough = difference > _TOLERANCE * size / _PANELS
        rough &= (k < _ROUNDS - 1) and 2 * np.count_nonzero(rough) <= _MAX_PANELS
        value += float(np.sum(total[~rough]))
        uncertainty += float(np.sum(difference[~rough]))
        if not rough.any():
            break
        left, right = (np.concatenate(pair) for pair in ((left[rough], middle[rough]), (middle[rough], right[rough])))
        whole = halves[:, rough].ravel()
    return value, uncertainty


def _panels(function: Callable, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The integral over each panel."""
    half = 0.5 * (right - left)
    x = (left + half)[:, None] + half[:, None] * _NODES
    with np.errstate(all="ignore"):
        return half * (function(x.ravel()).reshape(x.shape) @ _WEIGHTS)


def _within_finite(function: Callable, xmin: float, xmax: float) -> tuple[Callable, float, float]:
    """The integrand in a variable whose range is finite, and that range."""
    if np.isfinite(xmin) and np.isfinite(xmax):
        return function, xmin, xmax
    if np.isfinite(xmin):
        return lambda t: function(xmin + t / (1.0 - t)) / (1.0 - t) ** 2, 0.0, 1.0
    if np.isfinite(xmax):
        return lambda t: function(xmax - t / (1.0 - t)) / (1.0 - t) ** 2, 0.0, 1.0
    return lambda t: function(t / (1.0 - t * t)) * (1.0 + t * t) / (1.0 - t * t) ** 2, -1.0, 1.0


def over_box(function: Callable, box: np.ndarray) -> tuple[float, float]:
    """The integral of a NumPy function over a finite box of one to three dimensions, by product rules.

    Parameters
    ----------
    function : callable
        `function(x (d, n)) -> (n,)`.
    box : (d, 2) float64
        Edges of each dimension.

    Returns
    -------
    (integral, error) : float
        The error is the difference from the result with half as many panels along each axis; one dimension is
        integrated by `adaptive`.
    """
    if len(box) == 1:
        return adaptive(lambda x: function(x[None]), *box[0])
    n_panels = {2: 8, 3: 3}[len(box)]
    fine, rough = (_product(function, box, n) for n in (n_panels, n_panels // 2))
    return fine, abs(fine - rough)


def _product(function: Callable, box: np.ndarray, n_panels: int) -> float:
    nodes, weights = [], []
    for low, high in box:
        half = 0.5 * (high - low) / n_panels
        middle = low + half * (2.0 * np.arange(n_panels) + 1.0)
        nodes.append((middle[:, None] + half * _NODES).ravel())
        weights.append(half * np.tile(_WEIGHTS, n_panels))
    x = np.stack([axis.ravel() for axis in np.meshgrid(*nodes, indexing="ij")])
    with np.errstate(all="ignore"):
        return float(functools.reduce(np.multiply.outer, weights).ravel() @ function(x))


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
