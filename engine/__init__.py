"""batchfit's engine: cost functions, `fit_batch`, results, and the iminuit reference."""

import kernels

if getattr(kernels, "BATCHFIT", None) is None:
    _place = next(iter(getattr(kernels, "__path__", [kernels.__file__])))
    raise ImportError(
        f"batchfit's engine found another package named 'kernels' at {_place}: "
        "put batchfit first on sys.path or uninstall the other one"
    )

from engine.asimov import asimov
from engine.binned import BinnedNLL, ExtendedBinnedNLL
from engine.constraints import GammaConstraint, NormalConstraint, PoissonConstraint
from engine.cost import Cost
from engine.data import Ragged, Weighted
from engine.fit import fit_batch
from engine.leastsquares import LeastSquares
from engine.minos import MinosResult, minos
from engine.optimizers import newton
from engine.poisson import PoissonNLL
from engine.profile import Contour, Profile, contour, profile
from engine.result import Fit, FitResult
from engine.simulated import Template
from engine.status import Status
from engine.test_statistic import TestStatistic, test_statistic
from engine.unbinned import ExtendedUnbinnedNLL, UnbinnedNLL

#: Tells batchfit's packages from others of the same common names.
BATCHFIT = "0.1.0"

__all__ = [
    "BinnedNLL",
    "Contour",
    "Cost",
    "ExtendedBinnedNLL",
    "ExtendedUnbinnedNLL",
    "Fit",
    "FitResult",
    "GammaConstraint",
    "LeastSquares",
    "MinosResult",
    "NormalConstraint",
    "PoissonConstraint",
    "PoissonNLL",
    "Profile",
    "Ragged",
    "Status",
    "Template",
    "TestStatistic",
    "UnbinnedNLL",
    "Weighted",
    "asimov",
    "contour",
    "fit_batch",
    "minos",
    "newton",
    "profile",
    "test_statistic",
]


def __dir__() -> list[str]:
    return __all__
