"""Power-function averages: their weights, and averages of other lengths solved for afterwards."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad

from mdaug.training import ema


def density(gamma: float, end: float):
    return lambda tau: (gamma + 1) / end ** (gamma + 1) * tau**gamma


@pytest.mark.parametrize("width", [0.02, 0.05, 0.10, 0.25])
def test_width_is_the_standard_deviation_of_the_density(width):
    profile = density(ema.gamma(width), 1.0)
    mean = quad(lambda tau: tau * profile(tau), 0, 1)[0]
    assert quad(lambda tau: (tau - mean) ** 2 * profile(tau), 0, 1)[0] ** 0.5 == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize(
    ("first", "second"), [((1.0, 0.05), (0.4, 0.10)), ((0.3, 0.10), (0.9, 0.2)), ((1, 0.1), (1, 0.1))]
)
def test_inner_product_is_the_integral(first, second):
    (time_a, width_a), (time_b, width_b) = first, second
    a, b = density(ema.gamma(width_a), time_a), density(ema.gamma(width_b), time_b)
    expected = quad(lambda tau: a(tau) * b(tau), 0, min(time_a, time_b))[0]
    found = ema.inner_product(time_a, ema.gamma(width_a), time_b, ema.gamma(width_b))
    assert float(found) == pytest.approx(expected, rel=1e-7)


def test_stored_average_is_its_own_best_description():
    times, widths = np.repeat([100.0, 200.0, 300.0], 2), np.tile([0.05, 0.10], 3)
    weights, error = ema.solve(times, widths, 300.0, 0.10)
    assert error < 1e-6
    assert weights == pytest.approx([0, 0, 0, 0, 0, 1], abs=1e-6)


def test_weights_add_up_to_one_and_the_error_is_that_of_the_quadrature():
    times, widths = np.repeat(np.arange(1, 9) / 8, 2), np.tile([0.05, 0.10], 8)
    weights, error = ema.solve(times, widths, 1.0, 0.15)
    assert weights.sum() == pytest.approx(1, abs=1e-9)
    tau = (np.arange(200_000) + 0.5) / 200_000
    profiles = [density(ema.gamma(w), t)(tau) * (tau <= t) for t, w in zip(times, widths, strict=True)]
    wanted = density(ema.gamma(0.15), 1.0)(tau)
    difference = wanted - weights @ np.array(profiles)
    assert error == pytest.approx(np.sqrt((difference**2).sum() / (wanted**2).sum()), rel=1e-3)
    assert 0.01 < error < 0.05


@pytest.mark.parametrize("batches", [[16], [16, 64]])
def test_reconstruction_meets_the_average_that_was_tracked(batches):
    """A random walk of weights; positions are samples, so a batch that changes on the way does not matter."""
    rng = np.random.default_rng(0)
    tracked, stored = {w: np.zeros(50) for w in (0.05, 0.075, 0.10)}, []
    weights, samples = np.zeros(50), 0
    while samples < 64_000:
        batch = batches[0] if samples < 32_000 else batches[-1]
        samples += batch
        weights = weights + rng.standard_normal(50) * batch**0.5
        for width, average in tracked.items():
            decay = ema.decay(width, samples, batch)
            tracked[width] = decay * average + (1 - decay) * weights
        if samples % 4000 == 0:
            stored += [(samples, width, tracked[width].astype(np.float16)) for width in (0.05, 0.10)]
    times, widths = np.array([s for s, _, _ in stored]), np.array([w for _, w, _ in stored])
    solved, _ = ema.solve(times, widths, samples, 0.075)
    found = sum(x * average.astype(np.float64) for x, (_, _, average) in zip(solved, stored, strict=True))
    assert np.linalg.norm(found - tracked[0.075]) < 0.02 * np.linalg.norm(weights - tracked[0.075])
    nearest = min(np.linalg.norm(tracked[w] - tracked[0.075]) for w in (0.05, 0.10))
    assert np.linalg.norm(found - tracked[0.075]) < 0.1 * nearest
