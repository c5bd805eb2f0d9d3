"""How often the 95 % interval holds the truth: populations as skewed as per-image scores are."""

import numpy as np

from raybench.metrics.intervals import percentile_interval, resample_means

SIMULATIONS = 400
RESAMPLES = 800

# Per-image scores under mean fill and top probability: most near 0, a tail that carries the mean.
POPULATIONS = {
    "gamma_half": lambda rng, n: rng.gamma(0.5, size=n),
    "gamma_one": lambda rng, n: rng.gamma(1.0, size=n),
    "lognormal_one": lambda rng, n: rng.lognormal(0.0, 1.0, size=n),
    "beta_radius": lambda rng, n: rng.beta(2.0, 1.0, size=n),
}
TRUTH = {
    "gamma_half": 0.5,
    "gamma_one": 1.0,
    "lognormal_one": float(np.exp(0.5)),
    "beta_radius": 2 / 3,
}


def run() -> dict[str, object]:
    """Return coverage of nominal 95 % intervals by population and n, and mean relative width."""
    results: dict[str, object] = {}
    rng = np.random.default_rng(0)
    for name, draw in POPULATIONS.items():
        for n in (50, 100, 200, 400):
            hits, widths = 0, []
            for _ in range(SIMULATIONS):
                values = draw(rng, n)[:, None]
                boot = resample_means(values, rng, resamples=RESAMPLES)
                low, high = percentile_interval(boot.resampled[:, 0])
                hits += low <= TRUTH[name] <= high
                widths.append((high - low) / TRUTH[name])
            results[f"coverage_{name}_n{n}"] = hits / SIMULATIONS
            results[f"width_{name}_n{n}"] = float(np.mean(widths))
    return results
