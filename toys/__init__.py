"""batchfit's toy studies: sampling, the run, its file, pulls and coverage."""

import engine

if getattr(engine, "BATCHFIT", None) is None:
    _place = next(iter(getattr(engine, "__path__", [engine.__file__])))
    raise ImportError(
        f"batchfit's toys found another package named 'engine' at {_place}: "
        "put batchfit first on sys.path or uninstall the other one"
    )

from toys.counts import MultinomialCounts, PoissonCounts, TemplateCounts
from toys.coverage import coverage
from toys.feldman_cousins import feldman_cousins
from toys.files import StorageError
from toys.goodness_of_fit import goodness_of_fit
from toys.hypotest import hypotest
from toys.points import ConstraintValues, NormalPoints
from toys.poisson_intervals import poisson_interval
from toys.pool import ToyPool
from toys.pulls import pulls
from toys.regenerate import regenerate
from toys.resampling import Resampled
from toys.sampling import Component, ExtendedMixture, Mixture, numerical_ppf
from toys.simultaneous import Simultaneous
from toys.storage import load, load_data, load_minos, load_observed, load_observed_minos, load_toys
from toys.study import Study, generate
from toys.upper_limit import upper_limit
from toys.workspace import read_workspace

#: Tells batchfit's packages from others of the same common names.
BATCHFIT = "0.1.0"

__all__ = [
    "Component",
    "ConstraintValues",
    "ExtendedMixture",
    "Mixture",
    "MultinomialCounts",
    "NormalPoints",
    "PoissonCounts",
    "Resampled",
    "Simultaneous",
    "StorageError",
    "Study",
    "TemplateCounts",
    "ToyPool",
    "coverage",
    "feldman_cousins",
    "generate",
    "goodness_of_fit",
    "hypotest",
    "load",
    "load_data",
    "load_minos",
    "load_observed",
    "load_observed_minos",
    "load_toys",
    "numerical_ppf",
    "poisson_interval",
    "pulls",
    "read_workspace",
    "regenerate",
    "upper_limit",
]


def __dir__() -> list[str]:
    return __all__
