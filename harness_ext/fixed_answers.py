"""Answers that were fixed before the reasoning, and answers that needed it.

The answer is read twice from the logits of the option letters, behind the words "The correct answer
is (": once right after the question, and once after the model's own chain of thought. Where both
give the same letter, the answer was fixed; where they differ, the reasoning changed it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness_ext.choices import LETTERS
from harness_ext.contrasts import Choices, Sets
from harness_ext.corpora import load_corpus
from harness_ext.errors import DataError
from harness_ext.generation import Generation
from harness_ext.model_hf import SteeredHF
from harness_ext.prompts import render
from interventions.errors import FeatureError
from interventions.features.passages import Example
from interventions.subject import Subject
from interventions.train.progress import Progress

logger = logging.getLogger(__name__)

EXTRACTION = "The correct answer is ("
"""The notebook's own words."""
THINK_START, THINK_END = "<think>", "</think>"


@dataclass(frozen=True)
class FixedAnswer:
    """One question.

    Attributes:
        qid: id of the question.
        prompt: what the model read, through the chat template.
        response: its chain of thought, whole.
        truncated: whether the budget ended it.
        before: letter read before it.
        after: letter read after it.
        gold: the right letter.
    """

    qid: str
    prompt: str
    response: Generation
    truncated: bool
    before: str
    after: str
    gold: str

    @property
    def fixed(self) -> bool:
        """Whether the chain of thought left the answer as it was."""
        return self.before == self.after


def fixed_answers(
    subject: Subject,
    *,
    benchmark: str = "aqua",
    limit: int | None = None,
    max_new_tokens: int = 512,
    sample: bool = False,
    seed: int = 0,
    journal: Path | None = None,
    batch_size: int | str = "auto",
) -> list[FixedAnswer]:
    """Return the questions of a multiple-choice benchmark, answered before and after reasoning.

    Args:
        subject: the model.
        benchmark: id of one with options.
        limit: questions, the first ones.
        max_new_tokens: of a chain of thought.
        sample: at temperature 0.6 and top-p 0.95, as the notebook does; greedy if false.
        seed: of the samples.
        journal: folder that keeps the chains of thought, so that a killed run goes on.
        batch_size: rows at a time, or `auto`.

    Raises:
        DataError: the benchmark has no options.
        FeatureError: an option letter is no single token of the model.
    """
    from lm_eval.api.instance import Instance

    corpus = load_corpus(benchmark)
    if corpus.benchmark.kind != "choice":
        raise DataError(f"{benchmark} has no options to read logits of; use aqua or gpqa_diamond")
    rows = corpus.rows[:limit]
    lm = SteeredHF(
        pretrained=subject.model,
        tokenizer=subject.tokenizer,
        batch_size=batch_size,
        device=str(subject.device),
        seed=seed,
        journal=None if journal is None else str(journal),
    )
    prompts = [_prompt(lm, row) for row in rows]
    decoding: dict[str, Any] = {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False}
    if sample:
        decoding |= {"do_sample": True, "temperature": 0.6, "top_p": 0.95}
    requests = [
        Instance("generate_until", {"qid": row["qid"]}, (prompt, dict(decoding)), i)
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]
    responses: Any = lm.generate_until(requests)
    found = []
    with Progress("reading answers", len(rows), " questions") as bar:
        for number, (row, prompt, response) in enumerate(
            zip(rows, prompts, responses, strict=True), 1
        ):
            letters = LETTERS[: len(row["choices"])]
            before, after = (
                read_letter(lm, _closed(text) + EXTRACTION, letters)
                for text in (prompt, prompt + response + "\n")
            )
            cut = response.finish_reason == "length"
            found.append(
                FixedAnswer(row["qid"], prompt, response, cut, before, after, row["answer"])
            )
            bar.to(number)
    return found


@torch.inference_mode()
def read_letter(lm: SteeredHF, text: str, letters: Sequence[str]) -> str:
    """Return the letter with the highest logit as the next token of a text.

    Args:
        lm: the model.
        text: up to where the letter would stand.
        letters: of the options.

    Raises:
        FeatureError: a letter is no single token.
    """
    ids = []
    for letter in letters:
        encoded = lm.tokenizer(letter, add_special_tokens=False)["input_ids"]
        if len(encoded) != 1:
            raise FeatureError(
                f"option letter {letter} is {len(encoded)} tokens of this model; its answers cannot"
                f" be read from logits"
            )
        ids.append(encoded[0])
    row = torch.tensor([lm.tok_encode(text)], device=lm.device)
    logits = lm.model(input_ids=row, use_cache=False, logits_to_keep=1).logits[0, -1]
    return letters[int(logits[ids].argmax())]


def fixed_vs_needed(answers: Sequence[FixedAnswer], choices: Choices) -> Sets:
    """Return responses that changed the answer against responses that left it as it was.

    Responses that the budget ended are left out: their reasoning is not whole.

    Args:
        answers: of `fixed_answers`.
        choices: `benchmark` is named in the result.
    """
    sets: dict[bool, list[Example]] = {True: [], False: []}
    truncated = 0
    for one in answers:
        if one.truncated:
            truncated += 1
            continue
        about = {"before": one.before, "after": one.after, "gold": one.gold}
        sets[one.fixed].append(
            Example(
                group=one.qid,
                prompt=one.prompt,
                raw=True,
                reasoning=one.response.reasoning,
                final=one.response.final,
                about=about,
            )
        )
    right = {
        when: sum(getattr(one, when) == one.gold for one in answers) for when in ("before", "after")
    }
    about = {
        "benchmark": choices.benchmark,
        "questions": len(answers),
        "truncated": truncated,
        "fixed": len(sets[True]),
        "needed": len(sets[False]),
        "right_before": right["before"],
        "right_after": right["after"],
    }
    notes = []
    if truncated:
        notes.append(
            f"{truncated} of {len(answers)} chains of thought were cut by the budget and left out;"
            f" raise --max-new-tokens"
        )
    return Sets(sets[True], sets[False], about, part="response", notes=notes)


def _prompt(lm: SteeredHF, row: dict[str, Any]) -> str:
    message = render(row["question"], style="boxed", options=row["choices"])
    if not lm.tokenizer.chat_template:
        return message + "\n"
    return str(lm.apply_chat_template([{"role": "user", "content": message}]))


def _closed(text: str) -> str:
    """Return a text whose reasoning, if it is still open, is closed."""
    if text.rfind(THINK_START) > text.rfind(THINK_END):
        return f"{text.rstrip()}\n{THINK_END}\n\n"
    return text
