"""What there is to know of JAX's programs in order to read them, whatever they are made into."""

from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from kernels.operations import OPERATIONS

__all__ = ["CALLS", "ELEMENTWISE", "ON_ELEMENTS", "UNCHANGED", "at_the_line_of", "scan_layout", "where"]

# Primitive -> operation, for those that act on each element alone; an operation that JAX does not know is never met.
ELEMENTWISE = {op: op for op in OPERATIONS} | {"add_any": "add", "div": "div"}
# Others that act on each element alone.
ON_ELEMENTS = {"integer_pow", "square", "logistic", "select_n", "clamp", "convert_element_type", "one_minus_square"}
UNCHANGED = {"copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision"}
# Primitive -> the parameter that holds what it calls.
CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr"}
CALLS |= {"custom_vjp_call": "call_jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr", "core_call": "call_jaxpr"}


# a density of ours that a model calls is no line of the user's
with suppress(ImportError, AttributeError):  # a private module of JAX: it may move
    from jax._src import source_info_util

    source_info_util.register_exclusion(str(Path(__file__).parent))


def where(*eqns: Any) -> str:
    """' at file:line' of the user's own code, as far as JAX knows it: of the first equation that has one.

    The inside of a function of JAX has no line of the user; the call that surrounds it has.
    """
    try:
        from jax._src import source_info_util

        places = [source_info_util.summarize(eqn.source_info) for eqn in eqns]
    except (ImportError, AttributeError, TypeError):  # a private module of JAX: it may move
        return ""
    return next((f" at {place}" for place in places if place), "")


def at_the_line_of(eqn: Any) -> AbstractContextManager:
    """What is traced within this comes from the user's line of the equation, as far as JAX knows it."""
    try:
        from jax._src import source_info_util

        return source_info_util.user_context(eqn.source_info.traceback)
    except (ImportError, AttributeError, TypeError):
        return nullcontext()


def scan_layout(eqn: Any) -> tuple[int, int]:
    """(number of constants, number of carried values) of a scan; JAX has told them in different ways.

    What is scanned over, and what is stacked, has one axis more outside of the body.
    """
    body = eqn.params["jaxpr"]
    longer = lambda outside, inside: len(outside.aval.shape) > len(inside.shape)  # noqa: E731
    n_scanned = sum(map(longer, eqn.invars, body.in_avals))
    n_stacked = sum(map(longer, eqn.outvars, body.out_avals))
    n_carry = len(eqn.outvars) - n_stacked
    return len(eqn.invars) - n_scanned - n_carry, n_carry
