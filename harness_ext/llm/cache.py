"""Replies on disk, one file a request, named by the content of the request.

One small file that is put in place by a rename needs no lock: several processes may read and
write the same folder, also on a network file system. A file that was cut or changed does not
match its digest and counts as absent.
"""

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness_ext.llm.verdicts import Reply

log = logging.getLogger(__name__)
_LAYOUT = 1  # raised when what a file holds changes


def digest(content: Any) -> str:
    """Return the sha256 of a JSON value in its one canonical spelling."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ReplyCache:
    """A folder of replies; `corrupt` counts the entries that were found damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corrupt = 0

    def path(self, key: str) -> Path:
        """Return where the reply to the request with sha256 `key` is kept."""
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> Reply | None:
        """Return the reply to a request, or None if there is none that is whole."""
        path = self.path(key)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            entry = json.loads(raw)
            whole = entry["sha256"] == digest([entry["layout"], entry["key"], entry["reply"]])
            if whole and entry["layout"] == _LAYOUT and entry["key"] == key:
                return Reply.model_validate(entry["reply"])
        except (ValueError, KeyError, TypeError, ValidationError):
            pass
        self.corrupt += 1
        log.warning("%s is damaged; the request is sent again", path)
        return None

    def put(self, key: str, reply: Reply) -> None:
        """Keep the reply to a request; of two processes the last one wins, with a whole file."""
        body = reply.model_dump(mode="json")
        entry = {"layout": _LAYOUT, "key": key, "reply": body}
        entry["sha256"] = digest([_LAYOUT, key, body])
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made with mode 0600: traces may be private.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(entry, out)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
