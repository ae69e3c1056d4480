"""batchfit's toy studies: sampling, the run, its file, pulls and coverage."""

import engine

if getattr(engine, "BATCHFIT", None) is None:
    _place = next(iter(getattr(engine, "__path__", [engine.__file__])))
    raise ImportError(
        f"batchfit's toys found another package named 'engine' at {_place}: "
        "put batchfit first on sys.path or uninstall the other one"
    )

from toys.counts import MultinomialCounts, PoissonCounts
from toys.files import StorageError
from toys.points import ConstraintValues, NormalPoints
from toys.sampling import Component, ExtendedMixture, Mixture, numerical_ppf
from toys.simultaneous import Simultaneous
from toys.storage import load, load_data, load_minos, load_toys
from toys.study import Study, generate

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
    "Simultaneous",
    "StorageError",
    "Study",
    "generate",
    "load",
    "load_data",
    "load_minos",
    "load_toys",
    "numerical_ppf",
]
