"""Record: every request of every task, as lm-eval would send it, before anything is generated."""

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance

from harness_ext.errors import TaskConfigError
from harness_ext.leaderboard.board import TaskInfo
from harness_ext.leaderboard.config import Config, PromptConfig, TaskConfig

FEWSHOT_SEED = 1234
"""lm-eval's own default."""


@dataclass(frozen=True)
class Task:
    """A task of a leaderboard, with its requests.

    Attributes:
        name: lm-eval task.
        stage: of screening.
        task: lm-eval's object.
        requests: by the id of the prompt that is added, '' for none.
    """

    name: str
    stage: int
    task: Any
    requests: Mapping[str, Sequence[Instance]]

    def of_row(self, prompt: str) -> list[Instance]:
        """Return new requests, for one row to be answered in."""
        fresh = []
        for request in self.requests[prompt]:
            one = copy.copy(request)
            one.resps, one.filtered_resps = [], {}
            fresh.append(one)
        return fresh

    def info(self) -> TaskInfo:
        """Return what a reader must know of how it was run."""
        config = self.task.config
        generated = self.task.OUTPUT_TYPE == "generate_until"
        metadata = json.loads(json.dumps(config.metadata or {}, default=str))
        return TaskInfo(
            name=self.name,
            n_questions=len({request.doc_id for request in self.requests[""]}),
            repeats=int(config.repeats or 1),
            gen_kwargs=dict(config.generation_kwargs or {}) if generated else {},
            metadata={k: v for k, v in metadata.items() if k not in ("config_source",)},
            stage=self.stage,
        )


def load_tasks(config: Config) -> list[tuple[TaskConfig, str, Any]]:
    """Return lm-eval's object of every task, with its name and its part of the configuration.

    Raises:
        TaskConfigError: a task is unknown, or named twice.
        HarnessError: its data are not there.
    """
    from lm_eval.tasks import TaskManager

    managers: dict[str, Any] = {}
    found: list[tuple[TaskConfig, str, Any]] = []
    for one in config.tasks:
        metadata = {**config.model, **one.metadata}
        key = json.dumps(metadata, sort_keys=True, default=str)
        if key not in managers:
            managers[key] = TaskManager(metadata=metadata)
        manager = managers[key]
        if one.name not in manager.all_tasks:
            raise TaskConfigError(
                f"unknown task '{one.name}'; `lm_eval ls tasks` lists all, ours start with steer_"
            )
        for name, task in manager.load([one.name])["tasks"].items():
            if name in (known for _, known, _ in found):
                raise TaskConfigError(f"task '{name}' is in this leaderboard twice; name it once")
            _configure(task, one)
            found.append((one, name, task))
    return found


def _configure(task: Any, one: TaskConfig) -> None:
    """Set what lm-eval's own program sets from its command line, in the same order."""
    if one.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(one.gen_kwargs), update=True)
    given = task.get_config("num_fewshot")
    if one.num_fewshot is not None and given != 0:
        task.set_config(key="num_fewshot", value=one.num_fewshot)
    elif given is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def record(
    config: Config,
    loaded: Iterable[tuple[TaskConfig, str, Any]],
    chat: Callable[..., str],
    tokenizer_name: str = "",
) -> list[Task]:
    """Return the tasks with all their requests: without an added prompt, and with each.

    Args:
        config: of the leaderboard.
        loaded: of `load_tasks`.
        chat: the model's `apply_chat_template`.
        tokenizer_name: names the template.
    """
    tasks = []
    for one, name, task in loaded:
        requests: dict[str, Sequence[Instance]] = {}
        for prompt in (None, *config.prompts):
            with _added(task, prompt):
                task.build_all_requests(
                    limit=one.limit,
                    rank=0,
                    world_size=1,
                    cache_requests=False,
                    rewrite_requests_cache=False,
                    system_instruction=_system(prompt),
                    apply_chat_template=config.chat_template,
                    fewshot_as_multiturn=config.chat_template,
                    chat_template=chat if config.chat_template else None,
                    tokenizer_name=tokenizer_name if config.chat_template else "",
                )
            if not task.instances:
                raise TaskConfigError(f"task '{name}' has no questions; see its limit and data")
            requests["" if prompt is None else prompt.id] = list(task.instances)
        tasks.append(Task(name, one.stage, task, requests))
    return tasks


def _system(prompt: PromptConfig | None) -> str | None:
    return prompt.text if prompt is not None and prompt.place == "system" else None


@contextmanager
def _added(task: Any, prompt: PromptConfig | None) -> Iterator[None]:
    """Put an instruction before each question while requests are built."""
    if prompt is None or prompt.place != "question":
        yield
        return
    asked = task.doc_to_text

    def with_prompt(doc: Any, *args: Any, **kwargs: Any) -> Any:
        text = asked(doc, *args, **kwargs)
        if not isinstance(text, str):  # an index into the choices
            raise TaskConfigError(
                f"prompt '{prompt.id}' cannot stand before the questions of {task.config.task},"
                f" which are no texts; give it `place: system`"
            )
        return f"{prompt.text}\n\n{text}"

    task.doc_to_text = with_prompt
    try:
        yield
    finally:
        del task.doc_to_text
