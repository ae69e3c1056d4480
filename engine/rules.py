"""Constants of the algorithm of `engine.newton`, for arrays and for machine code."""

import numpy as np

from engine.status import Status

# numba takes no members of an enumeration
CONVERGED, MAX_STEPS, NONFINITE, HESSIAN_NOT_POSDEF, BAD_DATA, STALLED, UNBOUNDED = map(int, Status)
RUNNING = -1
EDM_GOAL = 1e-13  # stop at this estimated distance to the minimum, in units of errordef
ROUNDING = 8 * np.finfo(np.float64).eps  # times the sum of |term|: what the rounding of the sums may do
NEAR = 1e-3  # below this predicted gain, in units of errordef, a step may be judged by its gradient
CHI_SQUARE = 1.0  # errordef of a chi-square, whose errors may be but nominal, while those of a likelihood are not
AT_REST = 1e-8  # largest last step, relative to its parameter, where errordef is larger than a whole chi-square
PIVOT = 1e-14  # smallest pivot of a unit-diagonal matrix that counts as positive definite
ACCEPT = 1e-4  # smallest ratio of actual and predicted gain of an accepted step
FIRST_RADIUS = 4.0  # first radius where the Hessian is not positive definite, in units of |H_ii|^(-1/2)
SMALLEST_RADIUS = 1e-15
RUNAWAY = 1e15  # a parameter that has grown by this factor runs away
RADIUS_TOLERANCE = 0.1
MAX_SHIFTS = 40
LEAST_SHIFT = 1e-3  # of a step that crosses limits and is bounded, in units of the diagonal
ENOUGH = 0.1  # part of the gain of such a step with which one of negative curvature is preferred
CLOSE, PART = 1.0, 0.5  # of a limit, and of the way to one that is not
PATIENCE, MOST_ROUNDS = 3, 40  # in the search for who is on a limit
PULL = 1e-12  # of a parameter on a limit, in terms of what it is the sum of, that is none
WIDE = 8  # from so many parameters on, loops are in vectors
MOST_APPROACH, MOST_PAIRS = 20, 12  # evaluations and steps of the approach
CLOSER = 0.5  # by which the gain to be expected must fall in each of them
SAFE = 0.25  # part of the goal at which the approach ends: its gains are estimates
