"""The examples of docs/vllm_server.md print what the page says."""

import itertools
import json
import re
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.vllm_server.server import KEY

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """Return every command of the page that has an output, in its order."""
    blocks = BLOCK.findall((ROOT / "docs/vllm_server.md").read_text(encoding="utf-8"))
    return [
        (code, shown)
        for (kind, code), (output, shown) in itertools.pairwise(blocks)
        if (kind, output) == ("python", "text") or (code.startswith("curl") and output == "json")
    ]


def plain(found: Any) -> Any:
    """Return what is the same for the page's server and for that of the tests.

    The latter is declared at one more hook point, before the page's, takes four edits and lists an
    SAE.
    """
    if "identity" in found:
        return sorted(found)
    for ranks in found.get("engines", []):
        for rank in ranks:
            rank.pop("hook_points")
            for rows in rank["requests"].values():
                for facts in rows:
                    facts["counts"] = list(facts["counts"].values())
    return found


@pytest.mark.real
def test_the_examples_print_what_the_page_says(server):
    pairs = examples()
    assert len(pairs) == 6
    for code, shown in pairs:
        code = code.replace("http://localhost:8000", server.url)
        if code.startswith("curl"):
            code = code.replace("curl -s", f"curl -s -H 'Authorization: Bearer {KEY}'", 1)
            command = ["bash", "-c", code]
        else:
            command = [sys.executable, "-c", code.replace('api_key="-"', f'api_key="{KEY}"')]
        run = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert run.returncode == 0, run.stderr
        if code.startswith("curl"):
            assert plain(json.loads(run.stdout)) == plain(json.loads(shown)), code
        else:
            assert run.stdout == shown, code
