"""One batch of generation with a Hugging Face model: from jobs to responses and their counts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from harness_ext.journal import Entry, response_key
from harness_ext.requests import Decoding, Job
from harness_ext.responses import build_response
from harness_ext.sampling import response_seed, sampling_processors
from harness_ext.stopping import Delimiters, RowStopper
from interventions.backends.hf import HFSteering
from interventions.fingerprint import digest

RULES = 1
"""Raised whenever sampling, stopping or splitting changes, so that no old response is resumed."""

_NOT_OF_A_RESPONSE = frozenset({"max_new_tokens", "transformers_version", "use_cache"})


@dataclass(frozen=True)
class Generator:
    """What a batch needs of the model.

    Attributes:
        model: the causal language model.
        tokenizer: the model's.
        identity: digest of weights and tokenizer, for the journal.
        steering: active hooks.
        intervention: fingerprint, or 'none'.
        delimiters: of the model's reasoning.
        device: where the model's inputs go.
        autocast: dtype of mixed precision, or None.
    """

    model: Any
    tokenizer: Any
    identity: str
    steering: HFSteering
    intervention: str
    delimiters: Delimiters
    device: torch.device
    autocast: torch.dtype | None

    def keys_of(self, decoding: Decoding) -> Callable[[Job], list[str]]:
        """Return the function from a job to the journal key of its response."""
        config = json.loads(decoding.config.to_json_string(use_diff=True))
        same = {
            "rules": RULES,
            "until": list(decoding.until),
            "sampling": decoding.sampling and dict(decoding.sampling),
            "options": {k: v for k, v in config.items() if k not in _NOT_OF_A_RESPONSE},
            "delimiters": [self.delimiters.start, self.delimiters.end],
            "autocast": str(self.autocast),
        }

        def keys(job: Job) -> list[str]:
            own = {
                "max_tokens": job.budget(decoding.max_new_tokens),
                "opened": self.delimiters.left_open(job.prompt),
            }
            key = response_key(
                backend="hf",
                model=self.identity,
                intervention=self.intervention,
                prompt=job.ids,
                decoding={**same, **own},
                seed=_seed(job, decoding),
            )
            return [key]

        return keys

    def run(self, batch: Sequence[Job], decoding: Decoding) -> list[Entry]:
        """Return the responses of a batch, longest prompt first, with what each row counted.

        Raises:
            ReceiptError: the batch was not edited as its tokens demand.
        """
        budgets = [job.budget(decoding.max_new_tokens) for job in batch]
        seeds = [_seed(job, decoding) for job in batch]
        decoding.config.max_new_tokens = max(budgets)
        processors = None
        if decoding.sampling is not None:
            processors = sampling_processors(
                dict(decoding.sampling),
                [seed for seed in seeds if seed is not None],
                max(budgets),
                self.device,
            )
        width = len(batch[0].ids)
        pad = self.tokenizer.pad_token_id
        left = [width - len(job.ids) for job in batch]
        ids = torch.tensor(
            [[pad] * n + list(job.ids) for n, job in zip(left, batch, strict=True)],
            device=self.device,
        )
        start = torch.tensor(left, device=self.device)
        mask = (torch.arange(width, device=self.device) >= start.unsqueeze(1)).long()
        opened = [self.delimiters.left_open(job.prompt) for job in batch]
        self.steering.begin(start, torch.full_like(start, width))
        stopper = RowStopper(
            self.tokenizer,
            prompt_width=width,
            eos_ids=decoding.config.eos_token_id or (),
            until=decoding.until,
            delimiters=self.delimiters,
            opened=opened,
            budgets=budgets,
            on_finish=self.steering.finish_rows,
        )
        with torch.autocast(
            device_type=self.device.type, dtype=self.autocast, enabled=self.autocast is not None
        ):
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=decoding.config,
                stopping_criteria=transformers.StoppingCriteriaList([stopper]),
                logits_processor=processors,
            )
        new = [row[: stopper.n_tokens[i]] for i, row in enumerate(output[:, width:].tolist())]
        counts = self.steering.check([job.ids for job in batch], [row[:-1] for row in new])
        responses = [
            build_response(
                self.tokenizer,
                row,
                until=decoding.until,
                delimiters=self.delimiters,
                opened=opened[i],
                finish_reason=stopper.reasons[i],
                seed=seeds[i],
                intervention=self.intervention,
            )
            for i, row in enumerate(new)
        ]
        return [Entry(*pair) for pair in zip(responses, counts, strict=True)]


def _seed(job: Job, decoding: Decoding) -> int | None:
    if decoding.sampling is None:
        return None
    return response_seed(decoding.seed, job.seed_key, job.repeat)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return 16 hex digits that change with whatever turns text into ids or ids into text."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        # Left over from the last call, and given anew with every call.
        content = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
    else:
        content = sorted(tokenizer.get_vocab().items())
    kind = f"{type(tokenizer).__module__}.{type(tokenizer).__name__}"
    clean = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    return digest([kind, content, sorted(tokenizer.all_special_tokens), clean])
