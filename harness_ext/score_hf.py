"""Scores that a journal makes resumable: lm-eval's own scoring, one batch at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from harness_ext.generate_hf import RULES
from harness_ext.journal import Entry, response_key
from harness_ext.journal_work import Work
from harness_ext.scored_rows import ScoredRows
from interventions.receipt import Receipt

Request = tuple[Any, list[int], list[int]]
Score = tuple[float, bool]


@dataclass(frozen=True)
class Scorer:
    """What scoring with a journal needs of the model.

    Attributes:
        work: from groups of requests, their keys and what is told of those that are read, to the
            work that remains.
        identity: digest of weights and tokenizer.
        intervention: fingerprint, or 'none'.
        dtypes: names of those that change a score and are not in the identity.
        grouped: whether requests that feed the same tokens share a row, as lm-eval does.
        score: lm-eval's scoring of some requests that fill one batch of so many rows.
        size: from the tokens of the longest row to the rows of a batch.
        receipt: gets the counts of the rows that are read.
    """

    work: Callable[..., Work[list[int]]]
    identity: str
    intervention: str
    dtypes: Sequence[str]
    grouped: bool
    score: Callable[[list[Request], int], list[Score]]
    size: Callable[[int], int]
    receipt: Receipt

    def run(
        self, requests: Sequence[Request], rows: ScoredRows, on_stored: Callable[[Any, Score], None]
    ) -> list[Score]:
        """Return the scores, in the order of the requests.

        Args:
            requests: lm-eval's triples of any key, context ids and continuation ids.
            rows: where the model leaves what each row counted.
            on_stored: told the key and score of each request that is read.

        Raises:
            JournalError: the journal cannot be read or written.
            ReceiptError: a batch was not edited as its tokens demand.
        """
        found: dict[int, Score] = {}

        def keys_of(members: list[int]) -> list[str]:
            return [self._key(requests[i]) for i in members]

        def stored(members: list[int], entries: list[Entry]) -> None:
            # They shared one row, which counted once.
            self.receipt.resume(entries[0].counts)
            for i, entry in zip(members, entries, strict=True):
                assert not isinstance(entry.response, str)
                found[i] = entry.response
                on_stored(requests[i][0], entry.response)
            bar.update(len(members))

        def size_of(left: Sequence[list[int]]) -> int:
            return self.size(1 + len(_fed(requests[left[0][0]])))

        with (
            tqdm(total=len(requests), desc="Running loglikelihood requests") as bar,
            self.work(self._groups(requests), keys_of, stored) as work,
        ):
            while batch := work.take(size_of):
                flat = [i for members in batch for i in members]
                scores = self.score([requests[i] for i in flat], len(batch))
                found |= dict(zip(flat, scores, strict=True))
                counts = [rows.counts(_fed(requests[members[0]])) for members in batch]
                work.finish(
                    batch,
                    [
                        [Entry(found[i], count) for i in members]
                        for members, count in zip(batch, counts, strict=True)
                    ],
                )
                bar.update(len(flat))
        return [found[i] for i in range(len(requests))]

    def _groups(self, requests: Sequence[Request]) -> list[list[int]]:
        """Return the requests of each row, longest row first, as lm-eval orders its batches."""
        groups: dict[Any, list[int]] = {}
        for i, request in enumerate(requests):
            fed = _fed(request)
            groups.setdefault(fed if self.grouped else (fed, i), []).append(i)

        def order(members: list[int]) -> tuple[int, tuple[int, ...]]:
            _, context, continuation = requests[max(members, key=lambda i: len(requests[i][2]))]
            return -len(context) - len(continuation), (*context, *continuation)

        return sorted(groups.values(), key=order)

    def _key(self, request: Request) -> str:
        _, context, continuation = request
        return response_key(
            backend="hf",
            model=self.identity,
            intervention=self.intervention,
            prompt=context,
            decoding={"rules": RULES, "dtypes": list(self.dtypes)},
            continuation=continuation,
        )


def _fed(request: Request) -> tuple[int, ...]:
    """Return what the model is fed; the last token is only predicted."""
    _, context, continuation = request
    return (*context, *continuation)[:-1]
