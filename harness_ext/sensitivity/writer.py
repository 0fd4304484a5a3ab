"""New texts from an LLM: one request a feature, asked again where nothing came, all counted."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness_ext.llm.session import Session, Usage, run_batch
from harness_ext.llm.settings import LLMSettings
from harness_ext.llm.transport import Ask
from harness_ext.llm.verdicts import Reply
from harness_ext.sensitivity.prompts import SYSTEM, parse, user_prompt

TEMPERATURE = 1.0
Status = Literal["ok", "short", "long", "empty", "refused", "malformed"]
"""`short` and `long` brought texts, fewer or more than were asked for; the last three none."""


@dataclass(frozen=True)
class Written:
    """What came of one feature.

    Attributes:
        feature: index.
        prompt: the user's message.
        reply: the last one, as it came; '' where there was none that could be read.
        texts: what it holds.
        status: how it ended.
        seen: every try's status, the last one included.
        cut: tries whose reply ended at the limit of tokens, within a text.
    """

    feature: int
    prompt: str
    reply: str
    texts: tuple[str, ...]
    status: Status
    seen: tuple[Status, ...]
    cut: int = 0


@dataclass(frozen=True)
class Estimate:
    """What the requests will cost at least, before any is sent.

    Attributes:
        calls: requests, one a feature.
        prompt_tokens: of all of them, by the studied model's tokenizer.
        completion_tokens: of replies as long as the examples.
    """

    calls: int
    prompt_tokens: int
    completion_tokens: int


def prompts(examples: Mapping[int, Sequence[str]], number: int) -> dict[int, str]:
    """Return the user's message of every feature that has examples."""
    return {f: user_prompt(texts, number) for f, texts in examples.items() if texts}


def estimate(
    asked: Mapping[int, str],
    examples: Mapping[int, Sequence[str]],
    number: int,
    tokens: Callable[[str], int],
) -> Estimate:
    """Return what asking costs, if every first reply is good.

    Args:
        asked: of `prompts`.
        examples: the texts in them.
        number: texts a reply.
        tokens: of a text.
    """
    system = tokens(SYSTEM)
    replies = 0.0
    for feature in asked:
        lengths = [tokens(text) for text in examples[feature]]
        replies += (number + 1) * (sum(lengths) / len(lengths) + 6)
    return Estimate(
        len(asked),
        sum(system + tokens(prompt) for prompt in asked.values()),
        round(replies),
    )


def write(
    asked: Mapping[int, str],
    settings: LLMSettings,
    *,
    number: int,
    attempts: int,
    progress: bool = True,
) -> tuple[list[Written], Usage]:
    """Return what the LLM wrote for every feature, in their order, and what it cost.

    Replies are kept on disk, so that the same call after a kill asks for the rest alone.

    Args:
        asked: feature to the user's message.
        settings: the endpoint.
        number: texts wanted of each.
        attempts: requests for one feature at most, where they bring no text.
        progress: show a bar.

    Raises:
        LLMRequestError: the endpoint refused, or did not answer.
    """

    def job(feature: int, prompt: str):
        async def run(session: Session) -> Written:
            return await _one(session, feature, prompt, number, attempts)

        return run

    jobs = [job(feature, prompt) for feature, prompt in asked.items()]
    return run_batch(settings, jobs, label="write", progress=progress, unit="feature")


async def _one(session: Session, feature: int, prompt: str, number: int, attempts: int) -> Written:
    seen: list[Status] = []
    text, found, cut = "", [], 0
    messages = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt})
    for sample in range(attempts):
        reply = await session.ask(Ask(messages, None, temperature=TEMPERATURE, sample=sample))
        text, found = "", []
        if not isinstance(reply, Reply):
            seen.append("malformed")
            continue
        text = reply.text
        cut += reply.finish_reason == "length"
        found = parse(text, number)
        if found:
            full = "ok" if len(found) == number else "short" if len(found) < number else "long"
            seen.append(full)
            break
        seen.append("refused" if reply.refusal else "empty")
    return Written(feature, prompt, text, tuple(found), seen[-1], tuple(seen), cut)


def counts(written: Sequence[Written]) -> dict[str, int]:
    """Return how many tries ended how, over all features."""
    return dict(sorted(Counter(status for one in written for status in one.seen).items()))
