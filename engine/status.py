"""How a fit can end: one integer and one sentence for each way."""

from __future__ import annotations

import enum
from typing import Self


class Status(enum.IntEnum):
    """How a fit ended; `Status.X.sentence` says it in words.

    The integers are part of the file format: a new way to end takes a new integer, and no integer
    changes its meaning. Being at a limit, or rescued by a retry, is a flag of the result and not a status.
    """

    sentence: str

    def __new__(cls, value: int, sentence: str) -> Self:
        member = int.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    CONVERGED = 0, "The iteration met the convergence criterion."
    MAX_STEPS = 1, "The step limit was reached before the convergence criterion was met."
    NONFINITE = 2, "The cost is not finite at the start, or nowhere near it."
    HESSIAN_NOT_POSDEF = (
        3,
        "A saddle or a flat direction: the Hessian is not positive definite, the covariance undefined.",
    )
    BAD_DATA = 4, "The toy's data hold NaN, infinity or a value that the cost forbids: nothing was fitted."
    STALLED = 5, "No step lowers the cost, yet its gradient is not zero: a kink, a jump or a noisy cost."
    UNBOUNDED = 6, "The cost falls without end as a parameter runs away: no minimum within the limits."
