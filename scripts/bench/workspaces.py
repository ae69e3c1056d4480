"""A HistFactory workspace of the size and the kind that searches at the LHC publish."""

import numpy as np

__all__ = ["search"]

N_CHANNELS, N_BINS, N_BACKGROUNDS, N_NORMALISATIONS, N_SHAPES = 12, 15, 7, 40, 40


def search(seed: int = 1) -> dict:
    """12 channels of 15 bins, a signal and 7 backgrounds, 264 parameters.

    These are the signal strength, two free normalisations, the luminosity, 40 normalisations and 40 shapes of some per
    cent, each of which acts on some of the samples, and a statistical uncertainty of every bin.
    """
    rng = np.random.default_rng(seed)
    x = (np.arange(N_BINS) + 0.5) / N_BINS
    sizes = rng.uniform(0.01, 0.08, N_NORMALISATIONS)
    channels, observations = [], []
    for c in range(N_CHANNELS):
        samples = [
            {"name": "signal", "data": 4.0 + 8.0 * rng.uniform(0.5, 2.0) * x**2},
            *(
                {"name": f"b{b}", "data": 0.2 * rng.uniform(50.0, 800.0) * np.exp(-rng.uniform(1.0, 4.0) * x)}
                for b in range(N_BACKGROUNDS)
            ),
        ]
        for s, sample in enumerate(samples):
            nominal = sample["data"]
            modifiers: list[dict] = [{"name": "lumi", "type": "lumi", "data": None}] if s not in (1, 2) else []
            if s < 3:
                name = ("mu", "k1", "k2")[s]
                modifiers.append({"name": name, "type": "normfactor", "data": None})
            for j in np.flatnonzero(rng.random(N_NORMALISATIONS) < 0.25).tolist():
                high, low = sizes[j] * rng.uniform(0.5, 1.5, 2)
                data = {"lo": 1.0 - float(low), "hi": 1.0 + float(high)}
                modifiers.append({"name": f"norm{j}", "type": "normsys", "data": data})
            for j in np.flatnonzero(rng.random(N_SHAPES) < 0.4).tolist():
                tilt = rng.uniform(-0.04, 0.04) * (2.0 * x - 1.0) + rng.normal(0.0, 0.003, N_BINS)
                low, high = nominal * (1.0 - rng.uniform(0.8, 1.2) * tilt), nominal * (1.0 + tilt)
                data = {"lo_data": low.tolist(), "hi_data": high.tolist()}
                modifiers.append({"name": f"shape{j}", "type": "histosys", "data": data})
            if s:
                error = 0.3 * np.sqrt(nominal)
                modifiers.append({"name": f"mc{c:02}", "type": "staterror", "data": error.tolist()})
            sample |= {"data": nominal.tolist(), "modifiers": modifiers}
        channels.append({"name": f"channel{c:02}", "samples": samples})
        total = np.sum([sample["data"] for sample in samples], axis=0)
        observations.append({"name": f"channel{c:02}", "data": rng.poisson(total).tolist()})
    lumi = {"name": "lumi", "auxdata": [1.0], "sigmas": [0.017], "bounds": [[0.8, 1.2]], "inits": [1.0]}
    poi = {"name": "mu", "bounds": [[-10.0, 10.0]]}
    return {
        "channels": channels,
        "observations": observations,
        "measurements": [{"name": "search", "config": {"poi": "mu", "parameters": [lumi, poi]}}],
        "version": "1.0.0",
    }
