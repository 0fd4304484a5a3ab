"""What `sae-steered score contrast` does between its arguments and its output."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness_ext.contrasts import CONTRASTS, Choices, Sets
from interventions.cache import cache_dir
from interventions.errors import FeatureError, SpecError, TextError
from interventions.features import aggregate, contrast, parity
from interventions.features.checkpoint import Checkpoint
from interventions.features.passages import Counting, Example, make_passage
from interventions.features.scored import Scored, write_table
from interventions.subject import Subject
from interventions.text.config import TextSource
from interventions.text.records import records


@dataclass(frozen=True)
class Found:
    """A ranking, and all features' figures.

    Attributes:
        scored: the ranking.
        columns: of every feature.
        finish: called when everything is written.
    """

    scored: Scored
    columns: Mapping[str, Any]
    finish: Callable[[], None]

    def write_table(self, path: Path) -> None:
        """Write every feature's figures as Parquet."""
        about = {k: v for k, v in self.scored.as_dict().items() if k != "features"}
        write_table(path, self.columns, about)


def check(arguments: argparse.Namespace) -> None:
    """Return nothing if the arguments name two sets, before a model is loaded.

    Raises:
        SpecError: they name none, or more than one pair; or what does not go together.
    """
    files = bool(arguments.base or arguments.exp)
    if sum([bool(arguments.contrast), files, arguments.labelled is not None]) != 1:
        raise SpecError("name the sets: --contrast NAME, or --base with --exp, or --labelled FILE")
    if files and not (arguments.base and arguments.exp):
        raise SpecError("--base and --exp go together; give both")
    if arguments.parity and arguments.aggregate not in (None, "mean", "last"):
        raise SpecError(
            f"--parity knows the aggregates mean and last, not {arguments.aggregate}; leave one out"
        )
    if arguments.prompt_format and "{prompt}" not in arguments.prompt_format:
        raise SpecError(f"--prompt-format '{arguments.prompt_format}' lacks {{prompt}}; add it")
    if arguments.limit is not None and arguments.limit < 1:
        raise SpecError(f"--limit {arguments.limit} leaves no text; give at least 1")


def run(arguments: argparse.Namespace, subject: Subject) -> Found:
    """Return the ranking that the arguments ask for.

    Raises:
        SteeringError: a set is empty or too small, or the texts cannot be read.
        HarnessError: the files of a run cannot be used.
    """
    sets = _sets(arguments, subject)
    if arguments.prompt_format:
        sets = _formatted(sets, arguments.prompt_format)
    return _parity(arguments, subject, sets) if arguments.parity else _run(arguments, subject, sets)


def _sets(arguments: argparse.Namespace, subject: Subject) -> Sets:
    choices = Choices(
        limit=arguments.limit,
        runs=tuple(arguments.run),
        benchmark=arguments.benchmark,
        detector=arguments.detector,
        signs=("correct", "wrong") if arguments.sign == "both" else (arguments.sign,),
        mentions=arguments.mentions,
        before=arguments.before,
        phrases=arguments.phrases,
        style=arguments.prompt_style,
        seed=arguments.seed,
    )
    if arguments.contrast == "fixed-vs-needed":
        from harness_ext.fixed_answers import fixed_answers, fixed_vs_needed

        answers = fixed_answers(
            subject,
            benchmark=arguments.benchmark,
            limit=arguments.limit,
            max_new_tokens=arguments.max_new_tokens,
            sample=arguments.sample,
            seed=arguments.seed,
            journal=arguments.journal or cache_dir("runs", "fixed-vs-needed"),
        )
        return fixed_vs_needed(answers, choices)
    if arguments.contrast:
        return CONTRASTS[arguments.contrast](choices)
    if arguments.labelled is not None:
        return labelled_sets(arguments.labelled, arguments.limit)
    sides = [
        _examples(arguments, arguments.base, "base"),
        _examples(arguments, arguments.exp, "exp"),
    ]
    about = {"base": arguments.base, "exp": arguments.exp}
    return Sets(*sides, about=about, part="response" if arguments.response_column else "all")


def labelled_sets(path: Path, limit: int | None = None) -> Sets:
    """Return the texts of a JSONL file by their label: 1 is the experiment, 0 the baseline.

    A column `qid`, where there is one, pairs the texts of a question (with `task`, of its task).

    Raises:
        TextError: the file cannot be read, or a label is neither 0 nor 1.
    """
    sets: dict[int, list[Example]] = {0: [], 1: []}
    for number, row in enumerate(records(TextSource(path=str(path), text="text")), 1):
        label = row.get("label")
        if label not in (0, 1):
            raise TextError(f"{path}:{number}: label is {label!r}; 1 or 0 is needed")
        group = f"{row['task']}:{row['qid']}" if "qid" in row and "task" in row else str(
            row.get("qid", f"text-{number}")
        )  # fmt: skip
        if limit is None or len(sets[int(label)]) < limit:
            text = _text(row, "text", f"{path}:{number}")
            sets[int(label)].append(Example(group=group, final=text))
    return Sets(sets[0], sets[1], {"labelled": str(path)}, part="all")


def _examples(arguments: argparse.Namespace, sources: Sequence[str], side: str) -> list[Example]:
    prompt, response = arguments.prompt_column, arguments.response_column
    if response and not prompt:
        raise SpecError("--response-column goes with --prompt-column; name the prompts' column")
    found: list[Example] = []
    for source in sources:
        for number, row in enumerate(_rows(arguments, source)):
            if arguments.limit is not None and len(found) >= arguments.limit:
                return found
            group = f"{side}-{source}-{number}"
            if arguments.group_column:
                group = str(row[arguments.group_column])
            about = {"source": source, "row": number}
            where = f"{source}: record {number + 1}"
            if prompt:
                final = _text(row, response, where) if response else ""
                text = {"prompt": _text(row, prompt, where), "final": final}
            else:
                text = {"final": _text(row, arguments.column, where)}
            found.append(Example(group=group, about=about, **text))  # type: ignore[arg-type]
    return found


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    text = row[column]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise TextError(f"{where}: column '{column}' holds a {kind}, not text; name another one")
    return text


def _rows(arguments: argparse.Namespace, source: str) -> Any:
    kind, _, rest = source.partition(":")
    if source.endswith(".txt"):
        try:
            lines = Path(source).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise TextError(f"{source} cannot be read: {error}") from error
        return [{arguments.column: line} for line in lines if line.strip()]
    where = {"dataset": rest, "split": arguments.split} if kind == "hub" else {"path": source}
    wanted = [
        arguments.prompt_column or arguments.column,
        arguments.response_column,
        arguments.group_column,
    ]
    # As a template, so that every column that is named is looked for in every row.
    columns = "".join(f"{{{name}}}" for name in wanted if name)
    return records(TextSource(template=columns, **where))  # type: ignore[arg-type]


def _formatted(sets: Sets, form: str) -> Sets:
    def put(example: Example) -> Example:
        if example.raw or not example.prompt:
            return example
        head, _, _ = form.partition("{prompt}")
        spans = example.prompt_spans or ((0, len(example.prompt)),)
        moved = tuple((a + len(head), b + len(head)) for a, b in spans)
        text = form.replace("{prompt}", example.prompt)
        return dataclasses.replace(example, prompt=text, prompt_spans=moved, raw=True)

    form = form.replace("\\n", "\n")
    if not any(e.prompt and not e.raw for e in (*sets.base, *sets.exp)):
        raise SpecError(
            "--prompt-format changes no text: none is a prompt that the model has not read yet;"
            " leave it out, or name the prompts with --prompt-column"
        )
    return dataclasses.replace(
        sets, base=[put(e) for e in sets.base], exp=[put(e) for e in sets.exp]
    )


def _run(arguments: argparse.Namespace, subject: Subject, sets: Sets) -> Found:
    counting = Counting(
        part=arguments.part or sets.part,
        template=arguments.count_template,
        first=arguments.first,
        context=arguments.context,
        think_end=arguments.think_end,
    )
    settings = contrast.ContrastSettings(
        aggregate=arguments.aggregate or sets.aggregate,
        trim=arguments.trim,
        min_base=arguments.min_base,
        min_exp=arguments.min_exp,
        max_q=arguments.max_q,
        permutations=arguments.permutations,
        seed=arguments.seed,
    )
    for side, name in ((sets.base, "baseline"), (sets.exp, "experiment")):
        if not side:
            raise FeatureError(
                f"the {name} set is empty: {_plain(sets.about)}; give more texts or another source"
            )
    examples = [*sets.base, *sets.exp]
    passages = [make_passage(example, subject.tokenizer, counting) for example in examples]
    is_exp = [False] * len(sets.base) + [True] * len(sets.exp)
    key = aggregate.pass_key(subject, passages, arguments.special)
    folder = _folder(arguments, key)
    summaries = aggregate.collect(
        subject,
        passages,
        special=arguments.special,
        batch_tokens=arguments.batch_tokens,
        folder=folder,
    )
    try:
        units = contrast.make_units(summaries, [p.group for p in passages], is_exp)
    except FeatureError as error:
        raise FeatureError(f"{error} ({_plain(sets.about)})") from None
    result = contrast.contrast(units, settings)
    rows = contrast.as_rows(result, units, settings, most=arguments.keep)
    if arguments.list != "both":
        rows = [row for row in rows if row["list"] == arguments.list]
    if subject.sae.max_act is None:
        rows = [{**row, "max_act": row["max_here"]} for row in rows]
    notes = [*sets.notes, *contrast.notes(result, units, settings)]
    if cut := sum(passage.cut for passage in passages):
        notes.append(f"{cut} texts were cut at {counting.context} tokens; raise --context")
    scored = Scored.of(
        "contrast",
        subject,
        text=dict(sets.about),
        settings={
            "name": arguments.contrast or "contrast",
            **dataclasses.asdict(counting),
            **contrast.settings_dict(settings),
            "special": arguments.special,
        },
        features=rows,
        notes=notes,
        facts=contrast.facts(result, units),
    )
    names = ("base", "exp", "mean_base", "mean_exp", "increase", "share_base", "share_exp", "p")
    columns = {name: getattr(result, name) for name in (*names, "q")}
    columns = {"feature": list(range(subject.sae.d_sae)), **columns}
    return Found(scored, columns, Checkpoint(folder, key).clear)


def _folder(arguments: argparse.Namespace, key: str) -> Path:
    """Return where a pass of that key is kept until its result is written."""
    if arguments.out:
        return arguments.out.with_name(f".{arguments.out.name}.run-{key}")
    return cache_dir("runs") / f"contrast-{key}"


def _parity(arguments: argparse.Namespace, subject: Subject, sets: Sets) -> Found:
    how = {"aggregate": arguments.aggregate or "mean", "pad_to": arguments.parity_padding}
    values, folders = {}, []
    for name, side in (("base", sets.base), ("exp", sets.exp)):
        texts = [parity_text(example, subject, arguments.think_end) for example in side]
        key = parity.pass_key(subject, texts, arguments.parity, **how)
        folder = _folder(arguments, key)
        folders.append((folder, key))
        values[name] = parity.parity_values(subject, texts, arguments.parity, **how, folder=folder)
    base, exp = values["base"], values["exp"]
    result = parity.parity_contrast(base.values, exp.values, arguments.parity)
    rows = parity.parity_rows(result, most=arguments.keep if arguments.out else parity.TOP)
    if subject.sae.max_act is None:
        largest = torch.maximum(base.largest, exp.largest).tolist()
        rows = [{**row, "max_act": largest[row["feature"]]} for row in rows]
    scored = Scored.of(
        "contrast",
        subject,
        text=dict(sets.about),
        settings={
            "name": f"{arguments.contrast or 'contrast'}, parity with notebook {arguments.parity}",
            "parity": arguments.parity,
            "padding": how["pad_to"],
            "aggregate": how["aggregate"],
        },
        features=rows,
        notes=[
            *sets.notes,
            "as the notebook computes it: BOS, template and sinks count, and nothing says what"
            " chance would do",
        ],
        facts={
            **{name: {"texts": len(side.values)} for name, side in values.items()},
            "removed": result.removed,
        },
    )
    names = ("base", "exp", "increase", "share_base", "share_exp")
    columns = {name: getattr(result, name) for name in names}
    columns = {"feature": list(range(subject.sae.d_sae)), **columns}

    def finish() -> None:
        for folder, key in folders:
            Checkpoint(folder, key).clear()

    return Found(scored, columns, finish)


def parity_text(example: Example, subject: Subject, think_end: str) -> str:
    """Return an example as one text, through the chat template where it is not raw."""
    tokenizer: Any = subject.tokenizer
    response = example.response(think_end)
    if example.raw or not example.prompt or not tokenizer.chat_template:
        return example.prompt + response
    message = [{"role": "user", "content": example.prompt}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    bos = tokenizer.bos_token
    # The tokenizer adds its own.
    return (text.removeprefix(bos) if bos else text) + response


def _plain(about: Mapping[str, Any]) -> str:
    return json.dumps(dict(about), ensure_ascii=False)
