"""Programs of JAX with complex numbers, as amplitudes have them, as programs of real numbers: pairs of two.

For what has no rule here, such as a loop that carries complex numbers, there is no translation, and JAX fits the model.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from kernels.jaxprs import CALLS, at_the_line_of, where
from kernels.nodes import UntranslatableError

__all__ = ["real_program"]

# Primitives that do the same to both parts of their first argument
_OF_PARTS = {"broadcast_in_dim", "reshape", "transpose", "slice", "squeeze", "expand_dims", "rev", "reduce_sum", "copy",
          "copy_p", "stop_gradient", "gather", "dynamic_slice", "cumsum", "split", "unstack"}  # fmt: skip


class _Pair(NamedTuple):
    """Real and imaginary part; None is a zero, of which nothing is computed."""

    real: Any
    imag: Any


def real_program(function: Callable, *arguments: Any) -> Any:
    """`jax.make_jaxpr` of a function at real arguments, without complex numbers.

    Raises
    ------
    UntranslatableError
        If an operation on complex numbers has no rule, or a result is complex.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    if not _is_complex(closed):
        return closed
    if any(_kind(v) == "c" for v in closed.jaxpr.outvars):
        raise UntranslatableError("a result that is complex")
    return jax.make_jaxpr(functools.partial(_run, closed.jaxpr, closed.consts))(*arguments)


def _is_complex(closed: Any) -> bool:
    """Whether a program has a complex number anywhere."""
    jaxpr = getattr(closed, "jaxpr", closed)
    variables = [*jaxpr.constvars, *jaxpr.invars, *(v for eqn in jaxpr.eqns for v in (*eqn.invars, *eqn.outvars))]
    if any(_kind(v) == "c" for v in variables):
        return True
    return any(map(_is_complex_inside, jaxpr.eqns))


def _is_complex_inside(eqn: Any) -> bool:
    """Whether what an equation calls has one."""
    is_program = lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")  # noqa: E731
    return any(_is_complex(p) for p in jax.tree.leaves(eqn.params, is_leaf=is_program) if is_program(p))


def _kind(variable: Any) -> str:
    return getattr(getattr(variable.aval, "dtype", None), "kind", "")


def _run(jaxpr: Any, consts: Sequence, *arguments: Any) -> list[Any]:
    env: dict = dict(zip(jaxpr.constvars, map(_split, consts), strict=True))
    env |= zip(jaxpr.invars, arguments, strict=True)
    read = lambda atom: _split(atom.val) if isinstance(atom, jex_core.Literal) else env[atom]  # noqa: E731
    for eqn in jaxpr.eqns:
        with at_the_line_of(eqn):
            env |= zip(eqn.outvars, _equation(eqn, [read(atom) for atom in eqn.invars]), strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _split(value: Any) -> Any:
    if np.asarray(value).dtype.kind != "c":
        return value
    return _Pair(*(part if np.any(part) else None for part in (np.real(value), np.imag(value))))


def _equation(eqn: Any, args: list[Any]) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if not any(_kind(v) == "c" for v in (*eqn.invars, *eqn.outvars)) and not _is_complex_inside(eqn):
        outputs = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(params))
        return list(outputs) if eqn.primitive.multiple_results else [outputs]
    if name in CALLS:
        inner = params[CALLS[name]]
        return _run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), *args)
    if name in _OF_PARTS:
        parts = [None if a is None else eqn.primitive.bind(a, *args[1:], **params) for a in args[0]]
        if not eqn.primitive.multiple_results:
            return [_Pair(*parts)]
        return [_Pair(*each) for each in zip(*(p or [None] * len(eqn.outvars) for p in parts), strict=True)]
    rule = _RULES.get(name)
    if rule is None:
        raise UntranslatableError(f"no form of the operation '{name}' on complex numbers{where(eqn)}")
    result, shape = rule(eqn, *args), eqn.outvars[0].aval.shape
    # a part may come from a constant alone, which JAX has not broadcast
    whole = lambda a: a if a is None or jnp.shape(a) == shape else jnp.broadcast_to(a, shape)  # noqa: E731
    return [_Pair(*map(whole, result)) if isinstance(result, _Pair) else whole(result)]


def _zero(eqn: Any) -> Any:
    return jnp.zeros(eqn.outvars[0].aval.shape, np.float64)


def _plus(x: Any, y: Any) -> Any:
    return y if x is None else x if y is None else x + y


def _minus(x: Any) -> Any:
    return None if x is None else -x


def _times(x: Any, y: Any) -> Any:
    return None if x is None or y is None else x * y


def _over(x: Any, y: Any) -> Any:
    return None if x is None else x / y


def _sum(eqn: Any, a: _Pair, b: _Pair) -> _Pair:
    return _Pair(_plus(a.real, b.real), _plus(a.imag, b.imag))


def _negative(eqn: Any, a: _Pair) -> _Pair:
    return _Pair(_minus(a.real), _minus(a.imag))


def _conjugate(eqn: Any, a: _Pair) -> _Pair:
    return _Pair(a.real, _minus(a.imag))


def _product(eqn: Any, a: _Pair, b: _Pair, times: Callable = _times) -> _Pair:
    real = _plus(times(a.real, b.real), _minus(times(a.imag, b.imag)))
    return _Pair(real, _plus(times(a.real, b.imag), times(a.imag, b.real)))


def _square_of_modulus(eqn: Any, a: _Pair) -> Any:
    square = _plus(_times(a.real, a.real), _times(a.imag, a.imag))
    return _zero(eqn) if square is None else square


def _modulus(eqn: Any, a: _Pair) -> Any:
    parts = [part for part in a if part is not None]
    return jnp.abs(parts[0]) if len(parts) == 1 else jnp.sqrt(_square_of_modulus(eqn, a))


def _quotient(eqn: Any, a: _Pair, b: _Pair) -> _Pair:
    if b.imag is None:
        return _Pair(_over(a.real, _real(eqn, b)), _over(a.imag, _real(eqn, b)))
    above, below = _product(eqn, a, _conjugate(eqn, b)), _square_of_modulus(eqn, b)
    return _Pair(_over(above.real, below), _over(above.imag, below))


def _exponential(eqn: Any, a: _Pair) -> _Pair:
    size = _zero(eqn) + 1.0 if a.real is None else jnp.exp(a.real)
    return _Pair(size, None) if a.imag is None else _Pair(size * jnp.cos(a.imag), size * jnp.sin(a.imag))


def _logarithm(eqn: Any, a: _Pair) -> _Pair:
    real, imag = (_zero(eqn) if part is None else part for part in a)
    return _Pair(0.5 * jnp.log(_square_of_modulus(eqn, a)), jnp.arctan2(imag, real))


def _root(eqn: Any, a: _Pair) -> _Pair:
    """The root whose real part is not negative; the smaller part comes from the larger, or it would lose digits."""
    real, imag = (_zero(eqn) if part is None else part for part in a)
    larger = jnp.sqrt(0.5 * (jnp.sqrt(real * real + imag * imag) + jnp.abs(real)))
    smaller = 0.5 * imag / jnp.where(larger > 0.0, larger, 1.0)
    along, sign = real >= 0.0, jnp.where(imag < 0.0, -1.0, 1.0)
    return _Pair(jnp.where(along, larger, jnp.abs(smaller)), jnp.where(along, smaller, sign * larger))


def _power(eqn: Any, a: _Pair) -> _Pair:
    n = eqn.params.get("y", 2)  # of "square" there is none
    one = _Pair(_zero(eqn) + 1.0, None)
    power = functools.reduce(functools.partial(_product, eqn), [a] * abs(n)) if n else one
    return power if n >= 0 else _quotient(eqn, one, power)


def _sign(eqn: Any, a: _Pair) -> _Pair:
    size = _modulus(eqn, a)
    size = jnp.where(size == 0.0, 1.0, size)
    return _Pair(_over(a.real, size), _over(a.imag, size))


def _chosen(eqn: Any, which: Any, *cases: _Pair) -> _Pair:
    choose = lambda each: jax.lax.select_n(which, *(_zero(eqn) if x is None else x for x in each))  # noqa: E731
    return _Pair(choose([case.real for case in cases]), choose([case.imag for case in cases]))


def _converted(eqn: Any, a: Any) -> Any:
    if not isinstance(a, _Pair):
        return _Pair(jnp.asarray(a, np.float64), None)
    return a if _kind(eqn.outvars[0]) == "c" else _real(eqn, a).astype(eqn.params["new_dtype"])


def _dot(eqn: Any, a: _Pair, b: _Pair) -> _Pair:
    dims = eqn.params["dimension_numbers"]
    dot = lambda x, y: None if x is None or y is None else jax.lax.dot_general(x, y, dims)  # noqa: E731
    return _product(eqn, a, b, dot)


def _joined(eqn: Any, *parts: _Pair) -> _Pair:
    def join(each: list) -> Any:
        filled = [jnp.zeros(v.aval.shape) if x is None else x for v, x in zip(eqn.invars, each, strict=True)]
        return eqn.primitive.bind(*filled, **eqn.params)

    return _Pair(join([part.real for part in parts]), join([part.imag for part in parts]))


def _equal(eqn: Any, a: _Pair, b: _Pair) -> Any:
    return (_real(eqn, a) == _real(eqn, b)) & (_imag(eqn, a) == _imag(eqn, b))


def _real(eqn: Any, a: _Pair) -> Any:
    return _zero(eqn) if a.real is None else a.real


def _imag(eqn: Any, a: _Pair) -> Any:
    return _zero(eqn) if a.imag is None else a.imag


# primitive -> rule(equation, *arguments)
_RULES: dict[str, Callable] = {
    "abs": _modulus,
    "add": _sum,
    "add_any": _sum,
    "complex": lambda eqn, real, imag: _Pair(real, imag),
    "concatenate": _joined,
    "conj": _conjugate,
    "convert_element_type": _converted,
    "div": _quotient,
    "dot_general": _dot,
    "eq": _equal,
    "exp": _exponential,
    "imag": _imag,
    "integer_pow": _power,
    "log": _logarithm,
    "mul": _product,
    "ne": lambda eqn, a, b: ~_equal(eqn, a, b),
    "neg": _negative,
    "real": _real,
    "select_n": _chosen,
    "sign": _sign,
    "sqrt": _root,
    "stack": _joined,
    "square": _power,
    "sub": lambda eqn, a, b: _sum(eqn, a, _negative(eqn, b)),
}
