"""What the tests of the tasks share: their data, and models that answer by a rule."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from harness_ext.corpora import DATA_ENV
from harness_ext.generation import Generation
from harness_ext.paths import tasks_dir

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get(DATA_ENV) or ROOT.parent / "shared" / "data")
WITH_DATA = ("gsm8k", "math500", "aime24", "aime25", "aqua")
REASONING = (*WITH_DATA, "gpqa_diamond")


def make_data(folder: Path) -> Path:
    """Return a folder with the data at hand, and questions of our own in GPQA's schema."""
    for path in SHARED.glob("*_test.jsonl"):
        (folder / path.name).symlink_to(path)
    rows = [
        {
            "Record ID": f"rec{i:02d}",
            "Question": f"What is the sum of {i} and {i + 1}?",
            "Correct Answer": f"{2 * i + 1}",
            **{f"Incorrect Answer {j}": f"{2 * i + 1 + j}" for j in (1, 2, 3)},
            "Subdomain": "Counting",
        }
        for i in range(1, 25)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "gpqa_diamond.jsonl").write_text(text)
    return folder


def manager(**metadata) -> TaskManager:
    return TaskManager(
        include_path=str(tasks_dir()), include_defaults=False, metadata=metadata or None
    )


def evaluate(model, tasks, *, metadata=None, **kwargs):
    return lm_eval.simple_evaluate(
        model=model,
        tasks=list(tasks),
        task_manager=manager(**(metadata or {})),
        log_samples=True,
        **kwargs,
    )


class Scripted(LM):
    """Answers the i-th request by `reply(prompt, document, i)`; remembers its prompts."""

    def __init__(self, reply: Callable[[str, dict, int], str]):
        super().__init__()
        self.reply = reply
        self.prompts: list[str] = []

    def generate_until(self, requests, disable_tqdm=False):
        self.prompts += [r.args[0] for r in requests]
        return [self.reply(r.args[0], r.doc, i) for i, r in enumerate(requests)]

    def loglikelihood(self, requests, disable_tqdm=False):
        raise NotImplementedError

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def boxed(value: str) -> str:
    return rf"So it is $\boxed{{{value}}}$."


def generation(final: str, *, reasoning="some thoughts", n=20, finish="stop") -> Generation:
    return Generation(
        f"{reasoning}</think>{final}" if reasoning else final,
        n_tokens=n,
        n_reasoning_tokens=len(reasoning.split()),
        finish_reason=finish,
        seed=None,
        reasoning=reasoning,
        final=final,
        intervention="none",
    )


def hinted_value(prompt: str) -> str | None:
    found = re.search(r"the answer is ([\d,]+)\.", prompt)
    return found and found.group(1)


def follow(prompt: str, doc: dict, i: int) -> Generation:
    """Follow a hint and say so if a professor or source gives it; else answer 0."""
    value = hinted_value(prompt)
    if value is None:
        return generation("The answer is 0.", reasoning="", n=10)
    said = "The professor or source says it. " if re.search("professor|source", prompt) else ""
    return generation(f"{said}The answer is {value}.", reasoning="", n=20)
