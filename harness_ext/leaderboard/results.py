"""What the statistics of a leaderboard say, row by row; made by `statistics`, shown by reports."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

Metric = str
"""A name of `harness_ext.metric_table`, such as `acc_none`, `silent_use_lexicon`."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(_Strict):
    """A value with an interval of 95 %; ends are None where they are undefined."""

    value: float | None
    lo: float | None = None
    hi: float | None = None


class Cell(_Strict):
    """One row on one task by one metric, against the baseline on the same questions.

    Attributes:
        row, task, metric: which.
        n_test, n_dev: questions in the two splits that both sides have.
        base, value: the metric without and with the intervention, on the test split.
        effect: `value - base` on the test split, paired, which is what is published.
        effect_all: the same on all questions.
        effect_dev: the same on the dev split, by which rows are ranked.
        shrunk_dev: `effect_dev` shrunk towards the mean of its family (empirical Bayes).
        rank: of the row in its family by `shrunk_dev`, from 1; None for nulls, prompts and the
            baseline, and where the metric is undefined or the row is lexical for it.
        test: `mcnemar` (exact, one sample a question), `permutation` of the sides of each question
            (ratios; the bootstrap, which gives the intervals, is too bold as a test), `bootstrap`.
        p: two-sided, on the test split.
        q: Benjamini-Hochberg over every candidate on every task by the metric.
        p_null: `(1 + #{null >= observed}) / (R + 1)`, two-sided, over the matched random rows.
        n_null: R of `p_null`.
        q_null: Benjamini-Hochberg over the same tests, of the p-value that the effect has as one
            more of its random rows' (Student's t); None with fewer than two of them.
        discovery: `q` at most the board's level, and outside the null: by `p_null` and `q_null`.
        smallest_effect: the difference that this many questions show with 80 % power.
        fixed, broken: discordant questions of an accuracy; None for other metrics.
        worst, best: bounds of the effect if missing answers had been as bad, or as good, as they
            can be for the row; None where missing answers do not differ by more than 3 points.
        truncation_base, truncation, no_answer_base, no_answer, tokens_base, tokens: what stands
            beside every accuracy.
        flags: short words a reader must see: `lexical`, `few flips`, `uneven missing`,
            `undefined`, `screened out`, `no records`.
    """

    row: str
    task: str
    metric: Metric
    n_test: int = 0
    n_dev: int = 0
    base: Interval = Interval(value=None)
    value: Interval = Interval(value=None)
    effect: Interval = Interval(value=None)
    effect_all: Interval = Interval(value=None)
    effect_dev: Interval = Interval(value=None)
    shrunk_dev: float | None = None
    rank: int | None = None
    test: Literal["mcnemar", "bootstrap", "permutation"] | None = None
    p: float | None = None
    q: float | None = None
    p_null: float | None = None
    n_null: int = 0
    q_null: float | None = None
    discovery: bool = False
    smallest_effect: float | None = None
    fixed: int | None = None
    broken: int | None = None
    worst: float | None = None
    best: float | None = None
    truncation_base: float | None = None
    truncation: float | None = None
    no_answer_base: float | None = None
    no_answer: float | None = None
    tokens_base: float | None = None
    tokens: float | None = None
    flags: tuple[str, ...] = ()


class Family(_Strict):
    """All candidates on one task by one metric.

    Attributes:
        task, metric: which.
        n_candidates: rows that were tried.
        n_tests: p-values that the q-values count: `n_candidates` on every task by the metric.
        n_null: random rows.
        discoveries: ids of rows, best first.
        level: of the q-values.
        smallest_effect: with 80 % power, on the test split, for one row at level .05; the median
            over the candidates.
        smallest_discovery: the same after the correction for `n_tests`, for a single discovery.
        order: how rows are ranked: `higher` or `lower` is better, or by `size` of the effect.
        null_mean, null_sd: of the random rows' effects; None with fewer than two.
        note: one sentence for readers, such as why nothing could be found.
    """

    task: str
    metric: Metric
    n_candidates: int
    n_tests: int = 0
    n_null: int
    discoveries: tuple[str, ...] = ()
    level: float = 0.05
    smallest_effect: float | None = None
    smallest_discovery: float | None = None
    order: Literal["higher", "lower", "size"] = "size"
    null_mean: float | None = None
    null_sd: float | None = None
    note: str = ""


class Results(_Strict):
    """All statistics of a board.

    Attributes:
        cells: every row but the baseline, on every task by every metric.
        families: one for each task and metric.
        metrics: those that were computed, in the order of columns.
        settings: what the statistics were computed with: draws, seeds, level.
    """

    cells: tuple[Cell, ...]
    families: tuple[Family, ...]
    metrics: tuple[Metric, ...]
    settings: dict[str, float | int | str] = {}

    def cell(self, row: str, task: str, metric: Metric) -> Cell | None:
        """Return one cell, or None where there is none."""
        for cell in self.cells:
            if (cell.row, cell.task, cell.metric) == (row, task, metric):
                return cell
        return None
