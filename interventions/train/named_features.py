"""Features that visibly change what the model writes, found and measured against random ones.

A feature that fires just BEFORE a kind of word promotes it; one that fires ON the word mostly
does not, but for topics, of which there is more to say. So candidates are ranked by what comes
next where they fire (for topics, by where they fire), and then judged only by short greedy
answers with the feature clamped, beside random features pushed equally hard.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interventions.backends.hf import HFSteering, token_facts
from interventions.plan import ModelFacts, make_plan
from interventions.spec import EditSpec, InterventionSpec, SAERef
from interventions.train.files import read_tensors
from interventions.train.generate import chat_tokens
from interventions.train.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from interventions.sae.core import SAE

PROMPTS = (
    "What is a rainbow?",
    "How do I make a good cup of tea?",
    "Tell me about your favorite animal.",
    "Why is the sky blue?",
    "Write a few sentences about winter.",
    "How can I fall asleep faster?",
    "What should I cook tonight?",
    "Describe a city in the future.",
    "What is the use of mathematics?",
    "A shop sells 12 pens for 6 dollars. How much is one pen?",
    "Give me some advice for a new job.",
    "Who was Isaac Newton?",
)
"""Chat prompts that the features are measured on; none of them is a training template."""

_WORDS: dict[str, str] = {
    "but": "but however although though yet while",
    "because": "because since so therefore thus hence",
    "I": "i i'm i've my me myself",
    "you": "you your you're yourself",
    "we": "we our us let's",
    "not": "not no never cannot n't don't isn't nothing",
    "maybe": "may might could perhaps possibly maybe seems likely",
    "steps": "first second third next then finally step steps",
    "example": "example instance examples",
    "sorry": "sorry apologize unfortunately regret",
    "question words": "what why how who where when which",
    "teacher": "teacher teachers professor student students school class",
    "important": "important essential crucial key significant vital",
}
_TOPICS: dict[str, str] = {
    "love": "love heart joy happy happiness hope beautiful",
    "sea": "sea ocean water waves wave ship sailor sailors harbor beach fish island river",
    "music": "music song songs sing singing melody piano violin musician dance jazz sound sounds",
    "animals": "animal animals cat cats dog dogs fox bird birds wolf bear bees horse creature",
    "food": "food cook cooking soup bread rice cheese recipe sugar salt delicious flavor eat taste",
    "space": "space star stars moon sun planet planets galaxy universe earth telescope comet mars",
    "war": "war battle army soldier soldiers fight enemy king queen knight sword castle empire",
    "machines": "robot robots machine machines computer computers engine technology software",
    "money": "money dollar dollars price prices cost costs bank banks tax taxes pay trade market",
}
_MARKS: dict[str, str] = {
    "question mark": "?",
    "exclamation mark": "!",
    "new line": "\n",
    "quotation mark": '"',
    "bold": "**",
    "code": "`",
    "colon": ":",
    "equals": "=",
    "bracket": "(",
    "dash": "-",
}


def token_classes(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Tensor]:
    """Return for each kind of token a bool mask over the vocabulary, `(vocab,)`."""
    texts = [str(tokenizer.decode([i])) for i in range(len(tokenizer))]
    special = set(tokenizer.all_special_ids)
    tests: dict[str, Callable[[str], bool]] = {"digit": lambda t: t.strip().isdigit()}
    for name, mark in _MARKS.items():
        tests[name] = lambda t, mark=mark: mark in t
    for name, words in (_WORDS | _TOPICS).items():
        known = frozenset(words.split())
        tests[name] = lambda t, known=known: t.strip().lower() in known
    return {
        name: torch.tensor([i not in special and test(t) for i, t in enumerate(texts)])
        for name, test in tests.items()
    }


def rank_features(
    sae: "SAE", chunks: Sequence[Path], classes: Mapping[str, Tensor], limit: float | None
) -> dict[str, Tensor]:
    """Return for each class `(d_sae,)`: the share of a feature's activation at the class.

    "At" is the token itself for topics, and the token before it for the other classes.

    Args:
        sae: whose features are ranked.
        chunks: files of the harvest step.
        classes: masks over the vocabulary.
        limit: residual norm above which a token is a sink and is left out; None keeps all.
    """
    members = torch.stack(list(classes.values())).float()
    on_it = torch.tensor([name in _TOPICS for name in classes])[:, None]
    share = torch.zeros(len(classes), sae.d_sae)
    total = torch.zeros(sae.d_sae)
    with Progress("rank", len(chunks), "chunk") as bar:
        for number, path in enumerate(chunks, start=1):
            stored = read_tensors(path)
            tokens = stored["tokens"].long()
            last = stored["lengths"].long().cumsum(0) - 1
            usable = stored["norms"] <= (float("inf") if limit is None else limit)
            usable[last] = False  # the next token belongs to another row
            where = usable.nonzero()[:, 0]
            for part in where.split(4096):
                acts = sae.encode(stored["acts"][part].float())
                here, following = members[:, tokens[part]], members[:, tokens[part + 1]]
                share += torch.where(on_it, here, following) @ acts
                total += acts.sum(0)
            bar.to(number)
    return dict(zip(classes, share / total.clamp(min=1e-6), strict=True))


@dataclass(frozen=True)
class Answers:
    """Greedy answers under one intervention; `tokens (prompts, new tokens)`."""

    tokens: Tensor
    nats: float

    def rate(self, members: Tensor) -> float:
        """Return the share of generated tokens that belong to a class."""
        return float(members[self.tokens].float().mean())

    def distinct_2(self) -> float:
        """Return the mean share of different bigrams in an answer; low where it repeats."""
        shares = []
        for row in self.tokens.tolist():
            pairs = list(pairwise(row))
            shares.append(len(set(pairs)) / len(pairs))
        return sum(shares) / len(shares)


class Lab:
    """A loaded model and an SAE to clamp features of."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        sae_folder: Path,
        new_tokens: int = 40,
    ) -> None:
        """Encode the prompts; every answer is `new_tokens` long, wherever the model would stop."""
        self.model, self.tokenizer, self.new_tokens = model, tokenizer, new_tokens
        self._ref = SAERef(path=str(sae_folder))
        self._prompts = [chat_tokens(tokenizer, text) for text in PROMPTS]
        self._width = max(map(len, self._prompts))
        pad = int(model.generation_config.pad_token_id or 0)
        self._ids = torch.tensor([[pad] * (self._width - len(p)) + p for p in self._prompts])
        start = torch.tensor([self._width - len(p) for p in self._prompts])
        self._start = start
        self._mask = (torch.arange(self._width) >= start[:, None]).long()

    @torch.inference_mode()
    def answers(self, edit: EditSpec | None) -> Answers:
        """Return the answers with one edit at every token, or without; the receipt is checked.

        Raises:
            ReceiptError: another number of tokens was edited than there are.
        """
        spec = InterventionSpec(
            sae=self._ref, edits=() if edit is None else (edit,), check_model=False
        )
        config = self.model.config
        facts = ModelFacts("the model", config.hidden_size, config.num_hidden_layers)
        plan = make_plan(spec, facts)
        tokens = token_facts(self.tokenizer, spec, needs_thinking=False)
        stop = self.model.generation_config.eos_token_id
        with HFSteering(self.model, plan, tokens) as steering:
            if plan.layers:
                steering.begin(self._start, torch.full_like(self._start, self._width))
            out = self.model.generate(  # pyright: ignore[reportCallIssue]
                self._ids,
                attention_mask=self._mask,
                do_sample=False,
                max_new_tokens=self.new_tokens,
                suppress_tokens=[stop] if isinstance(stop, int) else stop,
            )
            new = out[:, self._width :]
            if plan.layers:
                steering.check(self._prompts, [row[:-1] for row in new.tolist()])
        return Answers(new, self._surprise(out))

    def _surprise(self, whole: Tensor) -> float:
        """Return nats a token that the unsteered model gives the answers; high where broken."""
        mask = torch.cat([self._mask, torch.ones(len(whole), self.new_tokens).long()], dim=1)
        position = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(input_ids=whole, attention_mask=mask, position_ids=position).logits
        kept = logits[:, self._width - 1 : -1].float()
        new = whole[:, self._width :]
        return float(torch.nn.functional.cross_entropy(kept.flatten(0, 1), new.flatten()))

    def text(self, answers: Answers, prompt: int) -> str:
        """Return one answer as text."""
        return str(self.tokenizer.decode(answers.tokens[prompt]))


def clamp(feature: int, value: float) -> EditSpec:
    """Return the edit that sets a feature to `value` (residual units) at every token."""
    return EditSpec(op="clamp", feature=feature, value=value, unit="residual")


def search(
    lab: Lab,
    shares: Mapping[str, Tensor],
    classes: Mapping[str, Tensor],
    stats: Mapping[str, Tensor],
    *,
    per_class: int,
    strength: float,
    density: tuple[float, float] = (1e-4, 0.05),
) -> list[dict[str, Any]]:
    """Return candidates, best first, each with the change of its class at one strength.

    Args:
        lab: model, prompts and SAE.
        shares: of `rank_features`.
        classes: masks over the vocabulary.
        stats: of the SAE, `max_act` and `density`.
        per_class: candidates that are tried for each class.
        strength: multiplies `max_act`.
        density: only features that fire on a share of tokens between these two.
    """
    usable = (stats["density"] >= density[0]) & (stats["density"] <= density[1])
    base = lab.answers(None)
    found = []
    with Progress("search", len(classes) * per_class, "feature") as bar:
        for name, share in shares.items():
            best = torch.where(usable, share, -1.0).topk(per_class).indices.tolist()
            for feature in best:
                value = strength * float(stats["max_act"][feature])
                steered = lab.answers(clamp(feature, value))
                found.append(
                    {
                        "class": name,
                        "feature": feature,
                        "share": float(share[feature]),
                        "rate_base": base.rate(classes[name]),
                        "rate": steered.rate(classes[name]),
                        "distinct_2": steered.distinct_2(),
                        "nats": steered.nats,
                    }
                )
                bar.to(len(found))
    return sorted(found, key=lambda c: c["rate_base"] - c["rate"])


def measure(
    lab: Lab,
    feature: int,
    members: Tensor,
    stats: Mapping[str, Tensor],
    strength: float,
    *,
    controls: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the effect of one feature and of random live features pushed equally hard.

    Decoder rows have length 1, so the same target in residual units is the same push.

    Args:
        lab: model, prompts and SAE.
        feature: index.
        members: mask of the class that the feature promotes.
        stats: `max_act` and `count` of every feature.
        strength: multiplies `max_act`.
        controls: number of random features.
        seed: of their choice.
    """
    value = strength * float(stats["max_act"][feature])
    live = (stats["count"] > 0).nonzero()[:, 0].tolist()
    others = random.Random(seed).sample([f for f in live if f != feature], controls)
    base, steered = lab.answers(None), lab.answers(clamp(feature, value))
    control = [lab.answers(clamp(other, value)) for other in others]
    rates = [answers.rate(members) for answers in control]
    return {
        "measured": {
            "max_act": float(stats["max_act"][feature]),
            "value": value,
            "tokens": steered.tokens.numel(),
            "rate_base": base.rate(members),
            "rate": steered.rate(members),
            "distinct_2_base": base.distinct_2(),
            "distinct_2": steered.distinct_2(),
            "nats_base": base.nats,
            "nats": steered.nats,
            "example_base": lab.text(base, 0),
            "example": lab.text(steered, 0),
        },
        "random_control": {
            "features": others,
            "rates": rates,
            "rate_mean": sum(rates) / len(rates),
            "rate_max": max(rates),
            "distinct_2_mean": sum(a.distinct_2() for a in control) / len(control),
            "nats_mean": sum(a.nats for a in control) / len(control),
        },
    }
