"""Elementwise pieces that several densities share.

Nothing here loops, gathers or defines its own derivative, so that the expressions can be translated to scalar code.
"""

import math

import jax.numpy as jnp
from jax import Array

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
SQRT_2PI = math.sqrt(2.0 * math.pi)
SQRT_HALF = math.sqrt(0.5)
_HUGE = 1e30


def positive(value: Array | float) -> Array:
    """`value` where it is positive, NaN elsewhere: a wrong width must not become a quiet number."""
    return jnp.where(value > 0, value, jnp.nan)


def probability(p: Array | float) -> Array:
    """`p` where it lies in [0, 1], NaN elsewhere."""
    return jnp.where((p >= 0) & (p <= 1), p, jnp.nan)


def zero_or_nan(value: Array | float) -> Array:
    """NaN where `value` is NaN, 0 elsewhere: what a density is outside of its support."""
    return jnp.where(jnp.isnan(value), value, 0.0)


def clip(x: Array | float, lower: Array | float, upper: Array | float) -> Array:
    """`x` moved into [lower, upper]; NaN stays NaN, whatever `min` and `max` make of it elsewhere."""
    return jnp.where(x < lower, lower, jnp.where(x > upper, upper, x))


def finite(edge: Array | float) -> Array:
    """`edge`, or a very large number where it is infinite, whose derivatives would hold 0 * inf; NaN stays NaN."""
    return clip(edge, -_HUGE, _HUGE)


def log_complement(upper: Array, lower: Array) -> Array:
    """log(upper), where upper = 1 - lower was rounded, to full relative accuracy at small `lower`.

    ``log1p(-lower)`` does the same, but is wrong by up to 129 ulp near lower = 0.41 in float64 with XLA on the CPU. A
    compiler that reassociates 1 - upper costs the relative accuracy only; the absolute error stays eps.

    References
    ----------
    Goldberg, ACM Computing Surveys 23 (1991) 5, theorem 4.
    """
    rounded = 1.0 - upper
    tiny = rounded == 0
    return jnp.where(tiny, -lower, jnp.log(upper) * (lower / jnp.where(tiny, 1.0, rounded)))


def normal_quantile(lower: Array, upper: Array) -> Array:
    """Standard normal quantile from both of its tail probabilities.

    Solves Phi(z) = lower = 1 - upper. The smaller of the two is inverted, so a caller that knows both to full
    relative accuracy gets both tails to full accuracy.

    Parameters
    ----------
    lower, upper : Array
        Probabilities with lower + upper = 1 up to rounding.

    Returns
    -------
    Array, in standard deviations, good to about 4 eps. -inf and +inf where a tail is 0, NaN where one is negative.

    References
    ----------
    Wichura, Applied Statistics 37 (1988) 477, algorithm AS 241, routine PPND16.
    """
    q = 0.5 * (lower - upper)
    central = jnp.abs(q) <= 0.425
    tail = jnp.where(lower < upper, lower, upper)
    # each region sees a harmless argument where it is not selected
    q_central = jnp.where(central, q, 0.0)
    r = 0.180625 - q_central * q_central
    above, below = q_central * _horner(_CENTRAL_NUMERATOR, r), _horner(_CENTRAL_DENOMINATOR, r)

    r = jnp.sqrt(-jnp.log(jnp.where(central | (tail == 0), 0.05, tail)))
    near = r <= 5.0
    r_near = jnp.where(near, r, 1.6) - 1.6
    r_far = jnp.where(near, 5.0, r) - 5.0
    of_tail = jnp.where(near, _horner(_NEAR_NUMERATOR, r_near), _horner(_FAR_NUMERATOR, r_far))
    # one division for the three regions
    above = jnp.where(central, above, jnp.where(lower < upper, -of_tail, of_tail))
    of_tail = jnp.where(near, _horner(_NEAR_DENOMINATOR, r_near), _horner(_FAR_DENOMINATOR, r_far))
    z = above / jnp.where(central, below, of_tail)
    return jnp.where((tail == 0) & ~central, jnp.where(lower < upper, -jnp.inf, jnp.inf), z)


def _horner(coefficients: tuple[float, ...], x: Array) -> Array:
    """Polynomial with the highest power first, written out (jnp.polyval is a loop)."""
    total = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        total = total * x + coefficient
    return total


_CENTRAL_NUMERATOR = (
    2509.0809287301226727,
    33430.575583588128105,
    67265.770927008700853,
    45921.953931549871457,
    13731.693765509461125,
    1971.5909503065514427,
    133.14166789178437745,
    3.387132872796366608,
)
_CENTRAL_DENOMINATOR = (
    5226.495278852545925,
    28729.085735721942674,
    39307.89580009271061,
    21213.794301586595867,
    5394.1960214247511077,
    687.1870074920579083,
    42.313330701600911252,
    1.0,
)
_NEAR_NUMERATOR = (
    7.7454501427834140764e-4,
    0.0227238449892691845833,
    0.24178072517745061177,
    1.27045825245236838258,
    3.64784832476320460504,
    5.7694972214606914055,
    4.6303378461565452959,
    1.42343711074968357734,
)
_NEAR_DENOMINATOR = (
    1.05075007164441684324e-9,
    5.475938084995344946e-4,
    0.0151986665636164571966,
    0.14810397642748007459,
    0.68976733498510000455,
    1.6763848301838038494,
    2.05319162663775882187,
    1.0,
)
_FAR_NUMERATOR = (
    2.01033439929228813265e-7,
    2.71155556874348757815e-5,
    0.0012426609473880784386,
    0.026532189526576123093,
    0.29656057182850489123,
    1.7848265399172913358,
    5.4637849111641143699,
    6.6579046435011037772,
)
_FAR_DENOMINATOR = (
    2.04426310338993978564e-15,
    1.4215117583164458887e-7,
    1.8463183175100546818e-5,
    7.868691311456132591e-4,
    0.0148753612908506148525,
    0.13692988092273580531,
    0.59983220655588793769,
    1.0,
)
