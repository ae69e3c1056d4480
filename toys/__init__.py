"""batchfit's toy studies: sampling, the run, its file, pulls and coverage."""

import engine

if getattr(engine, "BATCHFIT", None) is None:
    raise ImportError(
        f"batchfit's toys found another package named 'engine' at {next(iter(engine.__path__))}: "
        "put batchfit first on sys.path or uninstall the other one"
    )

from toys.sampling import Component, ExtendedMixture
from toys.storage import StorageError, load, load_toys
from toys.study import Study, generate

#: Tells batchfit's packages from others of the same common names.
BATCHFIT = "0.1.0"

__all__ = ["Component", "ExtendedMixture", "StorageError", "Study", "generate", "load", "load_toys"]
