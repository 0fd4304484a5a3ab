"""Files of an evaluation: the six CSV files of the published pipeline, a summary and a page."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness_ext.pages import Column, coloured, render, table
from harness_ext.sensitivity import measure, writer
from harness_ext.sensitivity.prompts import SEPARATOR, SYSTEM
from harness_ext.sensitivity.run import Evaluation, FeatureResult, settings_dict
from interventions.train.files import write_text

SUMMARY = "sensitivity.json"
PAGE = "sensitivity.html"
_SHOWN = 6
_ARMS = (
    "generated", "generated_new", "original", "control", "injection", "injection_baseline",
)  # fmt: skip


def write_csv(folder: Path, found: Evaluation, *, sae_name: str, eval_name: str, llm: str) -> None:
    """Write the six files, with the published names and columns.

    A feature without generated texts keeps its row in `feature_stats.csv`, with an empty cell.

    Args:
        folder: of this SAE.
        found: the evaluation.
        sae_name: column of the queries.
        eval_name: likewise.
        llm: the writer's name, for the status column.
    """
    folder.mkdir(parents=True, exist_ok=True)
    examples, subject = found.collected, found.subject
    listed = [
        (f, one.largest, text)
        for f in sorted(examples.examples)
        for one, text in zip(examples.examples[f], examples.texts[f], strict=True)
    ]
    _csv(folder / "feature_examples.csv", ("feature_index", "Top_act", "Sequence"), listed)
    _csv(
        folder / "generation_queries_with_responses.csv",
        (
            "sae_name", "eval_name", "feature_index", "system_prompt", "user_prompt", "separator",
            "num_per_call", "llm_response", "status",
        ),
        (
            (
                sae_name, eval_name, one.feature, SYSTEM, one.prompt, SEPARATOR,
                found.settings.per_call, SEPARATOR.join(one.texts),
                f"Success with {llm}" if one.texts else "Failed",
            )
            for one in found.written
        ),
    )  # fmt: skip
    _csv(
        folder / "generated_samples.csv",
        ("feature_index", "sample_index", "text"),
        ((o.feature, i, text) for o in found.written for i, text in enumerate(o.texts)),
    )
    shared = ("text_annotated", "text_clean", "tokenized_text", "max_activation", "all_activations")
    raw = {one.feature: one.texts for one in found.written}
    _csv(
        folder / "generated_samples_with_activations.csv",
        ("feature_index", "sample_index", *shared),
        (
            (r.feature, i, raw[r.feature][i], r.generated_texts[i], *_read(one))
            for r in found.results
            for i, one in enumerate(r.generated)
        ),
    )
    _csv(
        folder / "original_examples_with_activations.csv",
        ("feature_index", "Top_act", *shared),
        (
            (
                r.feature,
                examples.examples[r.feature][i].largest,
                examples.texts[r.feature][i],
                subject.tokenizer.decode(list(examples.examples[r.feature][i].ids)),
                *_read(one),
            )
            for r in found.results
            for i, one in enumerate(r.original)
        ),
    )
    _csv(
        folder / "feature_stats.csv",
        ("feature_index", "generated_sensitivity", "original_sensitivity"),
        (
            (r.feature, measure.rate(r.generated).value, measure.rate(r.original).value)
            for r in sorted(found.results, key=lambda r: r.feature)
        ),
    )


def summary(found: Evaluation, *, sae_name: str, text: Any, llm: Mapping[str, Any]) -> dict:
    """Return what was found, as plain data; undefined is None.

    Args:
        found: the evaluation.
        sae_name: of the SAE.
        text: what was read.
        llm: model and endpoint.
    """
    rows = [result.as_dict() for result in found.results]
    done = [row for row in rows if row["generated"]["n"]]
    # Replies from disk took their time in another run: no speed follows from this one's.
    total = 0.0 if found.usage.cached else sum(found.seconds.values())
    model = sum(found.seconds.get(part, 0.0) for part in ("text", "measure"))
    return {
        "kind": "sensitivity",
        "sae_name": sae_name,
        "subject": found.subject.describe(),
        "settings": settings_dict(found.settings),
        "text": text,
        "llm": {
            **llm,
            "estimate": vars(found.estimate),
            "usage": vars(found.usage),
            "calls_per_feature": sum(len(one.seen) for one in found.written) / len(rows)
            if rows
            else None,
            "tries": writer.counts(found.written),
            "cut": sum(one.cut for one in found.written),
        },
        "seconds": {k: round(v, 3) for k, v in found.seconds.items()},
        "features_per_hour": 3600 * len(rows) / total if total else None,
        "share_of_time_in_model": model / total if total else None,
        "n_features": len(rows),
        "n_without_texts": len(rows) - len(done),
        "mean": {arm: _mean([row[arm]["value"] for row in rows]) for arm in _ARMS},
        "pooled": {arm: _pooled(rows, arm) for arm in _ARMS},
        "copied": measure.Rate(
            sum(row["copied"] for row in rows), sum(row["generated"]["n"] for row in rows)
        ).as_dict(),
        "spearman": {
            name: _spearman([(row["generated"]["value"], row[name]) for row in rows])
            for name in ("density", "max_act")
        },
        "features": rows,
    }


def write_summary(folder: Path, data: Mapping[str, Any]) -> None:
    """Write the summary as JSON."""
    write_text(folder / SUMMARY, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def write_page(folder: Path, found: Evaluation, data: Mapping[str, Any]) -> None:
    """Write a page with every feature's rates and its texts, coloured by activation."""
    rows = [
        {
            "feature": row["feature"],
            "href": f"#f{row['feature']}",
            **{arm: row[arm]["value"] for arm in ("generated", "original", "control", "injection")},
            "low": row["generated"]["low"],
            "high": row["generated"]["high"],
            "n": row["generated"]["n"],
            "copied": row["copied"],
            "density": row["density"],
            "max_act": row["max_act"],
            "status": row["status"],
        }
        for row in data["features"]
    ]
    columns = [
        Column("feature", "feature", "number", digits=0, href="href"),
        Column("href", hidden=True),
        Column("generated", "sensitivity", "percent", help="Generated texts on which it fires."),
        Column("low", "from", "percent", help="Lower end of the 95 % Wilson interval."),
        Column("high", "to", "percent", help="Upper end."),
        Column("n", "texts", "number", digits=0),
        Column("copied", "copies", "number", digits=0, help="Texts that are an example again."),
        Column("original", "originals", "percent", help="The feature's own examples."),
        Column("control", "others' texts", "percent", help="Texts written for another feature."),
        Column("injection", "token alone", "percent", help="Its usual token in other contexts."),
        Column("density", "density", "percent", digits=3),
        Column("max_act", "largest", "number", digits=2),
        Column("status", "reply", "text", filter="select"),
    ]
    sections = [_section(found, result) for result in found.results]
    page = render(
        "sensitivity.html",
        title=f"Feature sensitivity of {data['sae_name']}",
        data=data,
        table=table(
            columns,
            rows,
            id="features",
            caption="Sensitivity of every feature",
            sort="generated",
            descending=True,
        ),
        sections=sections,
    )
    write_text(folder / PAGE, page)


def _section(found: Evaluation, result: FeatureResult) -> dict[str, Any]:
    def shown(reads: Sequence[measure.Read], name: str) -> list[Any]:
        lead = len(measure.front(found.subject))
        top = max((one.largest for one in (*result.generated, *result.original)), default=0.0)
        return [
            (
                f"{one.largest:.2f}",
                coloured(
                    measure.pieces(found.subject, one.ids[lead:]),
                    one.acts[lead:],
                    top=top,
                    name=f"{name} text {i + 1} of feature {result.feature}",
                ),
            )
            for i, one in enumerate(reads)
        ]

    return {
        "feature": result.feature,
        "rate": measure.rate(result.generated).as_dict(),
        "status": result.status,
        "token": result.injected_token,
        "generated": shown(result.generated, "generated"),
        "original": shown(result.original[:_SHOWN], "original"),
    }


def _csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    temporary = path.with_name(f".{path.name}")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream)
        out.writerow(columns)
        out.writerows(rows)
    temporary.replace(path)


def _read(one: measure.Read) -> tuple[list[int], float, list[float]]:
    return list(one.ids), one.largest, list(one.acts)


def _mean(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Return the mean over features that have a value, with a 95 % interval over features.

    There is no interval for one feature, nor where all are equal: a width of 0 would claim to know.
    """
    from scipy import stats

    some = [value for value in values if value is not None]
    n = len(some)
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    mean = sum(some) / n
    if len(set(some)) < 2:
        return {"value": mean, "low": None, "high": None, "n": n}
    spread = math.sqrt(sum((v - mean) ** 2 for v in some) / (n - 1) / n)
    half = float(stats.t.ppf(0.975, n - 1)) * spread
    return {"value": mean, "low": max(0.0, mean - half), "high": min(1.0, mean + half), "n": n}


def _pooled(rows: Sequence[Mapping[str, Any]], arm: str) -> dict[str, Any]:
    active, count = (sum(row[arm][key] for row in rows) for key in ("active", "n"))
    return measure.Rate(active, count).as_dict()


def _spearman(pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Return the rank correlation with a 95 % interval; None where ranks do not vary.

    Source: Bonett and Wright 2000, standard error of Fisher's z of Spearman's coefficient.
    """
    from scipy import stats

    some = [(a, b) for a, b in pairs if a is not None and b is not None]
    n = len(some)
    if n < 5 or len({a for a, _ in some}) < 2 or len({b for _, b in some}) < 2:
        return {"rho": None, "low": None, "high": None, "n": n}
    found: Any = stats.spearmanr([a for a, _ in some], [b for _, b in some])
    rho = float(found.statistic)
    z = math.atanh(max(-0.999999, min(0.999999, rho)))
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return {"rho": rho, "low": math.tanh(z - half), "high": math.tanh(z + half), "n": n}
