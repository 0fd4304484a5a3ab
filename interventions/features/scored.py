"""A ranking of features: the file it is kept in, and the steering spec of its best ones."""

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from interventions.default_model import DEFAULT_NAME, command_name
from interventions.errors import FeatureError
from interventions.plan import same_model
from interventions.spec import parse_spec
from interventions.train.files import write_text

if TYPE_CHECKING:
    from interventions.subject import Subject

SPEC_STRENGTH = 1.5
"""In multiples of the largest activation. What a feature bears differs: published results take 2
with an 8B model; docs/find.md shows one of the embedded model that breaks at 1.5, not at 0.5."""
SPEC_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Scored:
    """Features and their scores, best first.

    Attributes:
        kind: what was scored, such as `contrast` or `reason`.
        subject: `Subject.describe()`, and `check_model`: whether the SAE names this model.
        text: what was read.
        settings: of the score.
        features: one mapping a feature with `feature`, `score` and more columns; `max_act`, where
            it is there, is the largest activation in SAE units and goes into specs.
        notes: what a reader must know, one sentence each.
        facts: figures on the whole, such as counts of tokens.
    """

    kind: str
    subject: Mapping[str, Any]
    text: Any
    settings: Mapping[str, Any]
    features: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        kind: str,
        subject: "Subject",
        *,
        text: Any,
        settings: Mapping[str, Any],
        features: Sequence[Mapping[str, Any]],
        notes: Sequence[str] = (),
        facts: Mapping[str, Any] | None = None,
    ) -> Self:
        """Return a ranking of the features of `subject`; rows without `max_act` take the SAE's."""
        stored = None if subject.sae.max_act is None else subject.sae.max_act.tolist()
        rows = [
            row if "max_act" in row or stored is None
            else {**row, "max_act": stored[row["feature"]]}
            for row in features
        ]  # fmt: skip
        about = {
            **subject.describe(),
            "check_model": same_model(subject.sae.model_name, subject.label),
        }
        return cls(kind, about, text, dict(settings), rows, tuple(notes), dict(facts or {}))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, as it stands in the file; figures that are not finite are null."""
        return {
            "kind": self.kind,
            "subject": dict(self.subject),
            "text": self.text,
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "facts": dict(self.facts),
            "features": [{key: _plain(v) for key, v in row.items()} for row in self.features],
        }


def write_scored(path: Path, scored: Scored) -> None:
    """Write a ranking as JSON, whole or not at all.

    Raises:
        FeatureError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(scored.as_dict(), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise FeatureError(f"{path} cannot be written: {error}; name another file") from error


def read_scored(path: Path) -> Scored:
    """Return the ranking in a file that `write_scored` wrote.

    Raises:
        FeatureError: the file is missing or holds something else.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeatureError(
            f"{path} cannot be read: {error}; give a file that `sae-steered score` wrote"
        ) from error
    needed = ("kind", "subject", "text", "settings", "features")
    missing = [key for key in needed if not isinstance(raw, dict) or key not in raw]
    rows = None if missing else raw["features"]
    if missing or not isinstance(rows, list) or not all("feature" in row for row in rows):
        lack = f"lacks {', '.join(missing)}" if missing else "lists no features"
        raise FeatureError(f"{path} {lack}; give a file that `sae-steered score` wrote")
    return Scored(**{k: raw[k] for k in (*needed, "notes", "facts") if k in raw})


def write_table(path: Path, columns: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write one row a feature as Parquet, whole or not at all.

    Args:
        path: the file.
        columns: name to a tensor or a list, all of one length.
        about: plain data kept as JSON in the file's metadata, under `sae_steered`.

    Raises:
        FeatureError: the file cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table(
        {
            name: values.detach().cpu().numpy() if isinstance(values, Tensor) else values
            for name, values in columns.items()
        }
    ).replace_schema_metadata({"sae_steered": json.dumps(about)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise FeatureError(f"{path} cannot be written: {error}; name another file") from error


def best_spec(
    scored: Scored,
    *,
    top: int = 1,
    op: str = "clamp",
    strength: float = SPEC_STRENGTH,
    positions: str = "generated",
    name: str | None = None,
) -> dict[str, Any]:
    """Return a steering spec of the best features, as plain data that `parse_spec` takes.

    Args:
        scored: with a `max_act` for each of these features.
        top: features to edit together; each is an edit of its own.
        op: `clamp` or `add` with a strength, `ablate` or `project`.
        strength: in multiples of `max_act`; nothing to `ablate`.
        positions: tokens that are edited.
        name: of the spec; by default the kind and the features.

    Raises:
        FeatureError: there is no feature, or one has no largest activation.
        SpecError: an operator or positions that do not exist.
    """
    chosen = list(scored.features[:top])
    if not chosen:
        raise FeatureError("no feature was found, so there is none to steer; see the notes above")
    subject = scored.subject
    edits: list[dict[str, Any]] = []
    for row in chosen:
        edit: dict[str, Any] = {"op": op, "feature": int(row["feature"])}
        if op != "ablate":
            largest = row.get("max_act")
            if not largest or not math.isfinite(largest):
                raise FeatureError(
                    f"feature {row['feature']} has no largest activation (max_act {largest}), so a"
                    f" strength means nothing; steer another one, or use ablate"
                )
            edit |= {"strength": strength, "max_act": float(largest)}
        edits.append(edit)
    sae = dict(subject["sae"])
    if "path" in sae:  # the next command may run elsewhere
        sae["path"] = str(Path(sae["path"]).expanduser().absolute())
    label = f"{scored.kind}-{'-'.join(str(row['feature']) for row in chosen[:4])}"
    data = {
        "name": name or label,
        "sae": sae,
        "hook_point": subject["hook_point"],
        "positions": positions,
        "norm_guard": subject["norm_guard"],
        "median_norm": subject["median_norm"],
        **({} if subject.get("check_model", True) else {"check_model": False}),
        "edits": edits,
    }
    parse_spec(data, source=f"spec of {label}")
    return data


def write_spec(path: Path, scored: Scored, **settings: Any) -> dict[str, Any]:
    """Return the spec of the best features after writing it as YAML or JSON, by the suffix.

    Args:
        path: `.yaml`, `.yml` or `.json`.
        scored: the ranking.
        settings: of `best_spec`.

    Raises:
        FeatureError: another suffix, or see `best_spec`.
        SpecError: see `best_spec`.
    """
    if path.suffix not in SPEC_SUFFIXES:
        raise FeatureError(f"'{path}' is neither .yaml nor .json; name such a file")
    data = best_spec(scored, **settings)
    if path.suffix == ".json":
        text = json.dumps(data, indent=1) + "\n"
    else:
        import yaml

        text = yaml.safe_dump(data, sort_keys=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise FeatureError(f"{path} cannot be written: {error}; name another file") from error
    return data


def next_command(scored: Scored, spec: Path | str) -> str:
    """Return the command that steers with a spec of this ranking."""
    model = model_argument(scored.subject)
    named = [] if model is None else ["--model", model]
    given = shlex.join([*named, "--spec", str(spec)])
    return f"sae-steered evaluate {given} --tasks steer_arith_hint --limit 24"


def model_argument(subject: Mapping[str, Any]) -> str | None:
    """Return the model that commands have to name; None for the embedded one.

    Args:
        subject: `Subject.describe()`.
    """
    name = command_name(str(subject["model"]))
    return None if name == DEFAULT_NAME or subject["sae"].get("default") else name


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
