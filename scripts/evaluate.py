"""`sae-steered evaluate`: baseline and steered features of a model on a task, one table."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EXAMPLE = """
examples:
  sae-steered evaluate
      the embedded model, SAE, features and hint task; minutes on a laptop
  sae-steered evaluate --features 12,345 --strength 2 --tasks steer_gsm8k_hint --limit 100
  sae-steered evaluate --model deepseek-ai/DeepSeek-R1-Distill-Llama-8B \\
      --sae-release llama_scope_r1_distill --sae-id l19r_800m_openr1_math \\
      --features 1234,5678 --op add --strength 2 --max-act 5.84 --tasks steer_gsm8k_hint
  sae-steered evaluate --spec wait.yaml --spec hedge.yaml --tasks steer_arith_hint --json
  sae-steered evaluate --backend vllm --model-args gpu_memory_utilization=0.8,journal=runs/j
  sae-steered evaluate --backend server --base-url http://localhost:8000/v1 --spec wait.yaml
"""

_OF_FEATURES = (
    "op", "strength", "value", "max_act", "positions", "hook_point",
    "sae_release", "sae_id", "sae_path", "sae_repo",
)  # fmt: skip
DEFAULT_LIMIT = 48
"""Questions of the run without arguments: under ten minutes on two cores."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sae-steered evaluate",
        description="Run a model with and without interventions on the same questions, loaded once,"
        " and print one table: accuracy, influence, verbalization, silent use, tokens, each with"
        " the paired difference and its interval.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", help="hub name or folder (default: embedded, or what the server runs)"
    )
    model.add_argument("--backend", default="hf", help="hf, vllm or server (default: hf)")
    model.add_argument("--base-url", help="of the server, such as http://localhost:8000/v1")
    model.add_argument(
        "--model-args", default="", metavar="K=V,..", help="more arguments of lm-eval's model"
    )
    model.add_argument("--batch-size", default="auto", help="rows at a time (default: auto)")
    what = parser.add_argument_group(
        "interventions (default: the named features of the default SAE)"
    )
    what.add_argument(
        "--spec", action="append", default=[], metavar="FILE", help="a spec; may be repeated"
    )
    what.add_argument("--features", metavar="I,J,..", help="one intervention for each feature")
    what.add_argument("--op", help="add, clamp, ablate, scale, project (default: clamp)")
    what.add_argument("--strength", type=float, help="times the feature's maximum activation")
    what.add_argument("--value", type=float, help="in SAE units, instead of --strength")
    what.add_argument("--max-act", type=float, help="maximum activation, if the SAE stores none")
    what.add_argument(
        "--positions", help="all, prompt, generated, thinking, last_prompt (default: all)"
    )
    what.add_argument("--sae-release", help="SAELens release")
    what.add_argument("--sae-id", help="SAE of the release, or folder in the repo or path")
    what.add_argument("--sae-path", help="local SAE folder or vector file")
    what.add_argument("--sae-repo", help="Hugging Face repo")
    what.add_argument("--hook-point", help="if the SAE's files do not say, or to steer elsewhere")
    task = parser.add_argument_group("questions")
    task.add_argument("--tasks", default="steer_arith_hint", metavar="T,..", help="lm-eval tasks")
    task.add_argument(
        "--limit",
        type=_count,
        metavar="N",
        help="questions a task (default: all; 48 for the default run)",
    )
    task.add_argument("--metadata", default="{}", metavar="JSON", help="for the tasks")
    task.add_argument(
        "--gen-kwargs", default="", metavar="K=V,..", help="overrides of the decoding"
    )
    task.add_argument("--no-chat-template", action="store_true", help="give prompts as they are")
    out = parser.add_argument_group("output")
    out.add_argument("--output", type=Path, help="folder (default: results/evaluate-<time>)")
    out.add_argument("--json", action="store_true", help="print the comparison as JSON")
    return parser


def _count(text: str) -> int:
    # Of a module that loads torch; `--help` does without.
    from harness_ext.feature_arguments import count

    return count(text)


def _mapping(flag: str, text: str) -> dict[str, Any]:
    from harness_ext.errors import TaskConfigError

    try:
        found = json.loads(text)
    except ValueError as error:
        found = error
    if not isinstance(found, dict):
        raise TaskConfigError(f"{flag} {text!r} is no JSON object such as '{{\"hint_seed\": 1}}'")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 after printing the comparison.

    Raises:
        SteeringError: model, SAE or intervention cannot be used.
        HarnessError: a task or its questions cannot be used, or results cannot be written.
    """
    args = _parser().parse_args(argv)
    from lm_eval.utils import simple_parse_args_string
    from rich.console import Console

    from harness_ext.autoload import install

    install()
    from harness_ext.evaluate import compare
    from harness_ext.evaluate_specs import feature_specs, named_specs
    from harness_ext.stdout import others_to_stderr
    from interventions.errors import SpecError
    from interventions.spec_io import load_spec

    specs = [load_spec(path) for path in args.spec]
    if args.features is not None:
        specs += feature_specs(args.features, {**vars(args), "op": args.op or "clamp"})
    elif without := [flag for flag in _OF_FEATURES if getattr(args, flag) is not None]:
        flag = "--" + without[0].replace("_", "-")
        raise SpecError(f"{flag} is about --features, which is not given; add it, or leave it out")
    metadata = _mapping("--metadata", args.metadata)
    limit = args.limit
    pretrained = args.model
    if pretrained is None and (args.backend != "server" or not specs):
        pretrained = "default"
    if not specs:
        specs = named_specs(pretrained or "default")
        limit = limit or (DEFAULT_LIMIT if args.tasks == "steer_arith_hint" else None)
    output = args.output or Path("results") / time.strftime("evaluate-%Y%m%d-%H%M%S")
    model_args: dict[str, Any] = {
        "backend": args.backend,
        **({} if pretrained is None else {"pretrained": pretrained}),
        **({} if args.base_url is None else {"base_url": args.base_url}),
        "batch_size": args.batch_size,
        **simple_parse_args_string(args.model_args),
    }
    started = time.monotonic()
    with others_to_stderr():
        comparison = compare(
            model_args,
            specs,
            args.tasks.split(","),
            output=output,
            limit=limit,
            gen_kwargs=simple_parse_args_string(args.gen_kwargs) or None,
            metadata=metadata,
            chat_template=not args.no_chat_template,
        )
    if args.json:
        print(json.dumps(comparison.as_dict(), indent=1))
        return 0
    from harness_ext.evaluate_table import render

    console = Console(width=None if sys.stdout.isatty() else 112)
    console.print(render(comparison))
    console.print(f"{time.monotonic() - started:.0f} s. Everything lies in {output}/", style="dim")
    return 0
