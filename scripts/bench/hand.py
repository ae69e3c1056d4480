"""iminuit with likelihoods written by hand: value and gradient in one numba loop, as one would write them for speed."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
from bench.cases import KAON, Case
from iminuit import Minuit

from toys.models import XMAX, XMIN

__all__ = ["MinuitFit", "fit", "hand_minuit", "nll_of", "run_minuit"]

ROOT_2PI = math.sqrt(2.0 * math.pi)
#: MIGRAD's goal for the EDM is 0.002 times this, in units of errordef.
TOLERANCE = 5e-4
compiled = numba.njit(fastmath=True, error_model="numpy")


class MinuitFit(NamedTuple):
    """One fit by iminuit: values, MIGRAD's verdict, calls of the function and of its gradient."""

    values: Sequence[float]
    valid: bool
    nfcn: int
    ngrad: int


def run_minuit(minuit: Minuit, bounds: Sequence, strategy: int = 0, errors: bool = False) -> MinuitFit:
    minuit.print_level = 0
    minuit.strategy = strategy
    minuit.tol = TOLERANCE
    if any(bound != (None, None) for bound in bounds):
        minuit.limits = bounds
    minuit.migrad()
    if errors:
        minuit.hesse()
    return MinuitFit(tuple(minuit.values), bool(minuit.valid), minuit.nfcn, minuit.ngrad)


def hand_minuit(case: Case, k: int) -> Minuit:
    """Minuit of the hand-written value and gradient; a point that it asks for twice is computed once."""
    nll, toy = nll_of(case), case.toy(k)
    known, value, gradient = b"", 0.0, np.empty(len(case.theta))

    def at(theta: Any) -> None:
        nonlocal known, value, gradient
        point = theta.tobytes()
        if point != known:
            gradient = np.empty(len(theta))
            value = nll(toy, theta, gradient)
            known = point

    def function(theta: Any) -> float:
        at(theta)
        return value

    def derivative(theta: Any) -> Any:
        at(theta)
        return gradient

    minuit = Minuit(function, case.theta, grad=derivative)
    minuit.errordef = case.cost.errordef
    return minuit


def fit(case: Case, k: int, strategy: int = 0, errors: bool = False) -> MinuitFit:
    return run_minuit(hand_minuit(case, k), case.bounds, strategy, errors)


def nll_of(case: Case) -> Callable[[np.ndarray, np.ndarray, np.ndarray], float]:
    """`nll(toy, theta, gradient) -> value`, which fills the gradient, up to a constant of the toy."""
    if case.family == "peak":
        return peak_nll
    if case.family == "histogram":
        return functools.partial(histogram_nll, case.detail)
    if case.family == "templates":
        return functools.partial(templates_nll, *case.detail)
    if case.family == "convolution":
        return functools.partial(convolution_nll, *case.detail)
    x, _, error = case.data
    return functools.partial(line_chi2, x, 1.0 / error**2)


@compiled
def peak_nll(x, theta, gradient):
    """The extended NLL of the spectrum. With the densities s of the peak and b of the exponential,

        d/d ns = 1 - sum s / f,          d/d mu = -ns sum (s / f) (z / sigma - A_mu / A),     z = (x - mu) / sigma,
        d/d nb = 1 - sum b / f,       d/d sigma = -ns sum (s / f) ((z^2 - 1) / sigma - A_sigma / A),
        f = ns s + nb b,                d/d lam = -nb sum (b / f) (x / lam^2 - 1 / lam - B_lam / B),

    where A and B are the integrals of the Gaussian and of the exponential over the range.
    """
    ns, nb, mu, sigma, lam = theta
    low, high = (XMIN - mu) / sigma, (XMAX - mu) / sigma
    phi_low, phi_high = math.exp(-0.5 * low * low) / ROOT_2PI, math.exp(-0.5 * high * high) / ROOT_2PI
    peak = 0.5 * (math.erf(high / math.sqrt(2.0)) - math.erf(low / math.sqrt(2.0)))
    peak_mu = (phi_low - phi_high) / sigma
    peak_sigma = (low * phi_low - high * phi_high) / sigma
    exp_low, exp_high = math.exp(-XMIN / lam), math.exp(-XMAX / lam)
    tail = exp_low - exp_high
    tail_lam = (XMIN * exp_low - XMAX * exp_high) / (lam * lam)

    peak_height, tail_height = ns / (ROOT_2PI * sigma * peak), nb / (lam * tail)
    per_sigma, per_lam = 1.0 / sigma, -1.0 / lam
    logs = s_0 = s_1 = s_2 = b_1 = 0.0
    for i in range(len(x)):
        z = (x[i] - mu) * per_sigma
        s = peak_height * math.exp(-0.5 * z * z)
        b = tail_height * math.exp(x[i] * per_lam)
        f = s + b
        logs += math.log(f)
        per_f = 1.0 / f
        s *= per_f
        s_0 += s
        s_1 += s * z
        s_2 += s * z * z
        b_1 += b * per_f * x[i]
    b_0 = len(x) - s_0
    gradient[0] = 1.0 - s_0 / ns
    gradient[1] = 1.0 - b_0 / nb
    gradient[2] = -(s_1 / sigma - s_0 * peak_mu / peak)
    gradient[3] = -((s_2 - s_0) / sigma - s_0 * peak_sigma / peak)
    gradient[4] = -(b_1 / (lam * lam) - b_0 * (1.0 / lam + tail_lam / tail))
    return ns + nb - logs


@compiled
def histogram_nll(edges, n, theta, gradient):
    """The Poisson likelihood of the spectrum in bins: the probabilities of the peak and of the tail, and their slopes
    at each edge, from which those of a bin are differences."""
    ns, nb, mu, sigma, lam = theta
    low, high = (XMIN - mu) / sigma, (XMAX - mu) / sigma
    phi_low, phi_high = math.exp(-0.5 * low * low) / ROOT_2PI, math.exp(-0.5 * high * high) / ROOT_2PI
    start = 0.5 * math.erf(low / math.sqrt(2.0))
    peak = 0.5 * math.erf(high / math.sqrt(2.0)) - start
    peak_mu, peak_sigma = (phi_low - phi_high) / sigma, (low * phi_low - high * phi_high) / sigma
    exp_low, exp_high = math.exp(-XMIN / lam), math.exp(-XMAX / lam)
    tail = exp_low - exp_high
    tail_lam = (XMIN * exp_low - XMAX * exp_high) / (lam * lam)

    value = 0.0
    s_0 = s_mu = s_sigma = b_0 = b_lam = 0.0
    cdf, phi, z, fall, x = start, phi_low, low, exp_low, XMIN
    for i in range(len(n)):
        next_x = edges[i + 1]
        next_z, next_fall = (next_x - mu) / sigma, math.exp(-next_x / lam)
        next_cdf = 0.5 * math.erf(next_z / math.sqrt(2.0))
        next_phi = math.exp(-0.5 * next_z * next_z) / ROOT_2PI
        s, b = (next_cdf - cdf) / peak, (fall - next_fall) / tail
        nu = ns * s + nb * b
        value += nu - n[i] * math.log(nu)
        weight = 1.0 - n[i] / nu
        s_0 += weight * s
        b_0 += weight * b
        s_mu += weight * ((phi - next_phi) / sigma - s * peak_mu)
        s_sigma += weight * ((z * phi - next_z * next_phi) / sigma - s * peak_sigma)
        b_lam += weight * ((x * fall - next_x * next_fall) / (lam * lam) - b * tail_lam)
        cdf, phi, z, fall, x = next_cdf, next_phi, next_z, next_fall, next_x
    gradient[0], gradient[1] = s_0, b_0
    gradient[2], gradient[3], gradient[4] = ns * s_mu / peak, ns * s_sigma / peak, nb * b_lam / tail
    return value


@compiled
def templates_nll(signal, backgrounds, log_kappa, shapes, n, theta, gradient):
    """sum_k nu_k - n_k log nu_k + alpha^2 / 2 with nu = mu S + sum_b kappa_b^alpha (B_b + alpha D_b)."""
    n_backgrounds, n_bins = backgrounds.shape
    n_norm, n_shape = log_kappa.shape[1], shapes.shape[1]
    n_each = n_norm + n_shape
    events, scale = np.empty((n_backgrounds, n_bins)), np.empty(n_backgrounds)
    nu = theta[0] * signal
    for b in range(n_backgrounds):
        exponent = 0.0
        for j in range(n_norm):
            exponent += theta[1 + b * n_each + j] * log_kappa[b, j]
        scale[b] = math.exp(exponent)
        events[b] = backgrounds[b]
        for j in range(n_shape):
            alpha = theta[1 + b * n_each + n_norm + j]
            for k in range(n_bins):
                events[b, k] += alpha * shapes[b, j, k]
        for k in range(n_bins):
            nu[k] += scale[b] * events[b, k]
    value, weight = 0.0, np.empty(n_bins)
    gradient[0] = 0.0
    for k in range(n_bins):
        value += nu[k] - n[k] * math.log(nu[k])
        weight[k] = 1.0 - n[k] / nu[k]
        gradient[0] += weight[k] * signal[k]
    for b in range(n_backgrounds):
        slope = 0.0
        for k in range(n_bins):
            slope += weight[k] * events[b, k]
        for j in range(n_norm):
            gradient[1 + b * n_each + j] = scale[b] * slope * log_kappa[b, j]
        for j in range(n_shape):
            slope = 0.0
            for k in range(n_bins):
                slope += weight[k] * shapes[b, j, k]
            gradient[1 + b * n_each + n_norm + j] = scale[b] * slope
    for i in range(1, len(theta)):
        value += 0.5 * theta[i] * theta[i]
        gradient[i] += theta[i]
    return value


@compiled
def smeared(nodes, weights, x, mass, width, resolution):
    """sum_j w_j B(x + s u_j) and its derivatives by the three parameters, with

    B = m M G / D,  G = Gamma (q / q_M)^(3/2) M / m,  D = (M^2 - m^2)^2 + M^2 G^2,  q = m^2 / 4 - m_K^2.
    """
    value = by_mass = by_width = by_resolution = 0.0
    q_mass = 0.25 * mass * mass - KAON * KAON
    for j in range(len(nodes)):
        m = x + resolution * nodes[j]
        q = 0.25 * m * m - KAON * KAON
        running = width * (q / q_mass) * math.sqrt(q / q_mass) * mass / m
        off = mass * mass - m * m
        per_d = 1.0 / (off * off + mass * mass * running * running)
        b = weights[j] * m * mass * running * per_d
        log_running = 1.0 - 2.0 * mass * mass * running * running * per_d  # d log B / d log G
        value += b
        by_width += b * log_running / width
        running_by_mass = 1.0 / mass - 0.75 * mass / q_mass
        by_mass += b * (1.0 / mass - (4.0 * mass * off + 2.0 * mass * running * running) * per_d)
        by_mass += b * log_running * running_by_mass
        by_m = 1.0 / m + 4.0 * m * off * per_d + log_running * (0.75 * m / q - 1.0 / m)
        by_resolution += b * by_m * nodes[j]
    return value, by_mass, by_width, by_resolution


@compiled
def convolution_nll(nodes, weights, points, point_weights, x, theta, gradient):
    """n log of the integral, less the logarithms of the densities."""
    mass, width, resolution = theta
    norm = n_0 = n_1 = n_2 = 0.0
    for k in range(len(points)):
        value, by_mass, by_width, by_resolution = smeared(nodes, weights, points[k], mass, width, resolution)
        norm += point_weights[k] * value
        n_0 += point_weights[k] * by_mass
        n_1 += point_weights[k] * by_width
        n_2 += point_weights[k] * by_resolution
    logs = s_0 = s_1 = s_2 = 0.0
    for i in range(len(x)):
        value, by_mass, by_width, by_resolution = smeared(nodes, weights, x[i], mass, width, resolution)
        logs += math.log(value)
        per_value = 1.0 / value
        s_0 += by_mass * per_value
        s_1 += by_width * per_value
        s_2 += by_resolution * per_value
    gradient[0] = len(x) * n_0 / norm - s_0
    gradient[1] = len(x) * n_1 / norm - s_1
    gradient[2] = len(x) * n_2 / norm - s_2
    return len(x) * math.log(norm) - logs


@compiled
def line_chi2(x, weights, y, theta, gradient):
    """sum_i w_i (y_i - a - b x_i)^2."""
    a, b = theta
    value = slope_a = slope_b = 0.0
    for i in range(len(x)):
        residual = y[i] - a - b * x[i]
        value += weights[i] * residual * residual
        slope_a -= 2.0 * weights[i] * residual
        slope_b -= 2.0 * weights[i] * residual * x[i]
    gradient[0], gradient[1] = slope_a, slope_b
    return value
