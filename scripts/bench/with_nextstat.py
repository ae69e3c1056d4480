"""NextStat, which is no dependency: it is timed where it is found."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench.cases import Case
from bench.contest import Outcome
from bench.with_pyhf import workspace_of

from toys.models import XMAX, XMIN

__all__ = ["WAYS", "prepare"]

#: Options of its estimator. Its defaults end away from the minimum of the unbinned fits.
WAYS: dict[str, dict] = {"default": {}, "m 20, smooth bounds": {"tol": 1e-8, "m": 20, "smooth_bounds": True}}


def prepare(case: Case, way: str, folder: str) -> Callable[[Sequence[int]], Outcome]:
    """fit(toys), by its fit of a batch."""
    import nextstat

    batch = nextstat.MaximumLikelihoodEstimator(**WAYS[way]).fit_batch
    if case.family == "peak":
        return peak_fit(case, batch, folder)
    if case.family in ("templates", "workspace"):
        model = nextstat.from_pyhf(json.dumps(workspace_of(case)))
        order = [model.parameter_names().index(name) for name in case.cost.names]
        every = [case.toy(k).tolist() for k in range(case.n_toys)]

        def fit(toys: Sequence[int]) -> Outcome:
            return told(batch(model, [every[k] for k in toys]), order)

        return fit
    x, _, error = case.data
    # its errors are 1: the points are divided by theirs
    columns = np.stack([1.0 / error, x / error], axis=1).tolist()
    models = [
        nextstat.LinearRegressionModel(columns, (case.toy(k) / error).tolist(), include_intercept=False)
        for k in range(case.n_toys)
    ]
    return lambda toys: told(batch([models[k] for k in toys]), [0, 1])


def told(fits: Any, order: Sequence[int]) -> Outcome:
    values = np.array([fit.parameters for fit in fits])[:, order]
    valid = np.array([fit.converged for fit in fits])
    return Outcome(values, valid, *(float(np.mean([getattr(fit, n) for fit in fits])) for n in ("n_fev", "n_gev")))


def peak_fit(case: Case, batch: Callable, folder: str) -> Callable[[Sequence[int]], Outcome]:
    """The spectrum, whose exponential has the slope -1 / lam as its parameter; events are read from parquet."""
    import nextstat
    import pyarrow
    import pyarrow.parquet

    truth = dict(zip(case.cost.names, case.theta, strict=True))
    most = 10.0 * (truth["ns"] + truth["nb"])
    parameters = [
        {"name": "ns", "init": truth["ns"], "bounds": [0.0, most]},
        {"name": "nb", "init": truth["nb"], "bounds": [0.0, most]},
        {"name": "mu", "init": truth["mu"], "bounds": [XMIN, XMAX]},
        {"name": "sigma", "init": truth["sigma"], "bounds": [0.01, 10.0]},
        {"name": "slope", "init": -1.0 / truth["lam"], "bounds": [-10.0, 10.0]},
    ]
    observable = {"name": "x", "bounds": [XMIN, XMAX]}
    processes = [
        {
            "name": name,
            "pdf": {"type": kind, "observable": "x", "params": shape},
            "yield": {"type": "parameter", "name": name},
        }
        for name, kind, shape in (("ns", "gaussian", ["mu", "sigma"]), ("nb", "exponential", ["slope"]))
    ]
    models = []
    for k in range(case.n_toys):
        events, config = Path(folder, "events.parquet"), Path(folder, "model.json")
        pyarrow.parquet.write_table(pyarrow.table({"x": case.toy(k)}), events)
        channel = {
            "name": "x",
            "data": {"file": str(events)},
            "observables": [observable],
            "processes": processes,
        }
        spec = {
            "schema_version": "nextstat_unbinned_spec_v0",
            "model": {"poi": "ns", "parameters": parameters},
            "channels": [channel],
        }
        config.write_text(json.dumps(spec))
        models.append(nextstat.UnbinnedModel.from_config(str(config)))

    def fit(toys: Sequence[int]) -> Outcome:
        found = told(batch([models[k] for k in toys]), range(5))
        found.values[:, 4] = -1.0 / found.values[:, 4]
        return found

    return fit
