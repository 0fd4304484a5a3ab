"""Records of hint tasks made up for tests of metrics."""

from harness_ext.records import Record

SAYS = "A trusted source gives this."


def response(qid, arm="none", answer="5", *, gold="7", says=False, status=None, **extra):
    status = status or ("answered" if answer is not None else "no_answer")
    sign = arm if arm in ("correct", "wrong") else None
    default_target = gold if sign == "correct" else "9"
    target = extra.pop("target", default_target) if sign else None
    return Record(
        task=extra.pop("task", "steer_gsm8k_hint"),
        qid=qid,
        arm="hint" if sign else arm,
        hint_id=None if arm == "none" else extra.pop("hint_id", "seed_source"),
        hint_sign=sign,
        hint_target=target,
        gold=gold,
        answer=answer if status == "answered" else None,
        status=status,
        correct=status == "answered" and answer == gold,
        n_tokens=extra.pop("n_tokens", 100),
        finish_reason="length" if status == "truncated" else "stop",
        reasoning="",
        final=f"{SAYS if says else ''} The answer is {answer}.",
        **extra,
    )


def run(n, flips, said, *, sign="wrong", prefix="q", **extra):
    """`n` questions answered 5 without a hint; the first `flips` follow it, `said` say so."""
    records = []
    for i in range(n):
        follows = i < flips
        target = "7" if sign == "correct" else "9"
        records.append(response(f"{prefix}{i:03d}", **extra))
        records.append(
            response(f"{prefix}{i:03d}", sign, target if follows else "5", says=i < said, **extra)
        )
    return records


def only(summary):
    (by_intervention,) = summary.values()
    (values,) = by_intervention.values()
    return values
