"""Functions that bring a rule of differentiation of their own, which the derivatives of a graph must follow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.derivatives import value_gradient_hessian
from kernels.jaxprs import CALLS, ELEMENTWISE, ON_ELEMENTS, UNCHANGED
from kernels.nodes import Partials, UntranslatableError

__all__ = ["OWN_RULE", "with_own_rule"]

OWN_RULE = {"custom_jvp_call", "custom_vjp_call", "stop_gradient"}
# Such a function may have so many arguments.
MAX_OWN_RULE = 12


def with_own_rule(plain: Any, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a function that must not be differentiated as it stands, with their derivatives by JAX.

    `plain` interprets equations as if nothing were differentiated (see `kernels.graph`).
    """
    graph = plain.graph
    values = [np.asarray(o) for o in plain.equation(eqn, args)]
    depends = [k for k, a in enumerate(args) if any(graph.support(int(n)) for n in a.ravel())]
    if not depends:
        return values
    if eqn.primitive.name == "stop_gradient":
        none = Partials({}, {})
        keep = lambda n: graph.with_partials(int(n), none) if graph.support(int(n)) else int(n)  # noqa: E731
        return [plain.elementwise(keep, *values)]
    shape = values[0].shape
    # along these directions in the space of the arguments the function is differentiated
    directions: list[tuple[int, tuple | None]]
    if _acts_on_elements(eqn.params["call_jaxpr"].jaxpr, shape):
        directions = [(k, None) for k in depends]
    else:
        directions = [(k, place) for k in depends for place in np.ndindex(args[k].shape)]
    if len(directions) > MAX_OWN_RULE:
        raise UntranslatableError(
            f"derivatives of a function with a rule of its own by {len(directions)} arguments, more than "
            f"{MAX_OWN_RULE}{plain.where()}"
        )

    def moved(*shifts_and_inputs: Any) -> Any:
        inputs = list(shifts_and_inputs[len(directions) :])
        for (k, place), shift in zip(directions, shifts_and_inputs, strict=False):
            along = np.ones(args[k].shape)
            if place is not None:
                along = np.zeros(args[k].shape)
                along[place] = 1.0
            inputs[k] = inputs[k] + shift * along
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
        return jnp.concatenate([jnp.ravel(output) for output in outputs])

    structs = [jax.ShapeDtypeStruct((), np.float64)] * len(directions)
    structs += [jax.ShapeDtypeStruct(a.shape, v.aval.dtype) for a, v in zip(args, eqn.invars, strict=True)]
    closed = jax.make_jaxpr(value_gradient_hessian(moved, len(directions)))(*structs)
    zeros = [np.array(graph.const(0.0))] * len(directions)
    derivatives = plain.run(closed.jaxpr, closed.consts, [*zeros, *args])[1:]
    results, position = [], 0
    for value in values:
        each = []
        for place, number in zip(np.ndindex(value.shape), value.ravel(), strict=True):
            arguments = [
                int(np.broadcast_to(args[k], shape)[place] if where is None else args[k][where])
                for k, where in directions
            ]
            partials = Partials.of(graph, arguments, [int(d[position]) for d in derivatives])
            each.append(graph.with_partials(int(number), partials))
            position += 1
        results.append(np.array(each, dtype=np.int64).reshape(value.shape))
    return results


def _acts_on_elements(jaxpr: Any, shape: tuple[int, ...]) -> bool:
    """Whether each element of the outputs, which have this shape, comes from the same element of the inputs."""
    for eqn in jaxpr.eqns:
        name, shapes = eqn.primitive.name, {v.aval.shape for v in (*eqn.invars, *eqn.outvars)}
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            alike = _acts_on_elements(getattr(inner, "jaxpr", inner), shape)
        else:
            alike = name in ELEMENTWISE or name in UNCHANGED or name in ON_ELEMENTS
            alike |= name == "broadcast_in_dim" and not eqn.invars[0].aval.shape
        if not alike or not shapes <= {(), shape}:
            return False
    return {v.aval.shape for v in jaxpr.outvars} == {shape}
