r"""Feature sensitivity: does a feature respond to what it seems to mean?

    sae-steered sensitivity --text docs:stdlib --total-tokens 50000 --features 20 \
        --base-url http://localhost:8000/v1 --llm-model writer --output-path runs/sensitivity
    sae-steered sensitivity --model google/gemma-2-2b --sae-names gscope_16k_l0_82 \
        --dataset-name monology/pile-uncopyrighted --llm-model gpt-4.1-mini

Collects activating examples of each feature, asks an LLM for new texts like them, runs the SAE on
those, and counts on how many the feature fires. Beside it: the same for the original examples, for
texts written for another feature, and for the feature's usual token put into other contexts.
What was read and what came is kept on disk: after a kill the same command goes on. The key comes
from the environment.

Flags and CSV files are those of nathanhu0/sae-sensitivity; docs/sensitivity.md lists differences.
"""

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from harness_ext.errors import SensitivityError
from harness_ext.feature_arguments import add_subject, at_least_0, count, subject_of, text_of
from interventions.text.config import TextConfig


def main(argv: list[str] | None = None) -> int:
    """Return the exit status after evaluating every named SAE.

    Raises:
        SteeringError: model, SAE or text cannot be used.
        HarnessError: the endpoint cannot be used, or a name is unknown.
    """
    arguments = _parser().parse_args(argv)
    _check(arguments)
    from harness_ext.llm.settings import read_settings

    llm = read_settings(
        model=arguments.llm_model,
        base_url=arguments.base_url,
        api_key_env=arguments.api_key_env,
        cache=arguments.cache,
        concurrency=arguments.max_workers,
        timeout_s=arguments.timeout,
        tries=arguments.tries,
        max_tokens=arguments.max_tokens,
    )
    jobs = _jobs(arguments)
    folder = arguments.output_path or Path("evals") / _default_name(jobs)
    found = []
    try:
        for name, _ in jobs:
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SensitivityError(
            f"--output-path {folder} cannot be written: {error.strerror}; give another"
        ) from None
    for name, one in jobs:
        found.append(_evaluate(name, one, folder, llm))
    if arguments.json:
        print(json.dumps([data for data in found]))
    return 0


def _whole(text: str) -> int:
    return 0 if text.strip() == "0" else count(text)


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.n_top_ex_for_generation + arguments.n_iw_ex_for_generation:
        raise SensitivityError(
            "--n-top-ex-for-generation and --n-iw-ex-for-generation are both 0: the writer would"
            " see no example; raise one of them"
        )
    if arguments.facts is not None:
        for name in ("text", "dataset_name", "text_config"):
            if getattr(arguments, name):
                raise SensitivityError(
                    f"--facts and --{name.replace('_', '-')} both say where examples come from;"
                    f" give one of them"
                )


def _text(arguments: argparse.Namespace) -> TextConfig:
    """Return the text that examples come from.

    Raises:
        SteeringError: none is named, or it cannot be used.
        SensitivityError: its rows are shorter than an example.
    """
    from interventions.features.examples import BUFFER

    if arguments.dataset_name:
        arguments.text = [*arguments.text, f"hub:{arguments.dataset_name}"]
    text = text_of(arguments).model_copy(update={"bos": True})
    least = 2 * BUFFER + 2  # a window, and BOS before it
    if text.context < least:
        raise SensitivityError(
            f"--context-size {text.context} holds no example: windows have {2 * BUFFER + 1} tokens"
            f" behind BOS; give {least} or more"
        )
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steered sensitivity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_subject(parser)
    add = parser.add_argument_group("what is evaluated").add_argument
    add("--sae-names", nargs="+", metavar="NAME", help="published names, such as py_4k_btopk_s0")
    add("--features", type=_whole, default=50, metavar="N",
        help="drawn from those that are alive; 0: all (default: %(default)s)")  # fmt: skip
    add("--feature-indices", type=int, nargs="+", metavar="F", help="these features, none drawn")
    add("--seed", type=int, default=42, help="of every draw (default: %(default)s)")
    add("--facts", type=Path, metavar="DIR", help="examples from a fact store, without a text")
    add = parser.add_argument_group("text").add_argument
    add("--text", action="append", default=[], metavar="SOURCE",
        help="a file, `hub:ID` or `docs:PACKAGE`; may be repeated")  # fmt: skip
    add("--dataset-name", metavar="ID", help="data set on the hub, as --text hub:ID")
    add("--column", metavar="NAME", help="column that holds text (default: text)")
    add("--template", metavar="FORMAT", help="text from several columns")
    add("--split", default="train", help="of hub data sets (default: %(default)s)")
    add("--text-config", type=Path, metavar="YAML", help="sources, weights and all")
    # Without defaults here, so that it is known whether they stand over those of --text-config.
    add("--total-tokens", dest="tokens", type=count, metavar="N", help="(default: 2000000)")
    add("--context-size", dest="context", type=count, metavar="N", help="(default: 128)")
    parser.set_defaults(text_defaults={"tokens": 2_000_000, "context": 128})
    add("--n-top-ex-for-generation", type=_whole, default=10, metavar="N",
        help="strongest examples a feature (default: %(default)s)")  # fmt: skip
    add("--n-iw-ex-for-generation", type=_whole, default=5, metavar="N",
        help="examples drawn by their activation (default: %(default)s)")  # fmt: skip
    add("--alive", type=_whole, default=15, metavar="N",
        help="firings that a drawn feature exceeds (default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("writer").add_argument
    add("--llm-model", metavar="NAME", help="default: the environment variable PROCESSOR")
    add("--base-url", metavar="URL", help="default: OPENAI_BASE_URL, OpenRouter or OpenAI by key")
    add("--api-key-env", metavar="NAME", help="environment variable of the key, if another")
    add("--max-workers", type=count, default=10, metavar="N", help="requests at once (%(default)s)")
    add("--samples", type=count, default=10, metavar="N", help="texts a feature (%(default)s)")
    add("--attempts", type=count, default=3, metavar="N",
        help="requests a feature while replies hold no text (default: %(default)s)")  # fmt: skip
    add("--tries", type=count, metavar="N", help="tries of one request (default: 5)")
    add("--timeout", type=float, metavar="S", help="seconds for one try (default: 60)")
    add("--max-tokens", type=int, default=4096, metavar="N", help="of a reply (%(default)s)")
    add("--cache", type=Path, metavar="DIR", help="where replies are kept")
    add("--price", type=at_least_0, nargs=2, metavar=("IN", "OUT"),
        help="of a million tokens, for the estimate and the account")  # fmt: skip
    add("--dry-run", action="store_true", help="collect examples, say what asking costs, and stop")
    add = parser.add_argument_group("output").add_argument
    add("--output-path", type=Path, metavar="DIR", help="(default: evals/NAMES_DATE)")
    add("--json", action="store_true", help="print the summaries as JSON")
    return parser


def _jobs(arguments: argparse.Namespace) -> list[tuple[str, argparse.Namespace]]:
    """Return a name and arguments for each SAE."""
    from harness_ext.sensitivity.names import SHORT_MODELS, resolve

    arguments.model = SHORT_MODELS.get(arguments.model, arguments.model)
    if not arguments.sae_names:
        given = arguments.sae_release or arguments.sae_repo or arguments.sae_path or "default"
        label = "_".join(filter(None, (str(given), arguments.sae_id)))
        return [("".join(c if c.isalnum() or c in "._-" else "_" for c in label), arguments)]
    jobs = []
    for name in arguments.sae_names:
        named = resolve(name)
        if arguments.model not in ("default", named.model):
            raise SensitivityError(
                f"SAE '{name}' is of {named.model}, --model is {arguments.model}; leave it out"
            )
        one = argparse.Namespace(**vars(arguments))
        one.model = named.model
        one.hook_point = arguments.hook_point or named.ref.hook_point
        one.sae_release, one.sae_repo, one.sae_id = named.ref.release, named.ref.repo, named.ref.id
        jobs.append((name, one))
    return jobs


def _default_name(jobs: list[tuple[str, Any]]) -> str:
    names = [name for name, _ in jobs]
    more = f"_and_{len(names) - 2}_more" if len(names) > 2 else ""
    return f"{'_'.join(names[:2])}{more}_{datetime.now():%Y%m%d_%H%M%S}"


def _evaluate(name: str, arguments: argparse.Namespace, folder: Path, llm: Any) -> dict[str, Any]:
    from harness_ext.sensitivity import collected, output, run
    from interventions.cache import cache_dir

    settings = collected.Settings(
        features=tuple(arguments.feature_indices) if arguments.feature_indices else None,
        number=arguments.features or None,
        seed=arguments.seed,
        top=arguments.n_top_ex_for_generation,
        weighted=arguments.n_iw_ex_for_generation,
        alive=arguments.alive,
        per_call=arguments.samples,
        attempts=arguments.attempts,
    )
    text = None if arguments.facts is not None else _text(arguments)
    subject = subject_of(arguments)
    place = folder / name
    if arguments.facts is not None:
        found = collected.from_facts(subject, arguments.facts, settings)
    else:
        assert text is not None
        # A default name has the time in it: the next call would not find what this one read.
        kept = place / ".text" if arguments.output_path else cache_dir("runs", "sensitivity")
        found = collected.collect(subject, text, settings, kept)
    cost = run.estimated(subject, found, settings)
    _say(
        f"{name}: {cost.calls} requests to {llm.name}, about {cost.prompt_tokens} tokens to it and"
        f" {cost.completion_tokens} back" + _price(arguments, cost)
    )
    if arguments.dry_run:
        return {"sae_name": name, "estimate": vars(cost)}
    result = run.evaluate(
        subject, found, settings, llm, progress=not arguments.json and sys.stderr.isatty()
    )
    output.write_csv(place, result, sae_name=name, eval_name=str(folder), llm=llm.model)
    source = {"facts": str(arguments.facts)} if text is None else text.model_dump(mode="json")
    data = output.summary(
        result,
        sae_name=name,
        text=source,
        llm={"model": llm.model, "endpoint": llm.base_url},
    )
    output.write_summary(place, data)
    output.write_page(place, result, data)
    used = result.usage
    _say(
        f"{name}: {used.sent} requests sent, {used.cached} answered from disk,"
        f" {used.prompt_tokens} tokens sent and {used.completion_tokens} received"
        + _price(arguments, used)
    )
    if not arguments.json:
        _print(data, place)
    return data


def _price(arguments: argparse.Namespace, cost: Any) -> str:
    if arguments.price is None:
        return ""
    into, out = arguments.price
    total = (cost.prompt_tokens * into + cost.completion_tokens * out) / 1e6
    return f", {total:.4f} at {into:g} and {out:g} a million"


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _shown(part: dict[str, Any]) -> str:
    if part["value"] is None:
        return "-"
    ends = "" if part["low"] is None else f" [{100 * part['low']:.0f}, {100 * part['high']:.0f}]"
    return f"{100 * part['value']:.0f}{ends}"


def _speed(data: dict[str, Any]) -> str:
    if data["features_per_hour"] is None:
        return f"{data['llm']['usage']['cached']} replies came from disk, so no speed is given"
    return (
        f"{data['features_per_hour']:.0f} features an hour,"
        f" {data['share_of_time_in_model']:.0%} of the time in the model"
    )


def _print(data: dict[str, Any], place: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Sensitivity of {data['sae_name']}, % of texts on which a feature fires")
    for head in ("feature", "new texts", "originals", "others'", "token alone", "reply"):
        table.add_column(head, justify="left" if head == "reply" else "right", no_wrap=True)
    arms = ("generated", "original", "control", "injection")
    for row in data["features"]:
        table.add_row(str(row["feature"]), *(_shown(row[arm]) for arm in arms), row["status"])
    table.add_section()
    table.add_row("mean", *(_shown(data["mean"][arm]) for arm in arms), "")
    Console().print(table)
    for name, part in data["spearman"].items():
        if part["rho"] is not None:
            print(
                f"rank correlation with {name}: {part['rho']:.2f}"
                f" [{part['low']:.2f}, {part['high']:.2f}] over {part['n']} features"
            )
    tries = ", ".join(f"{status} {n}" for status, n in data["llm"]["tries"].items())
    print(
        f"replies: {tries or 'none'}; {data['n_without_texts']} of {data['n_features']} features"
        f" without texts; {_speed(data)}"
    )
    old, new = data["copied"], data["mean"]["generated_new"]
    print(
        f"copies: {old['active']} of {old['n']} new texts are an example again or a piece of one;"
        f" without them {_shown(new)}; {data['llm']['cut']} replies end at --max-tokens"
    )
    print(f"files: {place}")


if __name__ == "__main__":
    raise SystemExit(main())
