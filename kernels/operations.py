"""The operations of a graph of scalars: in numba source, in JAX, from which derivatives come, and in NumPy."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import lax
from jax.scipy import special

__all__ = ["OPERATIONS", "Operation"]


class Operation(NamedTuple):
    """A text with places for the arguments, and functions of them."""

    text: str
    by_jax: Callable
    by_numpy: Callable


OPERATIONS = {
    "add": Operation("{0} + {1}", jnp.add, np.add),
    "sub": Operation("{0} - {1}", jnp.subtract, np.subtract),
    "mul": Operation("{0} * {1}", jnp.multiply, np.multiply),
    "neg": Operation("-{0}", jnp.negative, np.negative),
    "reciprocal": Operation("1.0 / {0}", lambda a: jnp.divide(1.0, a), lambda a: np.divide(1.0, a)),
    "abs": Operation("math.fabs({0})", jnp.abs, np.abs),
    "sign": Operation("({0} if {0} == 0.0 or {0} != {0} else math.copysign(1.0, {0}))", jnp.sign, np.sign),
    "exp": Operation("exp({0})", jnp.exp, np.exp),
    "exp2": Operation("exp({0} * 0.6931471805599453)", jnp.exp2, np.exp2),
    "log": Operation("log({0})", jnp.log, np.log),
    "log1p": Operation("log1p({0})", jnp.log1p, np.log1p),
    "expm1": Operation("expm1({0})", jnp.expm1, np.expm1),
    "sqrt": Operation("math.sqrt({0})", jnp.sqrt, np.sqrt),
    "rsqrt": Operation("1.0 / math.sqrt({0})", lax.rsqrt, lambda a: np.divide(1.0, np.sqrt(a))),
    "cbrt": Operation("cbrt({0})", jnp.cbrt, np.cbrt),
    "sin": Operation("sin({0})", jnp.sin, np.sin),
    "cos": Operation("cos({0})", jnp.cos, np.cos),
    "tan": Operation("tan({0})", jnp.tan, np.tan),
    "asin": Operation("asin({0})", jnp.arcsin, np.arcsin),
    "acos": Operation("acos({0})", jnp.arccos, np.arccos),
    "atan": Operation("atan({0})", jnp.arctan, np.arctan),
    "atan2": Operation("atan2({0}, {1})", jnp.arctan2, np.arctan2),
    "sinh": Operation("sinh({0})", jnp.sinh, np.sinh),
    "cosh": Operation("cosh({0})", jnp.cosh, np.cosh),
    "tanh": Operation("tanh({0})", jnp.tanh, np.tanh),
    "asinh": Operation("asinh({0})", jnp.arcsinh, np.arcsinh),
    "acosh": Operation("acosh({0})", jnp.arccosh, np.arccosh),
    "atanh": Operation("atanh({0})", jnp.arctanh, np.arctanh),
    "erf": Operation("erf({0})", special.erf, scipy.special.erf),
    "erfc": Operation("erfc({0})", special.erfc, scipy.special.erfc),
    "lgamma": Operation("lgamma({0})", special.gammaln, scipy.special.gammaln),
    "digamma": Operation("digamma({0})", special.digamma, scipy.special.digamma),
    "trigamma": Operation("trigamma({0})", lambda a: special.polygamma(1, a), lambda a: scipy.special.polygamma(1, a)),
    "floor": Operation("np.floor({0})", jnp.floor, np.floor),
    "ceil": Operation("np.ceil({0})", jnp.ceil, np.ceil),
    "pow": Operation("pow({0}, {1})", jnp.power, np.power),
    "rem": Operation("np.fmod({0}, {1})", lax.rem, np.fmod),
    # as in JAX, a NaN on either side comes through
    "max": Operation("({0} if {0} > {1} or {0} != {0} else {1})", jnp.maximum, np.maximum),
    "min": Operation("({0} if {0} < {1} or {0} != {0} else {1})", jnp.minimum, np.minimum),
    "lt": Operation("{0} < {1}", jnp.less, np.less),
    "le": Operation("{0} <= {1}", jnp.less_equal, np.less_equal),
    "gt": Operation("{0} > {1}", jnp.greater, np.greater),
    "ge": Operation("{0} >= {1}", jnp.greater_equal, np.greater_equal),
    "eq": Operation("{0} == {1}", jnp.equal, np.equal),
    "ne": Operation("{0} != {1}", jnp.not_equal, np.not_equal),
    "and": Operation("{0} & {1}", jnp.logical_and, np.logical_and),
    "or": Operation("{0} | {1}", jnp.logical_or, np.logical_or),
    "not": Operation("not {0}", jnp.logical_not, np.logical_not),
    "is_finite": Operation("math.isfinite({0})", jnp.isfinite, np.isfinite),
    "select": Operation("({1} if {0} else {2})", jnp.where, np.where),
    "same": Operation("{0}", lambda a: a, lambda a: a),
}
