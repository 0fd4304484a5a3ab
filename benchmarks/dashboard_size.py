"""How large pages of features are, and how long they take to write, open, search and sort.

    python benchmarks/dashboard_size.py runs/facts --top 1000
    python benchmarks/dashboard_size.py --json > benchmarks/results/dashboard_size.json

Pages of a folder of facts (`sae-steered facts`), or without one of 1,000 made-up features in the
same layout. Opened from files in a headless Chromium, each `--rounds` times, in a new tab; load is
until the page's load event, use until the next frame is painted. Figures are medians and maxima.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness_ext.dashboards.build import write_dashboards
from harness_ext.dashboards.choose import choose
from interventions.features.facts_store import FactStore
from tests.browser import DESKTOP, PHONE, Browser, programs, start
from tests.harness_ext.dashboards.facts_folder import make_facts

_LOAD = """
const n = performance.getEntriesByType("navigation")[0];
return n.loadEventEnd - n.startTime;
"""
_USE = """
const [code, done] = arguments, began = performance.now();
new Function(code)();
requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() - began)));
"""
_SEARCH = """
const field = document.querySelector("[data-search]");
field.value = "w1";
field.dispatchEvent(new Event("input", {bubbles: true}));
"""
_SORT = "document.querySelectorAll('thead button')[0].click()"


def measure(store: FactStore, top: int, rounds: int, out: Path) -> dict[str, Any]:
    """Return figures of building and opening the pages of `top` features."""
    choice = choose(store, top=top)
    began = time.perf_counter()
    built = write_dashboards(store, choice, out)
    seconds = time.perf_counter() - began
    sizes = [(out / "features" / f"{f}.html").stat().st_size for f in choice.features]
    found: dict[str, Any] = {
        "pages": built.pages,
        "build_s": round(seconds, 2),
        "total_mb": round(built.bytes / 1e6, 2),
        "index_kb": round(built.index.stat().st_size / 1e3, 1),
        "page_kb": {"median": round(statistics.median(sizes) / 1e3, 1), "max": max(sizes) / 1e3},
    }
    if programs() is None:
        return {**found, "browser": "no Chromium here"}
    step = max(1, len(choice.features) // rounds)
    opened = [out / "features" / f"{f}.html" for f in choice.features[::step][:rounds]]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = start(profile)
        try:
            found["browser"] = browser.driver.capabilities["browserVersion"]
            for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
                found[f"index_load_ms_{name}"] = _opened(browser, [built.index] * rounds, size)
                found[f"page_load_ms_{name}"] = _opened(browser, opened, size)
            browser.open(built.index)
            for name, code in (("search", _SEARCH), ("sort", _SORT)):
                times = [browser.driver.execute_async_script(_USE, code) for _ in range(rounds)]
                found[f"index_{name}_ms"] = _summary(times)
            found["console"] = len(browser.console())
            found["requests_outside"] = len(browser.outside())
        finally:
            browser.driver.quit()
    return found


def _opened(browser: Browser, pages: list[Path], size: tuple[int, int]) -> dict[str, float]:
    times = []
    for page in pages:
        browser.open(page, size=size)
        times.append(browser.js(_LOAD))
    return _summary(times)


def _summary(times: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(times), 1), "max": round(max(times), 1)}


def main() -> int:
    """Return the exit status after printing the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("facts", type=Path, nargs="?", help="folder (default: made-up features)")
    parser.add_argument("--top", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9, help="openings (default: 9)")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = args.facts
        if facts is None:
            made = {"features": 1000, "vocabulary": 2000, "top": 20, "quantiles": 5, "each": 4}
            facts = make_facts(Path(folder) / "facts", **made)
        store = FactStore.open(facts)
        figures = measure(store, args.top, args.rounds, Path(folder) / "pages")
    figures |= {
        "facts": "made up" if args.facts is None else f"{store.info['tokens']} tokens",
        "sae": store.subject["sae_label"],
        "d_sae": store.d_sae,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
    }
    if args.json:
        print(json.dumps(figures, indent=1))
    else:
        for name, value in figures.items():
            print(f"{name:24} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
