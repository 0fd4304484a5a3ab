import numpy as np
import pytest

from harness_ext.leaderboard.resample import Pairs
from harness_ext.regress.losses import (
    mcnemar_worse,
    measure_loss,
    power_against,
    tango,
    visible_loss,
)


def pairs(before, after, bottom=None):
    ones = np.ones(len(before))
    bottom = ones if bottom is None else np.array(bottom, float)
    return Pairs(np.array(before, float), bottom, np.array(after, float)[:, None], bottom[:, None])


def accuracy(broken, fixed, same):
    return pairs([1] * broken + [0] * fixed + [1] * same, [0] * broken + [1] * fixed + [1] * same)


def loss(found, margin=0.0, up=True):
    return measure_loss(found, margin, higher_is_better=up, draws=2000)


def test_tango_without_a_margin_is_mcnemars_score_test():
    # z = (b - c) / sqrt(b + c)
    assert tango(12, 4, 198, 0.0) == pytest.approx(0.02275, abs=1e-5)
    assert tango(0, 0, 50, 0.0) == 1.0


def test_tango_solves_its_own_equation():
    """Its p21 is the root that the likelihood under the hypothesis has (Tango 1998, eq. 3)."""
    b, c, n, margin = 14, 3, 80, 0.05
    q = np.linspace(1e-6, 0.4, 400_001)
    score = b / (q + margin) + c / q - 2 * (n - b - c) / (1 - 2 * q - margin)
    best = q[np.argmin(np.abs(score))]
    z = (b - c - n * margin) / np.sqrt(n * (2 * best + margin * (1 - margin)))
    from scipy.stats import norm

    assert tango(b, c, n, margin) == pytest.approx(norm.sf(z), abs=1e-4)


def test_a_run_like_its_baseline_has_lost_nothing():
    found = loss(accuracy(0, 0, 40), 0.02)
    assert (found.loss, found.p_worse, found.fixed, found.broken) == (0, 1.0, 0, 0)


def test_few_questions_cannot_fail_a_run():
    # 4 of 4 broken: exact one-sided p = 1/16, whatever an approximation says.
    assert loss(accuracy(4, 0, 0)).p_worse >= 1 / 16
    assert loss(pairs([10, 20, 30], [50, 60, 70]), up=False).p_worse >= 1 / 8 - 0.02
    assert loss(pairs([10], [50]), up=False).p_worse == 1.0


def test_a_loss_within_the_margin_is_not_proven_worse():
    lost = accuracy(12, 2, 186)  # 5 points
    assert loss(lost, 0.0).p_worse < 0.01
    assert loss(lost, 0.06).p_worse > 0.3
    assert loss(lost, 0.15).p_safe < 0.01
    assert loss(lost, 0.06).p_safe > 0.2


def test_a_gain_is_never_a_loss():
    assert loss(accuracy(2, 30, 100)).p_worse > 0.99
    assert loss(accuracy(2, 30, 100)).loss < 0


def test_direction_follows_the_metric():
    more = pairs([0] * 30 + [1] * 10, [1] * 20 + [0] * 10 + [1] * 10)
    assert loss(more, up=True).loss == pytest.approx(-0.5)
    worse = loss(more, up=False)
    assert worse.loss == pytest.approx(0.5)
    assert (worse.broken, worse.fixed) == (20, 0)
    assert worse.p_worse < 0.001


def test_undefined_metrics_have_no_loss():
    assert loss(pairs([0, 0], [0, 0], bottom=[0, 0])) is None


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_false_alarms_at_the_margin_stay_at_the_level(margin):
    rng = np.random.default_rng(0)
    n, change = 60, 0.2
    alarms = 0
    for _ in range(600):
        draw = rng.choice(3, size=n, p=[(change + margin) / 2, (change - margin) / 2, 1 - change])
        b, c = int((draw == 0).sum()), int((draw == 1).sum())
        alarms += loss(accuracy(b, c, n - b - c), margin).p_worse <= 0.05
    assert alarms / 600 <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / 600)


def test_false_alarms_of_means_at_the_margin_stay_at_the_level():
    rng = np.random.default_rng(1)
    alarms = sum(
        measure_loss(
            pairs(base := rng.lognormal(3, 0.5, 25), base + 2 + rng.normal(0, 4, 25)),
            2.0,
            higher_is_better=False,
            draws=200,
        ).p_worse
        <= 0.05
        for _ in range(300)
    )
    assert alarms / 300 <= 0.05 + 2.33 * np.sqrt(0.05 * 0.95 / 300)


def test_the_visible_loss_is_seen_in_80_of_100_runs():
    n, margin, sd = 50, 1.0, 4.0
    size = visible_loss(sd, n, margin, 0.05)
    assert power_against(size, sd, n, margin, 0.05) == pytest.approx(0.8, abs=0.01)
    rng = np.random.default_rng(2)
    seen = 0
    for _ in range(300):
        base = rng.normal(50, 10, n)
        found = measure_loss(
            pairs(base, base + size + rng.normal(0, sd, n)), margin, higher_is_better=False,
            draws=200,
        )  # fmt: skip
        seen += found.p_worse <= 0.05
    assert seen / 300 == pytest.approx(0.8, abs=0.07)


def test_one_sided_mcnemar():
    assert mcnemar_worse(0, 5) == pytest.approx(1 / 32)
    assert mcnemar_worse(5, 0) == 1.0
    assert mcnemar_worse(0, 0) == 1.0
