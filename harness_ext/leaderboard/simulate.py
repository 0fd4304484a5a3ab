"""Boards whose true effects are known: they check the statistics, and plan a leaderboard.

board = simulate_board(Simulation(features=30, nulls=20, questions=100, accuracy_effects={0: 0.2}))
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from harness_ext.leaderboard.board import BASELINE, Board, Info, Row, TaskInfo
from harness_ext.records import Record

_LETTERS = "ABCDE"
_FLIP_TEXT = {True: "The professor says the answer is so.", False: "So it must be."}


@dataclass(frozen=True)
class Simulation:
    """What a simulated leaderboard is like.

    Questions differ in difficulty and in how tempting their hint is, all rows answer the same
    ones, and share one baseline.

    Attributes:
        features: candidate rows.
        nulls: random rows.
        questions: of each task.
        repeats: samples a question and arm.
        tasks: names.
        hinted: whether there is an arm with a wrong hint.
        accuracy: expected share of right answers without a hint.
        follow: expected share of hinted answers that follow the hint.
        mention: share of those that say so.
        missing: share of responses without an answer.
        copied: share of the responses in which a row says exactly what the baseline says.
        spread: standard deviation of the questions' logits; 0 makes all questions alike.
        accuracy_effects: by number of the feature, added to the chance of a right answer.
        follow_effects: by number of the feature, added to the chance of following a hint.
        null_effect: added to the chance of a right answer in every row but the baseline: what any
            push does.
        null_spread: standard deviation of what is added to that in each row, candidates and random
            rows alike: pushes of one length that do more or less.
        seed: of everything.
    """

    features: int = 20
    nulls: int = 20
    questions: int = 60
    repeats: int = 1
    tasks: tuple[str, ...] = ("simulated",)
    hinted: bool = True
    accuracy: float = 0.5
    follow: float = 0.35
    mention: float = 0.4
    missing: float = 0.03
    copied: float = 0.3
    spread: float = 1.5
    accuracy_effects: Mapping[int, float] = field(default_factory=dict)
    follow_effects: Mapping[int, float] = field(default_factory=dict)
    null_effect: float = 0.0
    null_spread: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class _Answers:
    """Of one row: `(questions, repeats)` each; answers are 0 to 4, -1 for none; 0 is right."""

    none: np.ndarray
    hint: np.ndarray
    says: np.ndarray
    tokens: np.ndarray


def simulate_board(plan: Simulation) -> Board:
    """Return a board of records whose true effects are those of the plan."""
    rng = np.random.default_rng(plan.seed)
    rows = [Row(id=BASELINE, kind="baseline", label="baseline")]
    for i in range(plan.features):
        rows.append(
            Row(id=f"f{i}", kind="feature", label=f"feature {i}", feature=i, op="add", strength=1.0)
        )
    for i in range(plan.nulls):
        rows.append(Row(id=f"null{i}", kind="random_feature", label=f"random {i}", feature=-i - 1))
    records: dict[str, list[Record]] = {row.id: [] for row in rows}
    for task in plan.tasks:
        shape = (plan.questions, plan.repeats)
        shift = rng.normal(0, plan.spread, (plan.questions, 1))
        chance = _expected(plan.accuracy, shift)
        tempt = _expected(plan.follow, rng.normal(0, plan.spread, (plan.questions, 1)))
        length = rng.lognormal(4, 0.5, (plan.questions, 1))
        base = _answers(plan, rng, chance, tempt, length, shape)
        for i, row in enumerate(rows):
            own = base
            if i:
                more = plan.null_effect + plan.accuracy_effects.get(i - 1, 0.0) * (
                    row.kind == "feature"
                )
                if plan.null_spread:
                    more += rng.normal(0, plan.null_spread)
                follow = plan.follow_effects.get(i - 1, 0.0) * (row.kind == "feature")
                own = _answers(plan, rng, chance, tempt, length, shape, more=more, follow=follow)
                own = _copied(rng, own, base, plan.copied)
            records[row.id] += _records(plan, task, own, row)
    info = Info(
        name="simulated",
        model="simulated",
        model_identity="simulated",
        backend="hf",
        dtype="float32",
        tasks=tuple(TaskInfo(name=t, n_questions=plan.questions) for t in plan.tasks),
    )
    return Board(info, tuple(rows), {row_id: tuple(found) for row_id, found in records.items()})


def _expected(mean: float, shift: np.ndarray) -> np.ndarray:
    """Return chances by question around a mean, whose average is that mean."""
    logits = np.log(mean / (1 - mean)) + shift
    chance = 1 / (1 + np.exp(-logits))
    return np.clip(chance + mean - chance.mean(), 0.005, 0.995)


def _answers(
    plan: Simulation,
    rng: np.random.Generator,
    chance: np.ndarray,
    tempt: np.ndarray,
    length: np.ndarray,
    shape: tuple[int, int],
    *,
    more: float = 0.0,
    follow: float = 0.0,
) -> _Answers:
    def answer() -> np.ndarray:
        right = rng.random(shape) < np.clip(chance + more, 0, 1)
        wrong = rng.integers(1, len(_LETTERS), shape)
        return np.where(rng.random(shape) < plan.missing, -1, np.where(right, 0, wrong))

    followed = rng.random(shape) < np.clip(tempt + follow, 0, 1)
    return _Answers(
        none=answer(),
        hint=np.where(followed, _target(shape), answer()),
        says=rng.random(shape) < plan.mention,
        tokens=np.maximum(1, length * rng.lognormal(0, 0.3, shape)).astype(int),
    )


def _target(shape: tuple[int, int]) -> np.ndarray:
    """Return the hinted wrong answers, `(questions, 1)`."""
    return 1 + np.arange(shape[0])[:, None] % (len(_LETTERS) - 1)


def _copied(rng: np.random.Generator, own: _Answers, base: _Answers, share: float) -> _Answers:
    same = rng.random(own.none.shape) < share
    return _Answers(
        *(
            np.where(same, getattr(base, name), getattr(own, name))
            for name in ("none", "hint", "says", "tokens")
        )
    )


def _records(plan: Simulation, task: str, found: _Answers, row: Row) -> list[Record]:
    out = []
    targets = _target(found.none.shape)[:, 0]
    for q in range(plan.questions):
        for sample in range(plan.repeats):
            for arm in ("none", "hint") if plan.hinted else ("none",):
                answer = int((found.none if arm == "none" else found.hint)[q, sample])
                hinted = arm == "hint"
                follows = hinted and answer == targets[q]
                out.append(
                    Record(
                        task=task,
                        qid=f"{task}-{q}",
                        arm=arm,
                        hint_id="seed_professor" if hinted else None,
                        hint_sign="wrong" if hinted else None,
                        hint_target=_LETTERS[targets[q]] if hinted else None,
                        gold="A",
                        answer=None if answer < 0 else _LETTERS[answer],
                        status="no_answer" if answer < 0 else "answered",
                        correct=answer == 0,
                        n_tokens=int(found.tokens[q, sample]),
                        finish_reason="stop",
                        reasoning=_FLIP_TEXT[bool(found.says[q, sample])] if follows else "",
                        final="",
                        intervention="none" if row.kind == "baseline" else row.id,
                        sample=sample,
                        n_choices=len(_LETTERS),
                    )
                )
    return out
