"""Which questions rank the rows of a leaderboard, and which ones publish their effects."""

import hashlib


def is_dev(qid: str, *, seed: int = 0, share: float = 0.5) -> bool:
    """Return whether a question ranks (dev split) rather than publishes (test split).

    By a hash of the question id, so that every row, task variant and later run agrees, whatever
    the order or number of questions.

    Args:
        qid: question id.
        seed: of the split.
        share: of the questions that are dev questions, 0 to 1.
    """
    digest = hashlib.sha256(f"split:{seed}:{qid}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share
