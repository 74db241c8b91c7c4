"""What a number of seeds can show: the power of the paired t-test and of two one-sided tests.

From scipy's noncentral t: statsmodels' `TTestPower` is far off at few observations and small levels.
"""

from __future__ import annotations

import math

from scipy import integrate, optimize, stats

ALPHA, POWER = 0.05, 0.8


def detection_power(effect: float, sd_difference: float, n: int, *, contrasts: int = 1, alpha: float = ALPHA) -> float:
    """Probability that a paired two-sided t-test over `n` seeds finds `effect`, at level `alpha / contrasts`.

    P(|T| > t(1 - alpha / (2 contrasts); n - 1)), T noncentral t with noncentrality effect sqrt(n) / sd_difference. The level is
    Bonferroni's, where Holm's procedure starts: power after Holm's correction is at least this. 0 with fewer than two seeds.
    """
    if n < 2:
        return 0.0
    if sd_difference == 0.0:
        return 1.0 if effect else 0.0
    shift, critical = abs(effect) * math.sqrt(n) / sd_difference, float(stats.t.isf(alpha / (2 * contrasts), n - 1))
    above, below = (
        float(tail) for tail in (stats.nct.sf(critical, n - 1, shift), stats.nct.cdf(-critical, n - 1, shift))
    )
    # scipy gives NaN where a tail is too small or too large to tell
    return (above if math.isfinite(above) else float(shift > critical)) + (below if math.isfinite(below) else 0.0)


def smallest_effect(
    sd_difference: float, n: int, *, contrasts: int = 1, alpha: float = ALPHA, power: float = POWER
) -> float:
    """The effect, in the unit of `sd_difference`, that `n` seeds show with probability `power`; infinite with fewer
    than two."""
    if n < 2:
        return math.inf
    top = 1.0
    while detection_power(top, 1.0, n, contrasts=contrasts, alpha=alpha) < power:
        top *= 2.0
    lacking = lambda effect: detection_power(effect, 1.0, n, contrasts=contrasts, alpha=alpha) - power  # noqa: E731
    return sd_difference * float(optimize.brentq(lacking, 0.0, top))  # type: ignore[arg-type]


def seeds_needed(
    effect: float,
    sd_difference: float,
    *,
    contrasts: int = 1,
    alpha: float = ALPHA,
    power: float = POWER,
    most: int = 1000,
) -> int | None:
    """The fewest seeds, at least two, that show `effect` with probability `power`; None where `most` do not."""

    def enough(n: int) -> bool:
        return detection_power(effect, sd_difference, n, contrasts=contrasts, alpha=alpha) >= power

    if not enough(most):
        return None
    low, high = 1, most  # `low` are too few
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def equivalence_power(
    margin: float, sd_difference: float, n: int, *, effect: float = 0.0, alpha: float = ALPHA
) -> float:
    """Probability that two one-sided paired t-tests over `n` seeds declare a true `effect` to be within +-`margin`.

    They do where |mean| < margin - t(1 - alpha; n - 1) s / sqrt(n): exactly, the normal probability of that, integrated over the
    chi distribution of s (Schuirmann 1987; Phillips 1990). 0 with fewer than two seeds.
    """
    if n < 2 or margin <= 0.0:
        return 0.0
    if sd_difference == 0.0:
        return float(abs(effect) < margin)
    df, error = n - 1, sd_difference / math.sqrt(n)
    critical = float(stats.t.isf(alpha, df))

    def declared(ratio: float) -> float:
        """For a sample deviation of `ratio` times the true one."""
        room = margin - critical * ratio * error
        inside = stats.norm.cdf((room - effect) / error) - stats.norm.cdf((-room - effect) / error)
        return float(inside * stats.chi.pdf(ratio * math.sqrt(df), df) * math.sqrt(df))

    most = margin / (critical * error)
    typical = min(most, 1.0)
    return float(sum(integrate.quad(declared, *span)[0] for span in ((0.0, typical), (typical, min(most, 12.0)))))
