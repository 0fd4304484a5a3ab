"""The scorers that ours is compared with, each as a function of gold answer and response.

lm-eval's are its own code, imported. The AIRI scorer cannot be imported (its folder is a fork of
lm-eval under the same name), so its rule is written down here, without its language model:
https://github.com/AIRI-Institute/SAE-Reasoning/blob/2cbfbff469eef1a64318c7076af9398fb6ab9e98/evaluation/lm-evaluation-harness/lm_eval/tasks/aime/utils.py#L175-L246
(MATH-500: `hendrycks_math/openai_utils.py`, the same rule; GPQA: `gpqa/openai/utils.py#L182-L237`).
"""

import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from scorer_responses import Response

Scorer = Callable[[Response], bool]

BATCHED: dict[str, Callable[[list[Response]], list[bool]]] = {}
ANSWER_PATTERN = r"(?i)Answer\s*:\s*(.*)"
GSM8K_IGNORED = [",", r"\$", r"(?s).*#### ", r"\.$"]


def ours() -> Scorer:
    """Return our scorer."""
    from harness_ext.verifier import score

    def judge(r: Response) -> bool:
        options = r.options or None
        return score(r.text, r.gold, kind=r.kind, truncated=False, options=options).correct

    return judge


def math_verify() -> Scorer:
    """Return math_verify as its README shows it: gold in dollar signs, the whole response."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return lambda r: verify(parse(f"${r.gold}$"), parse(r.text))


def peers(like: str) -> dict[str, Scorer]:
    """Return the scorers for a benchmark, by name; one that cannot be imported is left out."""
    found: dict[str, Scorer] = {"math_verify": math_verify()}
    if like == "math500":
        found |= _hendrycks() | _minerva()
    if like == "aime":
        found |= _aime()
    if like in ("math500", "aime"):
        found["AIRI"] = airi_math
    if like == "gsm8k":
        found |= _gsm8k()
    if like in ("gpqa", "aqua"):
        del found["math_verify"]  # it has no rule for letters in a box
        found |= _gpqa()
        found["AIRI"] = airi_gpqa
    return found


def missing() -> list[str]:
    """Return why scorers are left out, one line each."""
    try:
        _import_minerva()
    except (AssertionError, ImportError):
        return [
            f"lm-eval minerva_math: wants antlr4-python3-runtime 4.11, installed is "
            f"{version('antlr4-python3-runtime')}; "
            "pip install --no-deps --target DIR antlr4-python3-runtime==4.11.1, then PYTHONPATH=DIR"
        ]
    return []


def _hendrycks() -> dict[str, Scorer]:
    from lm_eval.tasks.hendrycks_math import utils

    def judge(r: Response) -> bool:
        doc = {"solution": f"\\boxed{{{r.gold}}}"}
        return bool(utils.process_results(doc, [r.text])["exact_match"])

    return {"lm-eval hendrycks_math500": judge}


def _import_minerva() -> Any:
    from lm_eval.tasks.minerva_math import utils

    return utils


def _minerva() -> dict[str, Scorer]:
    try:
        utils = _import_minerva()
    except (AssertionError, ImportError):
        return {}

    def judge(r: Response, metric: str) -> bool:
        doc = {
            "solution": f"\\boxed{{{r.gold}}}",
            "answer": utils.normalize_final_answer(r.gold),
        }
        return bool(utils.process_results(doc, [r.text])[metric])

    return {
        "lm-eval minerva_math exact_match": lambda r: judge(r, "exact_match"),
        "lm-eval minerva_math math_verify": lambda r: judge(r, "math_verify"),
    }


def _aime() -> dict[str, Scorer]:
    from lm_eval.tasks.aime import utils

    def judge(r: Response) -> bool:
        return bool(utils.process_results({"answer": r.gold}, [r.text])["exact_match"])

    return {"lm-eval aime": judge}


def _gsm8k() -> dict[str, Scorer]:
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    filters = {
        "lm-eval gsm8k strict-match": RegexFilter(r"#### (\-?[0-9\.\,]+)"),
        "lm-eval gsm8k flexible-extract": RegexFilter(
            r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1
        ),
    }

    def judge(r: Response, rule: RegexFilter) -> bool:
        (found,) = rule.apply([[r.text]], [{}])
        result = exact_match_hf_evaluate(
            predictions=found,
            references=[f"#### {r.gold}"],
            regexes_to_ignore=GSM8K_IGNORED,
            ignore_case=True,
        )
        return bool(result["exact_match"])

    return {name: (lambda r, rule=rule: judge(r, rule)) for name, rule in filters.items()}


def _gpqa() -> dict[str, Scorer]:
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import MultiChoiceRegexFilter, RegexFilter

    filters = {
        "lm-eval gpqa strict-match": RegexFilter("(?<=The answer is )(.*)(?=.)"),
        "lm-eval gpqa flexible-extract": MultiChoiceRegexFilter(
            r"(\([A-Z]\))", group_select=-1, ignore_case=True, ignore_punctuation=True
        ),
    }

    def judge_all(responses: list[Response], rule: RegexFilter) -> list[bool]:
        lettered = ["first", "second", "third", "fourth", "fifth"]
        docs = [{"choices": list(r.options) or lettered} for r in responses]
        results = [
            exact_match_hf_evaluate(
                predictions=found,
                references=[f"({r.gold})"],
                ignore_case=True,
                ignore_punctuation=True,
            )
            for found, r in zip(
                rule.apply([[r.text] for r in responses], docs), responses, strict=True
            )
        ]
        return [bool(result["exact_match"]) for result in results]

    scorers: dict[str, Scorer] = {}
    for name, rule in filters.items():
        scorers[name] = lambda r, rule=rule: judge_all([r], rule)[0]
        # lm-eval filters all responses of a task in one call, which prepares its tables once.
        BATCHED[name] = lambda responses, rule=rule: judge_all(responses, rule)
    return scorers


def airi_math(r: Response) -> bool:
    """Return the verdict of the AIRI rule for AIME and MATH-500 with no `PROCESSOR` set."""
    gold = str(int(r.gold)) if r.gold.isdigit() else r.gold
    answer = _airi_answer(r.text)
    answer = "0" if answer is None else answer
    if answer.isdigit() and gold.isdigit():
        answer = str(int(answer))
    return answer == gold


def airi_gpqa(r: Response) -> bool:
    """Return the verdict of the AIRI rule for GPQA with no `PROCESSOR` set."""
    answer = _airi_answer(r.text)
    answer = r.text if answer is None else answer
    return (answer.upper() if answer in ("a", "b", "c", "d") else answer) == r.gold


def _airi_answer(text: str) -> str | None:
    """Return what stands in the last box, or behind "Answer:" to the end of the text, or None."""
    from lm_eval.tasks.aime.utils import last_boxed_only_string, remove_boxed

    # The two functions are the same in the fork.
    if (box := last_boxed_only_string(text)) is not None:
        try:
            return remove_boxed(box)
        except AssertionError:
            return None  # \fbox{…} ends the fork's run with this error; here it is no answer
    found = re.findall(ANSWER_PATTERN, text, re.DOTALL)
    return found[-1] if found else None
