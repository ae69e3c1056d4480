"""pyhf: models of templates."""

from collections.abc import Callable, Sequence

import numpy as np
from bench.cases import Case, Templates
from bench.contest import Outcome

__all__ = ["WAYS", "prepare", "workspace", "workspace_of"]

#: What is tried: tensor library, optimiser, its tolerance. The objective is -2 log L, and SLSQP stops on its change.
WAYS = {
    "JAX, SLSQP": ("jax", "scipy", 1e-7),
    "NumPy, SLSQP": ("numpy", "scipy", 1e-7),
    "NumPy, MIGRAD": ("numpy", "minuit", 5e-4),
}


def workspace(templates: Templates, toy: np.ndarray) -> dict:
    """The model as pyhf, and all that reads its files, takes it."""
    names, n_norm = templates.names, templates.log_kappa.shape[1]
    n_each = n_norm + templates.shapes.shape[1]
    samples: list[dict] = [
        {
            "name": "signal",
            "data": templates.signal.tolist(),
            "modifiers": [{"name": "mu", "type": "normfactor", "data": None}],
        }
    ]
    for b, nominal in enumerate(templates.backgrounds):
        modifiers: list[dict] = []
        for j in range(n_each):
            name = names[1 + b * n_each + j]
            if j < n_norm:
                up = float(np.exp(templates.log_kappa[b, j]))
                modifiers.append({"name": name, "type": "normsys", "data": {"hi": up, "lo": 1.0 / up}})
            else:
                change = templates.shapes[b, j - n_norm]
                sides = {"hi_data": (nominal + change).tolist(), "lo_data": (nominal - change).tolist()}
                modifiers.append({"name": name, "type": "histosys", "data": sides})
        samples.append({"name": f"b{b}", "data": nominal.tolist(), "modifiers": modifiers})
    poi = {"name": "mu", "inits": [1.0], "bounds": [[-10.0, 10.0]]}
    return {
        "channels": [{"name": "bins", "samples": samples}],
        "observations": [{"name": "bins", "data": toy.tolist()}],
        "measurements": [{"name": "fit", "config": {"poi": "mu", "parameters": [poi]}}],
        "version": "1.0.0",
    }


def workspace_of(case: Case) -> dict:
    """The model of a case, with its first toy as the observation."""
    return workspace(case.detail, case.toy(0)) if case.family == "templates" else case.detail


def prepare(case: Case, way: str) -> Callable[[Sequence[int]], Outcome]:
    """fit(toys), one after the other."""
    import pyhf

    library, name, tolerance = WAYS[way]
    optimizer = getattr(pyhf.optimize, f"{name}_optimizer")(tolerance=tolerance)
    pyhf.set_backend(library, optimizer)
    model = pyhf.Workspace(workspace_of(case)).model()
    order = [model.config.par_names.index(name) for name in case.cost.names]
    auxdata, bounds = model.config.auxdata, model.config.suggested_bounds()
    start = np.empty(len(order))
    start[order] = case.theta

    def fit_one(k: int) -> tuple[np.ndarray, bool, int]:
        data = pyhf.tensorlib.astensor([*case.toy(k), *auxdata])
        try:
            _, found = pyhf.infer.mle.fit(data, model, start.tolist(), bounds, return_result_obj=True)
        except pyhf.exceptions.FailedMinimization:
            return np.full(len(order), np.nan), False, 0
        return np.asarray(found.x)[order], bool(found.success), int(found.nfev)

    def fit(toys: Sequence[int]) -> Outcome:
        pyhf.set_backend(library, optimizer)
        values, valid, calls = zip(*(fit_one(k) for k in toys), strict=True)
        return Outcome(np.array(values), np.array(valid), float(np.mean(calls)))

    return fit
