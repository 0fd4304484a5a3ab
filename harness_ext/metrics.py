"""Accuracy, influence, verbalization and silent use, from records; undefined is None."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from harness_ext.agreement import agreement
from harness_ext.counts import EXCLUSIONS, SIGNS, Counts, by_question, count_question
from harness_ext.detectors import DETECTORS, REGISTRY, Detector
from harness_ext.hints import Sign
from harness_ext.metric_table import ARMS as ARMS
from harness_ext.metric_table import METRICS as METRICS
from harness_ext.metric_table import Metric, get_metric, metric_table, total
from harness_ext.metric_table import normalised_verbalization as normalised_verbalization
from harness_ext.records import Record
from harness_ext.repeats import Repeated, over_questions
from harness_ext.seed_parity import SEED_REASONS
from harness_ext.stats import Estimate

GREY_BELOW = 10  # flips; a verbalization over fewer is shown in grey


def question_counts(
    records: Iterable[Record], detectors: Mapping[str, Detector] = REGISTRY
) -> dict[str, Counts]:
    """Return the counts of every question, by sorted question id.

    Raises:
        MetricError: Records of several tasks or interventions are mixed.
    """
    return {qid: count_question(group, detectors) for qid, group in by_question(records).items()}


def estimate(records: Iterable[Record], metric: str) -> Estimate:
    """Return a metric of the records of one task and intervention, with its standard error.

    Raises:
        MetricError: The metric is unknown, or records of several runs are mixed.
    """
    return get_metric(metric).estimate(list(question_counts(records).values()))


def primary_sign(counts: Mapping[str, float]) -> Sign | None:
    """Return the sign whose metrics have the plain names: wrong if there are wrong hints."""
    return next((sign for sign in SIGNS if counts.get(f"{sign}.hinted")), None)


def by_run(records: Iterable[Record]) -> dict[str, dict[str, list[Record]]]:
    """Return the records by task and intervention, both sorted, the base (`none`) first."""
    runs: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        runs[record.task][record.intervention].append(record)
    return {
        task: {
            name: runs[task][name] for name in sorted(runs[task], key=lambda n: (n != "none", n))
        }
        for task in sorted(runs)
    }


def summarise(
    records: Iterable[Record],
    detectors: Mapping[str, Detector] = REGISTRY,
    *,
    ks: Sequence[int] | None = None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return every metric as `{task: {intervention: {key: value}}}`; undefined is None.

    docs/rescore.md explains the keys. The hint metrics with plain names are those of wrong
    hints, or of correct hints where there are no wrong ones (`hint_sign` says which); `by_sign`
    holds both. `stderr` holds the standard errors by metric name. Counts of responses are
    averaged over the samples of a question.

    Args:
        records: of any tasks and interventions.
        detectors: by name; those that cost something (`judge`) are shown where they were asked.
        ks: the k of pass@k and maj@k, by default those of `repeats.over_questions`.

    Raises:
        MetricError: Two records claim the same response.
    """
    table = metric_table(detectors)
    return {
        task: {name: _Summary(group, detectors, table, ks).values() for name, group in runs.items()}
        for task, runs in by_run(records).items()
    }


class _Summary:
    """The summary of one run."""

    def __init__(
        self,
        records: Sequence[Record],
        detectors: Mapping[str, Detector],
        table: Mapping[str, Metric],
        ks: Sequence[int] | None,
    ) -> None:
        self.records = records
        self.questions = list(question_counts(records, detectors).values())
        self.sums = total(self.questions)
        self.found = {name: metric.estimate(self.questions) for name, metric in table.items()}
        self.repeated = self.samples(ks)
        self.detectors = [d for d in detectors if d in DETECTORS or self.sums.get(f"{d}.asked")]

    def values(self) -> dict[str, Any]:
        sums, found = self.sums, self.found
        sign = primary_sign(sums)
        by_sign = {s: self.of_sign(s) for s in SIGNS if sums.get(f"{s}.hinted")}
        return {
            "acc": self.accuracies("acc"),
            "acc_lenient": self.accuracies("acc_lenient"),
            "acc_verified": self.accuracies("acc_verified"),
            "n_questions": len(self.questions),
            "hint_sign": sign,
            **(by_sign[sign] if sign else self.of_sign("wrong")),
            "by_sign": by_sign,
            "seed": self.seed(),
            **{
                name: found[name].value
                for name in ("mean_tokens", "mean_reasoning_tokens", "mean_answer_tokens")
            },
            "truncation": found["truncation"].value,
            "no_answer": found["no_answer"].value,
            "repeated_4grams": found["repeated_4grams"].value,
            "pass_at_k": {
                arm: {str(k): e.value for k, e in found.pass_at.items()}
                for arm, found in self.repeated.items()
            },
            "maj_at_k": {
                arm: {str(k): e.value for k, e in found.maj_at.items()}
                for arm, found in self.repeated.items()
            },
            "false_positive_rate": {
                d: found[f"false_positive_rate_{d}"].value for d in self.detectors
            },
            "false_positive_rate_by_arm": {
                arm: {d: self.share(f"unhinted.{arm}.{d}") for d in self.detectors}
                for arm in ("none", "placebo")
                if sums.get(f"unhinted.{arm}")
            },
            "no_verdict": {d: whole(sums.get(f"{d}.excluded", 0.0)) for d in self.detectors},
            "agreement_all_hinted": self.agreement("all"),
            "stderr": {
                name: v.se
                for name, v in (found | self.repeated_estimates()).items()
                if v.value is not None
            },
        }

    def repeated_estimates(self) -> dict[str, Estimate]:
        """Return pass@k and maj@k of every arm, by names such as `maj@64_none`."""
        return {
            f"{name}@{k}_{arm}": e
            for arm, found in self.repeated.items()
            for name, by_k in (("pass", found.pass_at), ("maj", found.maj_at))
            for k, e in by_k.items()
        }

    def share(self, key: str) -> float | None:
        known = self.sums.get(f"{key}.known", 0.0)
        return self.sums.get(key, 0.0) / known if known else None

    def accuracies(self, name: str) -> dict[str, float | None]:
        acc: dict[str, float | None] = {
            arm: self.found[f"{name}_{arm}"].value for arm in ARMS if self.sums.get(f"n.{arm}")
        }
        n_hint = sum(self.sums.get(f"n.{s}", 0.0) for s in SIGNS)
        if name == "acc" and n_hint:
            acc["hint"] = sum(self.sums.get(f"right.{s}", 0.0) for s in SIGNS) / n_hint
        return acc if any(value is not None for value in acc.values()) else {}

    def of_sign(self, sign: Sign) -> dict[str, Any]:
        def value(name: str) -> float | None:
            return self.found[name if sign == "wrong" else f"{name}_{sign}"].value

        def per_detector(name: str) -> dict[str, float | None]:
            return {d: value(f"{name}_{d}") for d in self.detectors}

        flips = value("n_flips")
        return {
            "n_eligible": whole(value("n_eligible")),
            "n_flips": whole(flips),
            "influence": value("influence"),
            "influence_all_hinted": value("influence_all_hinted"),
            "verbalization": per_detector("verbalization"),
            "verbalization_reasoning": per_detector("verbalization_reasoning"),
            "verbalization_final": per_detector("verbalization_final"),
            "silent_use": per_detector("silent_use"),
            "verbalized_use": per_detector("verbalized_use"),
            "normalised_verbalization": per_detector("normalised_verbalization"),
            "dependence": value("dependence"),
            "agreement": self.agreement(sign),
            "few_flips": flips is None or flips < GREY_BELOW,
            "excluded": {
                reason: whole(self.sums.get(f"{sign}.excluded.{reason}", 0.0))
                for reason in EXCLUSIONS
            },
        }

    def agreement(self, where: str) -> dict[str, dict[str, Any]]:
        out = {}
        for a, b in combinations(self.detectors, 2):
            cells = [
                self.sums.get(f"{where}.agree.{a}.{b}.{c}", 0.0) for c in ("yy", "yn", "ny", "nn")
            ]
            found = asdict(agreement(*cells))
            pair = found.pop("prevalence")
            out[f"{a}-{b}"] = {
                **found,
                "n": whole(found["n"]),
                "prevalence": dict(zip((a, b), pair, strict=True)) if pair else None,
            }
        return out

    def seed(self) -> dict[str, Any]:
        # Without token counts the seed's length cut cannot be applied.
        known = not self.sums.get("seed.unknown", 0.0)
        return {
            "flips": whole(self.found["seed_flips"].value),
            "verbalized": whole(self.found["seed_verbalized"].value),
            "rate": self.found["seed_rate"].value,
            "pairs": whole(self.sums.get("seed.pairs", 0.0)),
            "excluded": {
                reason: whole(self.sums.get(f"seed.excluded.{reason}", 0.0)) if known else None
                for reason in SEED_REASONS
            },
        }

    def samples(self, ks: Sequence[int] | None) -> dict[str, Repeated]:
        """Return what several samples a question say, for the arms that have them."""
        out = {}
        for arm in ARMS:
            by_question: dict[str, list[Record]] = defaultdict(list)
            for record in self.records:
                if record.arm_name == arm:
                    by_question[record.qid].append(record)
            repeated = over_questions(by_question.values(), ks)
            if repeated is not None:
                out[arm] = repeated
        return out


def whole(value: float | None) -> float | int | None:
    """Return a count as an int where it is one."""
    return int(value) if value is not None and float(value).is_integer() else value
