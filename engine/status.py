"""How a fit can end: one integer and one sentence for each way."""

import enum


class Status(enum.IntEnum):
    """How a fit ended; `Status.X.sentence` says it in words.

    The integers are part of the file format: a new way to end takes a new integer, and no integer
    changes its meaning. Being at a limit, or rescued by a retry, is a flag of the result and not a status.
    """

    CONVERGED = 0
    MAX_STEPS = 1
    NONFINITE = 2
    HESSIAN_NOT_POSDEF = 3
    BAD_DATA = 4
    STALLED = 5
    UNBOUNDED = 6

    @property
    def sentence(self) -> str:
        """What happened, in words."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CONVERGED: "The iteration met the convergence criterion.",
    Status.MAX_STEPS: "The step limit was reached before the convergence criterion was met.",
    Status.NONFINITE: "The cost or a derivative is not finite at the start, and no other that was tried was of use.",
    Status.HESSIAN_NOT_POSDEF: (
        "A saddle or a flat direction: the Hessian is not positive definite, the covariance undefined."
    ),
    Status.BAD_DATA: "The toy's data hold NaN, infinity or a value that the cost forbids: nothing was fitted.",
    Status.STALLED: (
        "No step lowers the cost, yet its gradient is not zero: a kink, a jump, noise, or an end of its domain."
    ),
    Status.UNBOUNDED: "The cost falls without end as a parameter runs away: no minimum within the limits.",
}
