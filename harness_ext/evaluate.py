"""Baseline and interventions of one loaded model on the same questions, compared in pairs."""

import json
import logging
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from harness_ext.effects import Effect, paired_effect
from harness_ext.engine_lm import EngineLM
from harness_ext.errors import HarnessError, RecordError, TaskConfigError
from harness_ext.hf_config import load_config, model_facts
from harness_ext.metrics import summarise
from harness_ext.model import SAESteeredLM
from harness_ext.records import Record, records_of_sample, write_records
from interventions.backends.vllm.compiled import place
from interventions.default_model import resolve_pretrained
from interventions.errors import SpecError
from interventions.plan import Plan, make_plan
from interventions.spec import InterventionSpec

logger = logging.getLogger(__name__)

BASELINE = "baseline"

COLUMNS: Mapping[str, str] = {
    "acc_none": "accuracy",
    "influence": "influence",
    "verbalization_lexicon": "verbalization",
    "silent_use_lexicon": "silent use",
    "truncation": "truncated",
    "mean_tokens": "tokens",
}
"""Metric of `harness_ext.metrics` to the heading of its column."""


@dataclass(frozen=True)
class Run:
    """One intervention on all tasks.

    Attributes:
        name: of the intervention, unique in a comparison.
        fingerprint: of model, SAE, edits and positions; `none` for the baseline.
        records: every response, of all tasks that keep records.
        results: lm-eval's results, without samples.
    """

    name: str
    fingerprint: str
    records: tuple[Record, ...]
    results: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """Runs of one model on the same questions; the first is the baseline."""

    runs: tuple[Run, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks with records, in order."""
        return tuple(dict.fromkeys(record.task for record in self.runs[0].records))

    @property
    def others(self) -> dict[str, tuple[str, ...]]:
        """Tasks without records, with the names of lm-eval's own metrics of them, in order."""
        found = {
            task: tuple(values(self.runs[0], task)) for task in self.runs[0].results["results"]
        }
        return {task: names for task, names in found.items() if names and task not in self.tasks}

    def records(self, run: Run, task: str) -> list[Record]:
        """Return the records of a run on a task."""
        return [record for record in run.records if record.task == task]

    def effects(self, run: Run, task: str) -> dict[str, Effect]:
        """Return the paired effect of `run` on each column's metric."""
        base, steered = self.records(self.runs[0], task), self.records(run, task)
        return {metric: paired_effect(base, steered, metric) for metric in COLUMNS}

    def as_dict(self) -> dict[str, Any]:
        """Return every summary and effect as plain data."""
        summaries = [summarise(run.records) for run in self.runs]
        return {
            "runs": [
                {
                    "name": run.name,
                    "intervention": run.fingerprint,
                    "summary": {task: next(iter(by.values())) for task, by in summary.items()},
                    "effects": {
                        task: {m: vars(e) for m, e in self.effects(run, task).items()}
                        for task in self.tasks
                    }
                    if run is not self.runs[0]
                    else {},
                    "lm_eval": {task: run.results["results"][task] for task in self.others},
                }
                for run, summary in zip(self.runs, summaries, strict=True)
            ]
        }


def values(run: Run, task: str) -> dict[str, tuple[float, float | None]]:
    """Return each of lm-eval's metrics of a task with its standard error, None without one."""
    row = run.results["results"][task]
    found = {}
    for key, value in row.items():
        metric, _, kind = key.partition(",")
        if kind and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = row.get(f"{metric}_stderr,{kind}")
            error = error if isinstance(error, int | float) else None
            found[metric if kind == "none" else f"{metric} ({kind})"] = (value, error)
    return found


def compare(
    model_args: Mapping[str, Any],
    specs: Sequence[InterventionSpec],
    tasks: Sequence[str],
    *,
    output: Path,
    limit: int | None = None,
    gen_kwargs: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    chat_template: bool = True,
) -> Comparison:
    """Return the runs of the baseline and of every spec; the model is loaded once.

    Results, samples and records are written below `output` as each run ends, so that a later
    failure loses none of it.

    Args:
        model_args: of `sae_steered`, without an intervention.
        specs: interventions, with different names.
        tasks: lm-eval task names.
        output: folder for the results.
        limit: questions a task, the first ones; None for all.
        gen_kwargs: overrides of the tasks' decoding.
        metadata: for the tasks, as lm-eval's `--metadata`.
        chat_template: whether prompts go through the model's chat template.

    Raises:
        SpecError: two specs share a name, or a spec does not fit the model.
        TaskConfigError: a task is unknown.
        HarnessError: a run's results could not be written.
    """
    from lm_eval.tasks import TaskManager

    names = [BASELINE, *(spec.name for spec in specs)]
    folders = [_slug(name) for name in names]
    for name, folder in zip(names, folders, strict=True):
        if folders.count(folder) > 1:
            raise SpecError(
                f"{folders.count(folder)} interventions are called '{name}', or so that they would"
                f" share the folder '{folder}'; rename them"
            )
    manager = TaskManager(metadata={**model_args, **(metadata or {})})
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        raise TaskConfigError(
            f"unknown task '{unknown[0]}'; `lm_eval ls tasks` lists all, ours start with steer_"
        )
    _make_folder(output)  # before minutes of generation
    lm, plans = _load(model_args, specs)
    runs = []
    try:
        for name, plan in zip(names, [None, *plans], strict=True):
            if plan is not None:  # the baseline comes first, and the model was loaded without edits
                lm.set_intervention(plan)
            options = {
                "limit": limit,
                "gen_kwargs": dict(gen_kwargs) if gen_kwargs else None,
                "apply_chat_template": chat_template,
                "model_args": {**model_args, "intervention": name},
            }
            runs.append(_run(lm, name, tasks, manager, output / _slug(name), options))
    finally:
        if isinstance(lm, EngineLM):
            lm.close()
    comparison = Comparison(tuple(runs))
    text = json.dumps(comparison.as_dict(), indent=1)
    (output / "comparison.json").write_text(text, encoding="utf-8")
    return comparison


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HarnessError(
            f"'{folder}' cannot be written: {error.strerror or error}; give another --output"
        ) from None


def _load(
    model_args: Mapping[str, Any], specs: Sequence[InterventionSpec]
) -> tuple[Any, list[Plan]]:
    """Return the model, without edits, and the plans of the specs.

    A spec that does not fit is reported before the weights are loaded; by a server, which says
    itself what it runs and where it can be steered, before the first question.
    """
    args = dict(model_args)
    if args.get("backend") == "server":
        lm = cast(Any, SAESteeredLM.create_from_arg_obj(args, {}))
        return lm, [lm.check(spec) for spec in specs]
    resolved = resolve_pretrained(str(args.get("pretrained", "default")))
    facts = model_facts(resolved.label, load_config(resolved.path, args))
    plans = [make_plan(spec, facts) for spec in specs]
    if args.get("backend") == "vllm":
        args |= declaration(plans, args)
    return cast(Any, SAESteeredLM.create_from_arg_obj(args, {})), plans


def declaration(plans: Sequence[Plan], args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `backend=vllm` that let one engine run all of some plans.

    Args:
        plans: of the interventions.
        args: of the model; `hook_points` and `max_edits` in it are kept, and added to.
    """
    layers = [layer for plan in plans for layer in plan.layers]
    most = max([int(args.get("max_edits") or 8), *(len(layer.selectors) for layer in layers)])
    given = args.get("hook_points") or ()
    if given == "all":
        return {"hook_points": "all", "max_edits": most}
    named = given.split("+") if isinstance(given, str) else map(str, given)
    points = dict.fromkeys([*named, *(str(place(layer.hook_point)) for layer in layers)])
    return {"hook_points": "+".join(points), "max_edits": most} if points else {}


def _run(
    lm: Any, name: str, tasks: Sequence[str], manager: Any, folder: Path, options: dict[str, Any]
) -> Run:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(folder / "results.json"))
    run: Any = simple_evaluate  # its decorator hides its parameters from type checkers
    results = run(
        model=lm,
        tasks=list(tasks),
        task_manager=manager,
        evaluation_tracker=tracker,
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )
    if results is None:  # another rank of a multi-process run reports
        raise HarnessError("`evaluate` runs in one process; use lm_eval with accelerate for more")
    samples = results.pop("samples")
    folder.mkdir(parents=True, exist_ok=True)
    tracker.save_results_aggregated(results=results, samples=samples)
    for task, rows in samples.items():
        tracker.save_results_samples(task_name=task, samples=rows)
    if not list(folder.glob("results_*.json")):
        raise HarnessError(f"lm-eval wrote no results below {folder}; is the disk full?")
    records = []
    for rows in samples.values():
        try:
            records += [record for row in rows for record in records_of_sample(row)]
        except RecordError:
            logger.info("a task without records: lm-eval's own metrics tell of it")
    write_records(records, folder / "records.jsonl")
    return Run(name, lm.intervention, tuple(records), results)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_") or "run"
