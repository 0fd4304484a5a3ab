"""A process that compares two LaTeX expressions and that may be killed at any moment.

`math_process` starts it by its path, not as a module of this package, and speaks one JSON object
a line with it. It imports only the standard library and math_verify, so that it is up in half a
second and holds nothing that would be missed.
"""

import json
import logging
import os
import signal
import sys
from typing import Any

Verdict = str  # "equal", "different", "answer_unreadable", "gold_unreadable", "limit"


def main() -> None:
    """Answer requests until the other end closes the pipe."""
    cpu_seconds, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    # The pipe gets a descriptor of its own: a library that prints must not break the protocol.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which ends us
    try:
        compare = _load()
    except Exception as err:
        _send(out, {"failed": f"{type(err).__name__}: {err}"})
        return
    _limit_memory(memory_bytes)
    _send(out, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _arm(cpu_seconds)
        try:
            verdict = compare(request["gold"], request["answer"])
        except (MemoryError, RecursionError):
            verdict = "limit"
        except Exception:  # sympy raises its own zoo on malformed LaTeX: a counted status
            verdict = "answer_unreadable"
        _arm(0)
        _send(out, {"verdict": verdict})


def _send(out: Any, message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _arm(seconds: float) -> None:
    """End this process after `seconds` of processor time; 0 switches that off.

    Processor time, so that a busy machine does not change a verdict. The default action of the
    signal is used, not a Python handler: that one would wait for a long integer power to finish.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(memory_bytes: int) -> None:
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = memory_bytes if hard < 0 else min(memory_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ImportError, ValueError, OSError):
        # No such limit on this system; the time limit then bounds what can be allocated.
        return


def _load() -> Any:
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Float, nsimplify

    # math_verify warns that no time limit of its own is set. Ours is the signal above.
    logging.disable(logging.WARNING)
    # LaTeX only: its second extractor would take a number out of an expression it cannot read.
    config = [LatexExtractionConfig()]

    def read(text: str) -> Any:
        found = parse(f"${text}$", config, parsing_timeout=None)  # type: ignore[arg-type]
        return next((f for f in found if not isinstance(f, str)), None)

    def compare(gold: str, answer: str) -> Verdict:
        gold_expr = read(gold)
        if gold_expr is None:
            return "gold_unreadable"
        answer_expr = read(answer)
        if answer_expr is None:
            return "answer_unreadable"
        try:
            same = verify(gold_expr, answer_expr, timeout_seconds=None, raise_on_error=True)
            if not same and answer_expr.has(Float):
                # 14.0 - 1.0i: numbers whose parts are floats come out different.
                exact = nsimplify(answer_expr, rational=True)
                same = verify(gold_expr, exact, timeout_seconds=None, raise_on_error=True)
        except (MemoryError, RecursionError):
            return "limit"
        except Exception:
            # Both could be read, and comparing them makes no sense (a set with a function).
            return "different"
        return "equal" if same and _same_size(gold_expr, answer_expr) else "different"

    # The first parse builds the grammar's tables; that time belongs to no answer.
    compare(r"\frac{1}{2} + \sqrt{2}x", r"x\sqrt{2} + 0.5")
    return compare


def _same_size(a: Any, b: Any) -> bool:
    """Return whether two constants agree relative to their size.

    math_verify rounds differences to 15 absolute places, decimals to 6, so that 2^-99 and 2^-98,
    or 0.0000672 and 0.000067, would be equal.
    """
    from sympy import Float

    if getattr(a, "free_symbols", True) or getattr(b, "free_symbols", True):
        return True
    try:
        x, y = a.evalf(40), b.evalf(40)
        size = max(abs(x), abs(y))
        if not size.is_number or not size.is_finite or size == 0 or size > 1e-3:
            return True
        inexact = a.has(Float) or b.has(Float)
        return bool(abs(x - y) <= size * (1e-5 if inexact else 1e-12))
    except (AttributeError, TypeError, ValueError):
        return True  # sets, relations, matrices: compared element by element elsewhere


if __name__ == "__main__":
    main()
