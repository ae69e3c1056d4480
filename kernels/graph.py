"""A JAX function as a graph of scalar operations.

`trace` runs a function of scalars through JAX and rewrites its jaxpr as a list of scalar operations in which
every expression stands once. Small fixed-size arrays inside the function disappear: an array becomes the
array of its elements' node numbers, and operations that only move elements are carried out on those numbers
by JAX itself, while the graph is built.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from kernels.complexes import real_program
from kernels.jaxprs import CALLS, ELEMENTWISE, UNCHANGED, scan_layout, where
from kernels.nodes import Graph, UntranslatableError
from kernels.own_rules import OWN_RULE, with_own_rule

__all__ = ["interpret", "trace"]

# Primitives that only move elements: JAX carries them out on arrays of node numbers.
_MOVEMENT = {"reshape", "broadcast_in_dim", "squeeze", "transpose", "slice", "concatenate", "rev", "expand_dims"}
_MOVEMENT |= {"stack", "unstack", "split", "pad", "tile"}
# Those among them that take indices, and which arguments these are.
_INDICES = {"dynamic_slice": slice(1, None), "gather": slice(1, 2)}
_INDICES |= {"dynamic_update_slice": slice(2, None), "scatter": slice(1, 2)}
_REDUCTIONS = {"reduce_sum": "add", "reduce_prod": "mul", "reduce_max": "max", "reduce_min": "min"}
_REDUCTIONS |= {"reduce_and": "and", "reduce_or": "or"}
# Operations on integers that mean something else on floating-point numbers.
_NOT_ON_INTEGERS = {"div", "rem", "pow", "not", "and", "or"}
# Those that are carried out at once on constant integers, which may be indices.
_FOLDED_ON_INTEGERS = _NOT_ON_INTEGERS | {"sign", "max", "min", "clamp", "reduce_max", "reduce_min"}
# What JAX calls by names of its own.
_TOLD = dict.fromkeys(("lt_to", "le_to"), "a search, as in jnp.interp, at a value that depends on a parameter")
_CONTROL = {"while"}  # never carried out, not even on constants
# A loop of more turns is not written out.
MAX_TURNS = 256
# A larger matrix is not factorised in scalars.
MAX_MATRIX = 6


class _Interpreter:
    """Runs a jaxpr on arrays of node numbers."""

    def __init__(self, graph: Graph, derivatives: bool = False, origin: tuple = ()) -> None:
        self.graph = graph
        self.derivatives = derivatives  # whether the result will be differentiated
        self.origin = origin  # of what is interpreted, where this is the derivative of an operation
        self.within: list = []  # the equations that the present one is part of, such as calls
        self.in_whole = False

    def run(self, jaxpr: Any, consts: Sequence, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        env: dict = {}

        def read(atom: Any) -> np.ndarray:
            return self.constants(atom.val) if isinstance(atom, jex_core.Literal) else env[atom]

        env.update(zip(jaxpr.constvars, map(self.constants, consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            taken = [read(atom) for atom in eqn.invars]
            # of what is of the data alone, the whole is taken as it is where a part has no scalar form
            whole = not self.in_whole and self.graph.takes_opaque(eqn, taken)
            self.in_whole |= whole
            self.within.append(eqn)
            try:
                outputs = self.equation(eqn, taken)
            except UntranslatableError:
                if not whole:
                    raise
                outputs = self.graph.add_opaque(eqn, taken)
            finally:
                self.within.pop()
                self.in_whole &= not whole
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def constants(self, values: Any) -> np.ndarray:
        array = np.asarray(values)
        self.graph.holds_float32 |= array.dtype == np.float32 and not np.all(array == np.round(array))
        return self.elementwise(self.graph.const, array)

    @staticmethod
    def elementwise(function: Callable, *arrays: np.ndarray) -> np.ndarray:
        broadcast = np.broadcast_arrays(*arrays)
        flat = [function(*elements) for elements in zip(*(b.ravel() for b in broadcast), strict=True)]
        return np.array(flat, dtype=np.int64).reshape(broadcast[0].shape)

    def equation(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        name, params, graph = eqn.primitive.name, eqn.params, self.graph
        on_integers = name in _FOLDED_ON_INTEGERS and eqn.outvars[0].aval.dtype.kind in "iu"
        if on_integers and (name in _NOT_ON_INTEGERS or all(self.known(a) is not None for a in args)):
            return self.folded(eqn, args)
        if name in ELEMENTWISE:
            op = ELEMENTWISE[name]
            result = self.elementwise(lambda *a: graph.apply(op, *(int(x) for x in a)), *args)
            for number in result.ravel():
                graph.origins.setdefault(int(number), self.origin or tuple(self.within))
            return [result]
        if self.derivatives and name in OWN_RULE:
            plain = _Interpreter(graph, origin=self.origin)
            plain.within = [*self.within]
            return with_own_rule(plain, eqn, args)
        if name in CALLS:
            inner = params[CALLS[name]]
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), args)
        if name in UNCHANGED:
            return args
        if name in _MOVEMENT or name in _INDICES:
            return self.move(eqn, args)
        if name in _REDUCTIONS:
            self.check_reduction(eqn, args[0])
            return [self.reduce(_REDUCTIONS[name], args[0], params["axes"])]
        method = getattr(self, f"do_{name}", None)
        return self.folded(eqn, args) if method is None else method(eqn, *args)

    def folded(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs of an equation that has no scalar form, where all that it takes is constant."""
        name, known = eqn.primitive.name, [self.known(numbers) for numbers in args]
        if any(values is None for values in known) or name in _CONTROL:
            on = " on integers" if name in _NOT_ON_INTEGERS else ""
            what = _TOLD.get(name, f"the operation '{name}'")
            raise UntranslatableError(f"no scalar form of {what}{on}{self.where()}")
        inputs = [np.asarray(v, dtype=atom.aval.dtype) for v, atom in zip(known, eqn.invars, strict=True)]
        with jax.ensure_compile_time_eval():
            outputs = eqn.primitive.bind(*inputs, **eqn.params)
        outputs = outputs if eqn.primitive.multiple_results else [outputs]
        return [self.elementwise(self.graph.const, np.asarray(output)) for output in outputs]

    def known(self, numbers: np.ndarray) -> np.ndarray | None:
        """The values of constant nodes, None if any is not constant."""
        values = [self.graph.value(int(n)) for n in numbers.ravel()]
        return None if any(v is None for v in values) else np.array(values).reshape(numbers.shape)

    def move(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        name, moved, params = eqn.primitive.name, list(args), dict(eqn.params)
        for k in range(len(args))[_INDICES.get(name, slice(0))]:
            indices = self.known(args[k])
            if indices is None:
                raise UntranslatableError(f"an index that depends on a parameter or on the row{self.where()}")
            moved[k] = indices.astype(np.int32)
        self.check_index(eqn, args, moved)
        if name == "gather":  # what lies outside is a node as well
            fill = params["fill_value"]
            params["fill_value"] = self.graph.const(math.nan if fill is None else fill)
        with jax.ensure_compile_time_eval():
            outputs = eqn.primitive.bind(*moved, **params)
        return [np.asarray(output) for output in (outputs if eqn.primitive.multiple_results else [outputs])]

    def check_index(self, eqn: Any, args: list[np.ndarray], moved: list[np.ndarray]) -> None:
        """An index beyond the observables of a row, which JAX moves inside without a word, is a mistake."""
        if eqn.primitive.name != "dynamic_slice":
            return
        if all(self.graph.nodes[int(n)].op in ("row", "shared") for n in args[0].ravel()):
            for start, n, size in zip(moved[1:], args[0].shape, eqn.params["slice_sizes"], strict=True):
                index = int(start)
                if not 0 <= index <= n - size:
                    index -= 0 if index > 0 else n  # JAX has added n
                    raise IndexError(f"index {index} is out of bounds for the {n} observables of x{self.where()}")

    def check_reduction(self, eqn: Any, numbers: np.ndarray) -> None:
        """A sum or maximum of a single x, which JAX takes for the x itself, is a mistake: all are meant."""
        if self.derivatives and not eqn.params["axes"] and any(self.graph.on_row(int(n)) for n in numbers.ravel()):
            raise ValueError(
                f"the model takes '{eqn.primitive.name}' of a single number{self.where()}: it is called with one x at "
                "a time, so compute a sum, mean or maximum over all x before, outside of the model"
            )

    def reduce(self, op: str, numbers: np.ndarray, axes: Sequence[int]) -> np.ndarray:
        kept = [axis for axis in range(numbers.ndim) if axis not in axes]
        moved = numbers.transpose([*axes, *kept]).reshape(-1, *(numbers.shape[axis] for axis in kept))
        start = {"add": 0.0, "mul": 1.0, "max": -math.inf, "min": math.inf, "and": True, "or": False}[op]
        result = np.full(moved.shape[1:], self.graph.const(start)) if len(moved) == 0 else moved[0]
        for part in moved[1:]:
            result = self.elementwise(lambda a, b: self.graph.apply(op, int(a), int(b)), result, part)
        return result

    def where(self) -> str:
        return where(*reversed(self.origin or self.within))

    def do_cumsum(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        return [self.cumulative("add", eqn, a)]

    def do_cumprod(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        return [self.cumulative("mul", eqn, a)]

    def cumulative(self, op: str, eqn: Any, numbers: np.ndarray) -> np.ndarray:
        moved = np.moveaxis(numbers, eqn.params["axis"], 0)
        result = moved[::-1].copy() if eqn.params["reverse"] else moved.copy()
        for k in range(1, len(result)):
            result[k] = self.elementwise(lambda a, b: self.graph.apply(op, int(a), int(b)), result[k - 1], result[k])
        return np.moveaxis(result[::-1] if eqn.params["reverse"] else result, 0, eqn.params["axis"])

    def do_integer_pow(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        return [self.elementwise(lambda n: self.graph.power(int(n), eqn.params["y"]), a)]

    def do_square(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        return [self.elementwise(lambda n: self.graph.power(int(n), 2), a)]

    def do_one_minus_square(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        one, graph = self.graph.const(1.0), self.graph
        factors = lambda n: (graph.apply("add", one, int(n)), graph.apply("sub", one, int(n)))  # noqa: E731
        return [self.elementwise(lambda n: graph.apply("mul", *factors(n)), a)]

    def do_polygamma(self, eqn: Any, order: np.ndarray, a: np.ndarray) -> list[np.ndarray]:
        orders = self.known(order)
        if orders is None or np.any(orders != 1.0):
            raise UntranslatableError(f"a polygamma function of another order than 1{self.where()}")
        return [self.elementwise(lambda n: self.graph.apply("trigamma", int(n)), a)]

    def do_logistic(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        graph = self.graph

        def logistic(n: np.int64) -> int:
            one, size = graph.const(1.0), graph.apply("abs", int(n))
            small = graph.apply("exp", graph.apply("neg", size))  # which does not overflow
            above = graph.apply("select", graph.apply("lt", int(n), graph.const(0.0)), small, one)
            return graph.apply("div", above, graph.apply("add", one, small))

        return [self.elementwise(logistic, a)]

    def do_select_n(self, eqn: Any, which: np.ndarray, *cases: np.ndarray) -> list[np.ndarray]:
        graph = self.graph
        # select_n takes the second case where the condition is true, or the one of this number
        choose = lambda w, a, b: graph.apply("select", int(w), int(b), int(a))  # noqa: E731
        if eqn.invars[0].aval.dtype.kind == "b":
            return [self.elementwise(choose, which, *cases)]
        result = cases[0]
        for k, case in enumerate(cases[1:]):
            beyond = self.elementwise(lambda w, k=k: graph.apply("gt", int(w), graph.const(k + 0.5)), which)
            result = self.elementwise(choose, beyond, result, case)
        return [result]

    def do_argmax(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        """The number of the first true condition, or of the largest number."""
        graph, conditions = self.graph, eqn.invars[0].aval.dtype.kind == "b"

        def beyond(new: np.int64, most: np.int64) -> int:
            if conditions:
                return graph.apply("and", int(new), graph.apply("not", int(most)))
            return graph.apply("gt", int(new), int(most))

        [axis] = eqn.params["axes"]
        most, *others = np.moveaxis(a, axis, 0)
        position = np.full(most.shape, graph.const(0.0))
        choose = lambda w, new, old: graph.apply("select", int(w), int(new), int(old))  # noqa: E731
        for k, each in enumerate(others, start=1):
            better = self.elementwise(beyond, each, most)
            position = self.elementwise(choose, better, np.full(most.shape, graph.const(float(k))), position)
            most = self.elementwise(choose, better, each, most)
        return [position]

    def do_clamp(self, eqn: Any, low: np.ndarray, x: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
        clamp = lambda a, b, c: self.graph.apply("min", self.graph.apply("max", int(a), int(b)), int(c))  # noqa: E731
        return [self.elementwise(clamp, low, x, high)]

    def do_convert_element_type(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        target = np.dtype(eqn.params["new_dtype"])
        source = np.dtype(eqn.invars[0].aval.dtype)
        if target == source or (target.kind == source.kind and target.kind in "fiu"):
            return [a]

        def convert(number: np.int64) -> int:
            value = self.graph.value(int(number))
            if value is not None:
                return self.graph.const(target.type(value).item())
            if source.kind == "b":
                return self.graph.apply("select", int(number), self.graph.const(1.0), self.graph.const(0.0))
            if source.kind in "iu" and target.kind == "f":  # a count of conditions: held as a float already
                return int(number)
            raise UntranslatableError(f"a conversion from {source} to {target}{self.where()}")

        return [self.elementwise(convert, a)]

    def do_cond(self, eqn: Any, index: np.ndarray, *args: np.ndarray) -> list[np.ndarray]:
        """All branches, and a choice between their results."""
        branches, which = eqn.params["branches"], int(index)
        chosen = self.graph.value(which)
        if chosen is not None:
            branch = branches[min(max(int(chosen), 0), len(branches) - 1)]
            return self.run(branch.jaxpr, branch.consts, args)
        results = self.run(branches[0].jaxpr, branches[0].consts, args)
        for k, branch in enumerate(branches[1:]):
            beyond = self.graph.apply("gt", which, self.graph.const(k + 0.5))
            choose = lambda a, b, c=beyond: self.graph.apply("select", c, int(a), int(b))  # noqa: E731
            others = self.run(branch.jaxpr, branch.consts, args)
            results = [self.elementwise(choose, new, old) for new, old in zip(others, results, strict=True)]
        return results

    def do_scan(self, eqn: Any, *args: np.ndarray) -> list[np.ndarray]:
        """A loop of known length, written out."""
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        first_carry, n_carry = scan_layout(eqn)
        consts, carry = list(args[:first_carry]), list(args[first_carry : first_carry + n_carry])
        if length > MAX_TURNS:
            raise UntranslatableError(f"a loop of {length} turns, more than {MAX_TURNS}{self.where()}")
        turns = range(length)[::-1] if eqn.params["reverse"] else range(length)
        stacked = [np.empty(v.aval.shape, dtype=np.int64) for v in eqn.outvars[n_carry:]]
        for k in turns:
            each = [numbers[k] for numbers in args[first_carry + n_carry :]]
            results = self.run(body.jaxpr, body.consts, [*consts, *carry, *map(np.asarray, each)])
            carry = results[:n_carry]
            for whole, part in zip(stacked, results[n_carry:], strict=True):
                whole[k] = part
        return [*carry, *stacked]

    def do_iota(self, eqn: Any) -> list[np.ndarray]:
        shape, dimension = eqn.params["shape"], eqn.params["dimension"]
        index = np.indices(shape)[dimension]
        return [self.constants(index.astype(eqn.params["dtype"]))]

    def do_platform_index(self, eqn: Any) -> list[np.ndarray]:
        """Which of the branches that follow is for a CPU, or for all platforms without one of their own."""
        for k, platforms in enumerate(eqn.params["platforms"]):
            if platforms is None or "cpu" in platforms:
                return [np.array(self.graph.const(k))]
        raise UntranslatableError(f"a choice by platforms without a CPU{self.where()}")

    def do_cholesky(self, eqn: Any, a: np.ndarray) -> list[np.ndarray]:
        """The lower factor, written out; NaN where the matrix is not positive definite."""
        graph, n = self.graph, self.small(a)
        factor = np.full((n, n), graph.const(0.0))
        for j in range(n):
            for i in range(j, n):
                rest = self.less_products(int(a[i, j]), zip(factor[i, :j], factor[j, :j], strict=True))
                factor[i, j] = graph.apply("sqrt", rest) if i == j else graph.apply("div", rest, int(factor[j, j]))
        return [factor]

    def do_triangular_solve(self, eqn: Any, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        graph, n, params = self.graph, self.small(a), eqn.params
        if b.ndim != 2:
            raise UntranslatableError(f"a solution for many matrices{self.where()}")
        left, lower = params["left_side"], params["lower"] != (params["transpose_a"] == params["left_side"])
        # a^T where one of the two is asked for: x a = b is a^T x^T = b^T
        a, b = a.T if params["transpose_a"] == left else a, b if left else b.T
        x = np.empty(b.shape, dtype=np.int64)
        for i in range(n) if lower else reversed(range(n)):
            known = slice(0, i) if lower else slice(i + 1, n)
            for c in range(b.shape[1]):
                x[i, c] = self.less_products(int(b[i, c]), zip(a[i, known], x[known, c], strict=True))
                if not params["unit_diagonal"]:
                    x[i, c] = graph.apply("div", int(x[i, c]), int(a[i, i]))
        return [x if left else x.T]

    def small(self, a: np.ndarray) -> int:
        """The size of a matrix that may be written out."""
        if a.ndim != 2 or len(a) > MAX_MATRIX:
            raise UntranslatableError(
                f"a matrix of shape {a.shape}, more than {MAX_MATRIX} x {MAX_MATRIX}{self.where()}"
            )
        return len(a)

    def less_products(self, number: int, pairs: Iterable[tuple]) -> int:
        for left, right in pairs:
            number = self.graph.apply("sub", number, self.graph.apply("mul", int(left), int(right)))
        return number

    def do_dot_general(self, eqn: Any, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        (contract_a, contract_b), (batch_a, _) = eqn.params["dimension_numbers"]
        if batch_a:
            raise UntranslatableError(f"a batched matrix product{self.where()}")
        left = np.moveaxis(a, contract_a, range(a.ndim - len(contract_a), a.ndim))
        right = np.moveaxis(b, contract_b, range(len(contract_b)))
        split = left.ndim - len(contract_a)
        shape = left.shape[:split] + right.shape[len(contract_b) :]
        length = math.prod(left.shape[split:])
        rows, columns = left.reshape(-1, length), right.reshape(length, -1)
        result = np.empty((rows.shape[0], columns.shape[1]), dtype=np.int64)
        for i, j in np.ndindex(*result.shape):
            total = self.graph.const(0.0)
            for n, m in zip(rows[i], columns[:, j], strict=True):
                total = self.graph.apply("add", total, self.graph.apply("mul", int(n), int(m)))
            result[i, j] = total
        return [result.reshape(shape)]


def interpret(graph: Graph, closed: Any, numbers: Sequence[int], origin: int) -> list[int]:
    """Add the outputs of a jaxpr of scalars, at nodes of the graph; it belongs to the operation of node `origin`."""
    interpreter = _Interpreter(graph, origin=graph.origins.get(origin, ()))
    return [int(output) for output in interpreter.run(closed.jaxpr, closed.consts, [*map(np.array, numbers)])]


def trace(
    function: Callable, kinds: Sequence[tuple[str, int]], graph: Graph, *, derivatives: bool = False
) -> list[int]:
    """Add the outputs of `function` to a graph.

    Parameters
    ----------
    function : callable
        Takes one float64 scalar for each entry of `kinds`; returns a flat sequence of scalars.
    kinds : sequence of (kind, position)
        What each argument is: a parameter ("theta"), a measured value of the toy ("aux"), a column of the row that
        belongs to the toy ("row") or is shared by all toys ("shared").
    derivatives : bool
        Whether the outputs are to be differentiated by `kernels.secondorder`: then functions with a rule of
        differentiation of their own keep it.

    Returns
    -------
    list of int
        Node number of each output.

    Raises
    ------
    UntranslatableError
        If an operation has no scalar form; the message names it and the line of the model.
    IndexError, ValueError
        If a model takes an observable that is not there, or a sum or maximum over the single x that it is given.
    """
    with jax.enable_x64(True):
        scalar = jax.ShapeDtypeStruct((), np.float64)
        closed = real_program(function, *[scalar] * len(kinds))
        arguments = [np.array(graph.argument(kind, position)) for kind, position in kinds]
        outputs = _Interpreter(graph, derivatives).run(closed.jaxpr, closed.consts, arguments)
    return [int(output) for output in outputs]
