"""The least time that a fit can take: the operations of its kernel at the rates of the machine.

One evaluation is the value, the gradient and the Hessian of one toy. Its operations are counted where the kernel comes
from: in the graph of the program, or, where the expectation is a vector function of the parameters, in the loops of the
generated source. Additions are taken to be contracted with multiplications wherever their numbers allow, divisions and
reading to overlap with everything else, and toys to be vectorised over, so that nothing is faster but fewer operations.
"""

import ast
import inspect
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from bench.rates import Rates

from engine.cost import Cost
from engine.data import Rows
from engine.rules import WIDE
from engine.templates import TemplateNLL
from kernels.edges import split_at_edges
from kernels.nodes import LEAVES
from kernels.program import FIRST, SECOND, Outer, Program

__all__ = ["Fitted", "Floor", "count_cost", "count_program", "count_source", "floor_of"]

LEAST_EVALUATIONS = 2  # one step, and the proof that no other is needed
_L2_BYTES = 2**20
_ADDITIONS = {"add", "sub", "neg", "total"}
_CHOICES = {"abs", "sign", "max", "min", "select", "lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "is_finite"}
_CHOICES |= {"floor", "ceil", "same"}
_INSTRUCTIONS = {
    ast.Add: "add",
    ast.Sub: "add",
    ast.USub: "add",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.Compare: "choose",
    ast.IfExp: "choose",
    ast.Not: "choose",
}


class Fitted(Protocol):
    """What is fitted: a cost, its toys as `fit_batch` takes them, the start and the limits."""

    cost: Cost
    data: Any
    start: Any
    limits: Any


@dataclass(frozen=True)
class Floor:
    """The least time of a fit of one toy on one core.

    Attributes
    ----------
    n_params : int
    rows : float
        Events, bins and points of a toy, on average.
    operations : dict of str to float
        Of one evaluation: "add", "multiply", "divide", "sqrt", "choose" (comparisons and selections), and functions.
    step : dict of str to float
        Of the linear algebra of one step of Newton's method.
    first_order : dict of str to float
        Of an evaluation without the Hessian and of a step of a quasi-Newton method, where fits take those as well.
    bytes_own, bytes_shared : float
        Read in one evaluation: columns of the toy, and constants that all toys share and that are not zero.
    seconds : dict of str to float
        What each part of the machine needs for one evaluation and step of Newton's method: "arithmetic", "division",
        "reading".
    evaluations : float
        That were counted, or two.
    fit_seconds, least_fit_seconds : float
        With these evaluations, and with two.
    """

    n_params: int
    rows: float
    operations: dict[str, float]
    step: dict[str, float]
    first_order: dict[str, float]
    bytes_own: float
    bytes_shared: float
    seconds: dict[str, float]
    evaluations: float
    fit_seconds: float
    least_fit_seconds: float
    fits_per_second: float
    in_words: str


def floor_of(case: Fitted, rates: Rates, evaluations: float | None = None) -> Floor:
    """The floor of a fit by Newton's method, to which quasi-Newton steps lead where gradients are much cheaper.

    Parameters
    ----------
    case
        Has `cost` and `data`, as `bench.cases.Case`.
    rates : Rates
        Of this machine.
    evaluations : float, optional
        That a fit took on average; two by default.
    """
    rows = case.cost.rows(case.data)
    pairs = list(zip(case.cost.leaves, rows.leaves, strict=True))
    operations = count_cost(case.cost, rows, SECOND)
    p, n_rows = len(case.cost.names), sum(_mean_rows(leaf) for _, leaf in pairs)
    own = sum(8.0 * len(leaf.columns) * _mean_rows(leaf) for _, leaf in pairs)
    shared = sum(8.0 * np.count_nonzero(cost.kernel_shared(leaf)) for cost, leaf in pairs)
    # L D L^T, forward and backward substitution
    step = _products(p**3 / 6 + p**2) + Counter(divide=p, sqrt=p)
    seconds = _seconds(operations + step, rates)
    seconds["reading"] = (own + shared) / (rates.l2_bytes if own + shared < _L2_BYTES else rates.memory_bytes)
    once = max(own / rates.memory_bytes, _seconds(_products(p**3 / 3), rates)["arithmetic"])  # first read, covariance
    first_order = Counter[str]()
    if p >= WIDE and case.cost.cheap_gradient(rows):
        first_order = count_cost(case.cost, rows, FIRST) + _products(p**2)
    each = max(_seconds(first_order, rates).values()) if first_order else max(seconds.values())
    of_fit = lambda n: (n - 1) * each + max(seconds.values()) + once  # noqa: E731
    n = LEAST_EVALUATIONS if evaluations is None else evaluations
    slowest = max(seconds, key=seconds.__getitem__)
    return Floor(
        n_params=p,
        rows=n_rows,
        operations=dict(operations),
        step=dict(step),
        first_order=dict(first_order),
        bytes_own=own,
        bytes_shared=shared,
        seconds=seconds,
        evaluations=n,
        fit_seconds=of_fit(n),
        least_fit_seconds=of_fit(LEAST_EVALUATIONS),
        fits_per_second=1.0 / of_fit(n),
        in_words=f"{1e9 * max(seconds.values()) / max(n_rows, 1.0):.2f} ns per row of {slowest}, {n:.1f} evaluations",
    )


def count_cost(cost: Cost, rows: Rows, order: int) -> Counter:
    """Operations of one evaluation of one toy, on average, to the FIRST or SECOND order."""
    return sum((_count_leaf(*pair, order) for pair in zip(cost.leaves, rows.leaves, strict=True)), Counter())


def count_program(program: Program, adjacent: bool = False) -> tuple[Counter, Counter]:
    """Operations of a program for each row, and once for each evaluation; of `adjacent` rows one edge counts."""
    each, once = Counter[str](), Counter[str]()
    rows = [number for number in program.live if program.graph.on_row(number)]
    edges = split_at_edges(program) if adjacent and not program.outer.vectors else None
    if edges is not None:
        rows = edges.numbers + [number for number in edges.rest if number not in edges.read]
    for numbers, count in ((rows, each), (set(program.live).difference(rows), once)):
        for number, node in ((number, program.graph.nodes[number]) for number in numbers):
            if node.op not in LEAVES and node.depends_on_row == (count is each):
                at = node.args[0] if node.op == "total" else number
                count[_kind(node.op)] += program.graph.nodes[at].table or 1
    each["add"] += len(program.cores)
    terms = [c is not None for combination in program.combinations for c, _ in combination]
    once["multiply"] += sum(terms)
    once["add"] += len(terms) + sum(r is not None for r in program.rest)
    return each + _count_outer(program.outer), once + _count_outer(program.outer_rest)


def count_source(module: ModuleType, name: str) -> Counter:
    """Operations of one call of a function of generated source, whose loops have constant lengths."""
    [function] = [f for f in ast.parse(inspect.getsource(module)).body if getattr(f, "name", None) == name]
    return _count_body(function.body, vars(module))  # type: ignore[attr-defined]


def _count_leaf(cost: Cost, rows: Rows, order: int) -> Counter:
    module = sys.modules[cost.kernel(rows).py_func.__module__]  # type: ignore[attr-defined]
    if hasattr(module, "expectation"):
        n, p = int(module.N_BINS), int(module.N_PARAMS)
        parts = ["expectation", "derivatives"]
        parts += ["bend"] if order == SECOND and hasattr(module, "bend") else []
        # value and |term|, gradient
        total = sum((count_source(module, name) for name in parts), Counter(add=2 * n, choose=n)) + _products(n * p)
        # curvature times Jacobian, Hessian
        return total + Counter(multiply=n * p) + _products(n * p * (p + 1) / 2) if order == SECOND else total
    if isinstance(cost, TemplateNLL):
        return _count_templates(cost, order)
    if not rows.columns.size:  # a constraint: its inverse covariance times the deviations, and added to the Hessian
        used = int(np.count_nonzero(cost.kernel_shared(rows)))
        return _products(used) + Counter(add=used if order == SECOND else 0)
    each, once = count_program(cost.program(rows), cost.adjacent)
    return Counter({op: n * _mean_rows(rows) for op, n in each.items()}) + once


def _count_templates(cost: TemplateNLL, order: int) -> Counter:
    """Operations of `kernels.templates` of which no model of this form can do without."""
    total = Counter[str]()
    for samples in cost.channels:
        n = len(samples[0].nominal)
        # value, |term|, slope and curvature
        total += Counter({"add": 5 * n, "multiply": 3 * n, "divide": 2 * n, "log1p": n})
        whole: set[int] = set()
        sets = {positions for sample in samples for positions in sample.of_bins}
        for sample in samples:
            norms, shapes = sample.normalisations, sample.shapes
            acting = {*sample.factors, *(norm.parameter for norm in norms), *(shape.parameter for shape in shapes)}
            whole |= acting
            total += _products(6 * len(norms)) + Counter({"log1p": len(norms), "exp": bool(norms)})
            # T and T_i; F; what acts on whole samples, in the Jacobian and along the slopes
            total += _products(4 * n * len(shapes) + n * len(sample.of_bins))
            total += _products(n * len(acting) * (2 if order == FIRST else 3))
            if order == SECOND:
                total += _products(len(acting) ** 2 + n * len(sample.of_bins) * len(acting))
        k = len(whole)
        total += _products(n * (k + len(sets)))
        if order == SECOND:
            total += _products(n * k * (k + 1) / 2 + n * len(sets) * k)
    return total


def _count_outer(outer: Outer) -> Counter:
    length = [len(vector.params) for vector in outer.vectors]
    total = _products(sum(length[v] for _, v in outer.gradient))
    for _, u, v in outer.hessian:
        pairs = length[u] * (length[u] + 1) / 2 if u == v else length[u] * length[v]
        total += _products(pairs) + Counter(multiply=length[u])
    return total


def _products(n: float) -> Counter:
    """n products that are added up."""
    return Counter(add=n, multiply=n)


def _count_body(statements: list, names: Mapping[str, Any]) -> Counter:
    total = Counter[str]()
    for statement in statements:
        if isinstance(statement, ast.For):
            [length] = statement.iter.args  # type: ignore[attr-defined]
            n = int(names[length.id]) if isinstance(length, ast.Name) else int(ast.literal_eval(length))
            total += Counter({op: n * count for op, count in _count_body(statement.body, names).items()})
        else:
            total += _count_expression(getattr(statement, "value", statement))
    return total


def _count_expression(node: ast.AST) -> Counter:
    if isinstance(node, ast.Subscript):  # what an address takes is no arithmetic
        return Counter()
    total = Counter[str]()
    kind = _INSTRUCTIONS.get(type(node))  # the operators are nodes, too
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id  # type: ignore[attr-defined]
        kind = None if name in ("uint64", "zeros") else "choose" if name == "fabs" else _kind(name)
    if kind is not None:
        total[kind] += 1
    return sum((_count_expression(child) for child in ast.iter_child_nodes(node)), total)


def _kind(op: str) -> str:
    if op in _ADDITIONS:
        return "add"
    if op in _CHOICES:
        return "choose"
    return {"mul": "multiply", "reciprocal": "divide", "rsqrt": "sqrt"}.get(op, op)


def _seconds(operations: Mapping[str, float], rates: Rates) -> dict[str, float]:
    """What arithmetic and division take; a function that was not measured takes as long as the fastest one."""
    known = {"add", "multiply", "choose", "divide", "sqrt"}
    n = Counter(operations)
    fastest = max(rates.functions.values())
    functions = sum(count / rates.functions.get(op, fastest) for op, count in n.items() if op not in known)
    return {
        "arithmetic": max(n["add"], n["multiply"]) / rates.multiply_adds + n["choose"] / rates.additions + functions,
        "division": n["divide"] / rates.divisions + n["sqrt"] / rates.square_roots,
    }


def _mean_rows(rows: Rows) -> float:
    return float(np.diff(rows.offsets).mean()) if len(rows) else 0.0
