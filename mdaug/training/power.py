"""Power-function averages of the weights, and averages of any other length solved for afterwards.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1 and appendix C.
The average at time t weighs the weights of time tau by

    p_gamma(tau; t) = (gamma + 1) / t^(gamma + 1) * tau^gamma,    0 <= tau <= t.

Its relative width sigma_rel is the standard deviation of that density divided by t. Times are samples seen.
"""  # fmt: skip

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

WIDEST = 0.28  # sigma_rel of gamma = 0, the plain mean, is 12^-1/2 = 0.289


def gamma(sigma_rel: float) -> float:
    """Return gamma of a relative width: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), its largest root."""
    precision = sigma_rel**-2
    return float(np.roots([1, 7, 16 - precision, 12 - precision]).real.max())


def decay(sigma_rel: float, samples: int, batch: int) -> float:
    """Return the weight of the old average after a step of `batch` samples that ends at `samples` (section 3.1)."""
    return (1 - batch / samples) ** (gamma(sigma_rel) + 1)


def inner_product(time_a: ArrayLike, gamma_a: ArrayLike, time_b: ArrayLike, gamma_b: ArrayLike) -> np.ndarray:
    """Return the integral over tau of p_gamma_a(tau; time_a) p_gamma_b(tau; time_b); the arguments broadcast."""
    time_a, gamma_a, time_b, gamma_b = (np.asarray(x, np.float64) for x in (time_a, gamma_a, time_b, gamma_b))
    shorter = np.minimum(time_a, time_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (shorter / time_a) ** gamma_a * (shorter / time_b) ** gamma_b * shorter / (time_a * time_b)


def solve(times: np.ndarray, widths: np.ndarray, time: float, width: float) -> tuple[np.ndarray, float]:
    """Return the weights of stored averages whose sum comes closest to another average, and how far off it is.

    Minimises the integral of the squared difference of the densities (appendix C). Beyond the paper, the weights
    add up to one, so that weights which never changed come out as they are.

    Args:
        times: (n,) when the averages were stored, in samples.
        widths: (n,) their sigma_rel.
        time: end of the wanted average, at most the largest of `times`.
        width: its sigma_rel.

    Returns:
        Weights (n,) in float64, and the norm of the difference as a share of the norm of the wanted density.
    """
    times, gammas = np.asarray(times, np.float64) / time, np.array([gamma(w) for w in widths])
    wanted, count = gamma(width), len(times)
    # The conditions of the constrained minimum: the gradient vanishes up to the multiplier of the constraint.
    system = np.ones((count + 1, count + 1))
    system[:count, :count] = inner_product(times[:, None], gammas[:, None], times, gammas)
    system[count, count] = 0
    target = np.append(inner_product(times, gammas, 1, wanted), 1)
    weights = np.linalg.lstsq(system, target, rcond=None)[0][:count]
    norm = inner_product(1, wanted, 1, wanted)
    squared = norm - 2 * weights @ target[:count] + weights @ system[:count, :count] @ weights
    return weights, float(np.sqrt(max(squared, 0) / norm))
