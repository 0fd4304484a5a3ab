"""Questions of `steer_arith`, specifications, and how two answers are compared."""

from typing import Any

from lm_eval.api.instance import Instance

MARGIN = 1e-3
"""Two tokens this close in log-probability may change places between implementations."""

MUSIC = 3036
CLAMP = {"op": "clamp", "feature": MUSIC, "strength": 1.0}
STRONG = {"op": "clamp", "feature": MUSIC, "strength": 2.0}
ADD = {"op": "add", "feature": MUSIC, "value": 60.0}


def spec(*edits: Any, **more: Any) -> dict[str, Any]:
    return {"sae": "default", "edits": list(edits), **more}


SPECS: dict[str, Any] = {
    "none": None,
    "all": spec(CLAMP),
    "generated": spec(ADD, positions="generated"),
    "prompt": spec(STRONG, positions="prompt"),
    "thinking": spec(STRONG, positions="thinking", think_start=" a", think_end="."),
    "two layers": spec(
        {"op": "add", "feature": MUSIC, "value": 25.0, "hook_point": "blocks.5.hook_resid_post"},
        {"op": "ablate", "feature": 100, "hook_point": "blocks.15.hook_resid_post"},
        check_model=False,
        median_norm={"blocks.5.hook_resid_post": 100.0},
    ),
}


def questions(lm: Any, n: int) -> list[tuple[str, dict[str, Any]]]:
    """Return prompts of `steer_arith` in the model's chat template, with their documents."""
    from lm_eval.tasks import TaskManager

    task: Any = TaskManager().load("steer_arith")["tasks"]["steer_arith"]
    docs = list(task.test_docs())[:n]
    return [
        (lm.apply_chat_template([{"role": "user", "content": task.doc_to_text(doc)}]), doc)
        for doc in docs
    ]


def ask(lm: Any, asked: list[tuple[str, dict[str, Any]]], repeats: int = 1, **kwargs: Any) -> Any:
    """Return the responses, by question, then by repeat."""
    kwargs = {"max_gen_toks": 32, "until": []} | kwargs
    requests = [
        Instance("generate_until", doc, (prompt, kwargs), index)
        for index, (prompt, doc) in enumerate(asked)
    ]
    repeated = [request for request in requests for _ in range(repeats)]
    found = lm.generate_until(repeated, disable_tqdm=True)
    return [found[i * repeats : (i + 1) * repeats] for i in range(len(requests))]


def facts(response: Any) -> tuple[Any, ...]:
    """Return everything a task sees of a response."""
    return (
        str(response),
        response.n_tokens,
        response.n_reasoning_tokens,
        response.finish_reason,
        response.seed,
        response.reasoning,
        response.final,
        response.intervention,
    )


def compare(hf: Any, asked: Any, ours: Any, theirs: Any) -> int:
    """Return how many responses differ, each after a near tie; anything else fails."""
    ties = 0
    for (prompt, _), (one,), (other,) in zip(asked, ours, theirs, strict=True):
        if facts(one) != facts(other):
            margin = margin_at_first_difference(hf, prompt, str(one), str(other))
            assert margin < MARGIN, (margin, facts(one), facts(other))
            ties += 1
    return ties


def margin_at_first_difference(hf: Any, prompt: str, one: str, other: str) -> float:
    """Return how far apart the two tokens are, where two responses part, in log-probability."""
    ids, others = (hf.tokenizer.encode(text, add_special_tokens=False) for text in (one, other))
    n = next((i for i, (a, b) in enumerate(zip(ids, others, strict=False)) if a != b), None)
    assert n is not None, "the same text, and not the same tokens, seed or end"
    start = hf.tok_batch_encode([prompt])[0][0].tolist() + ids[:n]
    pairs = [(None, start, [token]) for token in (ids[n], others[n])]
    (first, _), (second, _) = hf._loglikelihood_tokens(pairs, disable_tqdm=True)
    return abs(first - second)
