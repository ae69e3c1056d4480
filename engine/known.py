"""Rows with what depends on the data alone: drivers read it as further columns (see `kernels.known`)."""

from dataclasses import replace

import numpy as np

from engine.cost import Cost
from engine.data import Rows
from engine.sums import pack
from kernels.known import Known, separated
from kernels.nodes import UntranslatableError

__all__ = ["with_known"]


def with_known(cost: Cost, rows: Rows) -> Rows:
    """The same rows with columns that spare a driver work at every step, where there are any."""
    leaves = tuple(_of_leaf(leaf, part) for leaf, part in zip(cost.leaves, rows.leaves, strict=True))
    if all(new is old for new, old in zip(leaves, rows.leaves, strict=True)):
        return rows
    return pack(leaves) if rows.parts else leaves[0]


def _of_leaf(cost: Cost, rows: Rows) -> Rows:
    made = cost.kept("known")
    if rows.form not in made:
        made[rows.form] = _made(cost, rows) if cost.may_know and type(rows) is Rows else None
    known: Known | None = made[rows.form]
    return rows if known is None else _extended(rows, known, known.compute(_data(rows)))


def _made(cost: Cost, rows: Rows) -> Known | None:
    """What computes the columns of rows of this form; the program is kept where `Cost.program` looks for it."""
    programs = cost.kept("programs")
    try:
        program, known = separated(cost.built(rows, opaque=True))
    except UntranslatableError as reason:
        programs.setdefault(rows.form, reason)
        return None
    except Exception:  # what is wrong with the model is told where it is fitted
        return None
    form = rows.form
    if known is not None:
        form = _extended(rows, known, np.zeros((known.n, _data(rows).shape[1]))).form
    programs.setdefault(form, program)
    return known


def _data(rows: Rows) -> np.ndarray:
    return rows.columns if rows.n_columns else rows.shared


def _extended(rows: Rows, known: Known, computed: np.ndarray) -> Rows:
    names = (*rows.names, *(f"known{k}" for k in range(known.n)))
    if rows.n_columns:
        return replace(rows, names=names, columns=np.concatenate([rows.columns, computed]))
    return replace(rows, names=names, shared=np.concatenate([rows.shared, computed]))
