"""The densities as their textbooks write them, for complex arguments, so that derivatives can be read off circles."""

import numpy as np
import scipy.special

SQRT2 = np.sqrt(2.0)
ERF = scipy.special.erf


NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def gauss(f, lower, upper):
    half = 0.5 * (upper - lower)
    return half * np.sum(WEIGHTS * f(lower + half * (1.0 + NODES)))


def crystalball_shape(z, beta, m):
    if np.real(z) >= -np.real(beta):
        return np.exp(-0.5 * z * z)
    return (m / beta) ** m * np.exp(-0.5 * beta**2) * (m / beta - beta - z) ** -m


def crystalball_integral(z, beta, m):
    """From -inf to z."""
    edge = z if np.real(z) < -np.real(beta) else -beta
    below = (m / beta) ** m * np.exp(-0.5 * beta**2) * (m / beta - beta - edge) ** (1 - m) / (m - 1)
    return below + np.sqrt(np.pi / 2) * (ERF(z / SQRT2) - ERF(edge / SQRT2))


def kummer(a, s):
    """int_0^1 u^(a - 1) exp(-s u) du, as a series without cancellation."""
    term, total = 1.0 / a, 1.0 / a
    for k in range(1, 80):
        term = term * s / (a + k)
        total = total + term
    return np.exp(-s) * total


def q_exponential_log(x, q, mu, sigma):
    gamma = scipy.special.loggamma
    log_c = 0.5 * np.log(np.pi / (q - 1)) + gamma((3 - q) / (2 * (q - 1))) - gamma(1 / (q - 1))
    return -np.log(1 + (q - 1) * (x - mu) ** 2 / (2 * sigma**2)) / (q - 1) - log_c - np.log(SQRT2 * sigma)


def cruijff_shape(x, beta_left, beta_right, loc, scale_left, scale_right, left):
    z, beta = ((x - loc) / scale_left, beta_left) if left else ((x - loc) / scale_right, beta_right)
    return np.exp(-0.5 * z**2 / (1 + beta * z**2))


def cruijff_integral(lower, upper, theta):
    return gauss(lambda x: cruijff_shape(x, *theta, np.real(upper) <= np.real(theta[2])), lower, upper)


def t_log(x, df, loc, scale):
    gamma = scipy.special.loggamma
    z = (x - loc) / scale
    norm = gamma((df + 1) / 2) - gamma(df / 2) - 0.5 * np.log(df * np.pi) - np.log(scale)
    return norm - (df + 1) / 2 * np.log(1 + z * z / df)


def textbook_logpdf(name, x, *theta):
    if name.startswith("trunc"):
        base = name.removeprefix("trunc")
        xmin, xmax, *theta = theta
        mass = textbook_cdf(base, xmax, *theta) - textbook_cdf(base, xmin, *theta)
        return textbook_logpdf(base, x, *theta) - np.log(mass)
    match name.split(",")[0]:
        case "cauchy":
            loc, scale = theta
            return -np.log(np.pi * scale * (1 + ((x - loc) / scale) ** 2))
        case "lognorm":
            s, loc, scale = theta
            z = (x - loc) / scale
            return -0.5 * (np.log(z) / s) ** 2 - np.log(z * s * scale * np.sqrt(2 * np.pi))
        case "crystalball":
            beta, m, loc, scale = theta
            whole = crystalball_integral(-beta, beta, m) + np.sqrt(np.pi / 2) * (1 + ERF(beta / SQRT2))
            return np.log(crystalball_shape((x - loc) / scale, beta, m) / (scale * whole))
        case "crystalball_ex":
            *_, loc = theta
            left, right = theta[:3], theta[3:6]
            whole = sum(scale * crystalball_integral(0.0 * beta, beta, m) for beta, m, scale in (left, right))
            beta, m, scale = left if np.real(x) < np.real(loc) else right
            z = (x - loc) / scale if np.real(x) < np.real(loc) else (loc - x) / scale
            return np.log(crystalball_shape(z, beta, m) / whole)
        case "t":
            return t_log(x, *theta)
        case "qgaussian":
            return q_exponential_log(x, *theta)
        case "voigt":
            gamma, loc, scale = theta
            # the real part of w, as an analytic function of both of its arguments
            a, b = (x - loc) / (SQRT2 * scale), 1j * gamma / (SQRT2 * scale)
            real = 0.5 * (scipy.special.wofz(a + b) + scipy.special.wofz(b - a))
            return np.log(real / (scale * np.sqrt(2 * np.pi)))
        case "argus":
            chi, c, p = theta
            y = 1 - (x / c) ** 2
            return np.log(2 * x / c**2) + p * np.log(y) - chi**2 / 2 * y - np.log(kummer(p + 1, chi**2 / 2))
        case "cruijff":
            xmin, xmax, *shape = theta
            mass = cruijff_integral(xmin, shape[2], shape) + cruijff_integral(shape[2], xmax, shape)
            return np.log(cruijff_shape(x, *shape, np.real(x) < np.real(shape[2])) / mass)
    raise KeyError(name)


def textbook_cdf(name, x, *theta):
    if name.startswith("trunc"):
        base = name.removeprefix("trunc")
        xmin, xmax, *theta = theta
        below = textbook_cdf(base, xmin, *theta)
        return (textbook_cdf(base, x, *theta) - below) / (textbook_cdf(base, xmax, *theta) - below)
    match name.split(",")[0]:
        case "cauchy":
            loc, scale = theta
            return 0.5 + np.arctan((x - loc) / scale) / np.pi
        case "lognorm":
            s, loc, scale = theta
            return 0.5 * scipy.special.erfc(-np.log((x - loc) / scale) / (s * SQRT2))
        case "crystalball":
            beta, m, loc, scale = theta
            whole = crystalball_integral(-beta, beta, m) + np.sqrt(np.pi / 2) * (1 + ERF(beta / SQRT2))
            return crystalball_integral((x - loc) / scale, beta, m) / whole
        case "crystalball_ex":
            *_, loc = theta
            left, right = theta[:3], theta[3:6]
            halves = [scale * crystalball_integral(0.0 * beta, beta, m) for beta, m, scale in (left, right)]
            if np.real(x) < np.real(loc):
                return left[2] * crystalball_integral((x - loc) / left[2], *left[:2]) / sum(halves)
            return 1 - right[2] * crystalball_integral((loc - x) / right[2], *right[:2]) / sum(halves)
        case "t":
            return 0.5 + gauss(lambda u: np.exp(t_log(u, *theta)), theta[1], x)
        case "qgaussian":
            return 0.5 + gauss(lambda u: np.exp(q_exponential_log(u, *theta)), theta[1], x)
        case "argus":
            chi, c, p = theta
            y = 1 - (x / c) ** 2
            return 1 - y ** (p + 1) * kummer(p + 1, chi**2 / 2 * y) / kummer(p + 1, chi**2 / 2)
        case "cruijff":
            xmin, xmax, *shape = theta
            left, right = cruijff_integral(xmin, shape[2], shape), cruijff_integral(shape[2], xmax, shape)
            if np.real(x) < np.real(shape[2]):
                return cruijff_integral(xmin, x, shape) / (left + right)
            return (left + cruijff_integral(shape[2], x, shape)) / (left + right)
    raise KeyError(name)
