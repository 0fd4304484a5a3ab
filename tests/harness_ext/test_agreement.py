import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from harness_ext.agreement import agreement


@pytest.mark.parametrize("cells", [(20, 5, 10, 15), (1, 2, 3, 4), (45, 15, 25, 15)])
def test_kappa_is_that_of_statsmodels(cells):
    yy, yn, ny, nn = cells
    found = agreement(*cells)
    assert found.kappa == pytest.approx(cohens_kappa([[yy, yn], [ny, nn]]).kappa)
    assert found.n == sum(cells)
    assert found.raw == pytest.approx((yy + nn) / sum(cells))


def test_ac1_does_not_collapse_where_kappa_does():
    # Nearly all verdicts are yes: raw agreement .944, kappa below 0.
    found = agreement(118, 5, 2, 0)
    assert found.kappa == pytest.approx(-0.0234, abs=1e-3)
    assert found.ac1 == pytest.approx(0.9408, abs=1e-3)
    assert found.prevalence == pytest.approx((123 / 125, 120 / 125))


def test_undefined_is_none():
    assert agreement(0, 0, 0, 0).raw is None
    always = agreement(10, 0, 0, 0)
    assert (always.raw, always.kappa, always.ac1) == (1, None, 1)
