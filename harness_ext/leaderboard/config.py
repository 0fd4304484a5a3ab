"""What a leaderboard is: its configuration, checked before anything is loaded."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from harness_ext.errors import HarnessError
from interventions.spec import Op, Positions, SAERef, Unit

_ROW_ID = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,60}$"


class LeaderboardError(HarnessError, ValueError):
    """A leaderboard's configuration, or its folder, cannot be used."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SomeFeatures(_Strict):
    """Features by number, from a file, or at random.

    Attributes:
        random: so many live ones, from all densities alike where the SAE's statistics tell them.
        file: JSON of `sae-steered score` or `find`: a list of objects with `feature`.
        top: the first so many of the file; None for all.
    """

    random: int | None = Field(default=None, ge=1)
    file: Path | None = None
    top: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.random is None) == (self.file is None):
            raise ValueError("give either `random` (how many) or `file`")
        if self.top is not None and self.file is None:
            raise ValueError("`top` goes with `file`")
        return self


class EditConfig(_Strict):
    """One way to edit, tried on every feature, once for each size.

    Attributes:
        op: the operator.
        strength: multiples of each feature's own `max_act`; one or several.
        value: sizes in `unit`, instead of `strength`; one or several. `ablate` has neither.
        unit, positions, hook_point: as in a spec.
    """

    op: Op = "clamp"
    strength: tuple[float, ...] = ()
    value: tuple[float, ...] = ()
    unit: Unit = "sae"
    positions: Positions = "all"
    hook_point: str | None = None

    @field_validator("strength", "value", mode="before")
    @classmethod
    def _one(cls, given: Any) -> Any:
        return (given,) if isinstance(given, int | float) else given

    @model_validator(mode="after")
    def _size(self) -> Self:
        if self.op == "ablate" and (self.strength or self.value):
            raise ValueError("`ablate` takes no strength or value; remove it")
        if self.op != "ablate" and bool(self.strength) == bool(self.value):
            raise ValueError(f"`{self.op}` needs either `strength` or `value`")
        return self


class TaskConfig(_Strict):
    """One task.

    Attributes:
        name: lm-eval task or group.
        limit: questions, the first ones; None for all.
        gen_kwargs: overrides of its decoding.
        metadata: for the task, such as `repeats` or `data_path`.
        num_fewshot: examples in the prompt; None leaves it to the task.
        stage: of screening, from 1; a stage is run by the rows that earlier ones kept.
    """

    name: str
    limit: int | None = Field(default=None, ge=1)
    gen_kwargs: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    num_fewshot: int | None = Field(default=None, ge=0)
    stage: int = Field(default=1, ge=1)


class PromptConfig(_Strict):
    """An instruction as a row of its own: what a sentence does, beside what a feature does.

    Attributes:
        id: of the row.
        text: the instruction.
        place: `system` (in place of the template's own) or `question` (before each question).
    """

    id: str = Field(pattern=_ROW_ID)
    text: str = Field(min_length=1)
    place: Literal["system", "question"] = "system"


class NullConfig(_Strict):
    """Random rows that candidates are held against.

    Attributes:
        random_features: live features that are no candidates, for each size of each edit.
        random_directions: seeded gaussian directions, for each size of each edit.
        mean_change: L2 length to scale them to; None measures that of the median candidate, with
            the model's weights on this machine.
    """

    random_features: int = Field(default=20, ge=0)
    random_directions: int = Field(default=10, ge=0)
    mean_change: float | None = Field(default=None, gt=0)


class ScreeningConfig(_Strict):
    """Which candidates go on after a stage.

    Attributes:
        keep: number of rows (1 or more), or share of them (below 1).
        metric: what they are ranked by, on the dev split alone.
        task: of the stage; None takes its first.
        best: `high`, `low`, or `far` from the baseline in either direction; None is the metric's
            own good direction.
    """

    keep: float = Field(gt=0)
    metric: str
    task: str | None = None
    best: Literal["high", "low", "far"] | None = None

    @field_validator("keep")
    @classmethod
    def _whole(cls, keep: float) -> float:
        if keep >= 1 and keep != int(keep):
            raise ValueError("a number of rows is whole; a share is below 1")
        return keep

    def kept(self, rows: int) -> int:
        """Return how many of some rows go on at most; a share is rounded up."""
        # Of 10 rows .7 are 7, though the product is a little more.
        return int(self.keep) if self.keep >= 1 else math.ceil(round(self.keep * rows, 6))


class Config(_Strict):
    """A leaderboard.

    Attributes:
        name: of the leaderboard.
        model: arguments of the model `sae_steered`: backend, pretrained, dtype, ...
        chat_template: whether prompts go through the model's chat template.
        sae: of features, edits and random features.
        features: numbers, files, `random`; one or a list of these.
        edits: each is tried on every feature.
        specs: files of further interventions, each a row.
        tasks: each is run by every row.
        prompts: rows that add an instruction and edit nothing.
        nulls: random rows.
        screening: the first one follows stage 1, and so on.
        statistics: options of the statistics; `dev_share` and `split_seed` hold for screening.
        seed: of sampling and of every random choice.
        tokens_per_second: generated, all requests together; for the estimated time.
    """

    name: str = "leaderboard"
    model: dict[str, Any] = {}
    chat_template: bool = True
    sae: SAERef = SAERef(default=True)
    features: tuple[int | SomeFeatures, ...] = ()
    edits: tuple[EditConfig, ...] = ()
    specs: tuple[Path, ...] = ()
    tasks: tuple[TaskConfig, ...] = Field(min_length=1)
    prompts: tuple[PromptConfig, ...] = ()
    nulls: NullConfig = NullConfig()
    screening: tuple[ScreeningConfig, ...] = ()
    statistics: dict[str, Any] = {}
    seed: int = 1234
    tokens_per_second: float | None = Field(default=None, gt=0)

    @field_validator("features", mode="before")
    @classmethod
    def _list(cls, given: Any) -> Any:
        return given if isinstance(given, list | tuple) else (given,)

    @field_validator("features")
    @classmethod
    def _named_once(cls, given: tuple[int | SomeFeatures, ...]) -> Any:
        numbers = [one for one in given if isinstance(one, int)]
        if twice := sorted({n for n in numbers if numbers.count(n) > 1}):
            raise ValueError(f"feature {twice[0]} is named twice")
        if any(n < 0 for n in numbers):
            raise ValueError(f"feature {min(numbers)} is negative")
        return given

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.features) != bool(self.edits):
            raise ValueError("`features` and `edits` go together; one of them is missing")
        if not (self.features or self.specs or self.prompts):
            raise ValueError("nothing to rank; give `features` and `edits`, `specs` or `prompts`")
        stages = sorted({task.stage for task in self.tasks})
        if stages != list(range(1, len(stages) + 1)):
            raise ValueError(f"stages of tasks are {stages}; number them from 1 without gaps")
        if len(self.screening) != len(stages) - 1:
            raise ValueError(
                f"{len(stages)} stages need {len(stages) - 1} entries of `screening`, there are"
                f" {len(self.screening)}"
            )
        if "spec" in self.model or "edits" in self.model or "journal" in self.model:
            raise ValueError("`model` takes no spec, edits or journal: rows and store have them")
        ids = [prompt.id for prompt in self.prompts]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two prompts are called '{max(ids, key=ids.count)}'; rename one")
        return self

    @property
    def stages(self) -> int:
        """Number of stages."""
        return max(task.stage for task in self.tasks)

    @property
    def backend(self) -> str:
        """Backend of the model."""
        return str(self.model.get("backend", "hf"))

    @property
    def split_seed(self) -> int:
        """Seed of the dev and test split."""
        given = self.statistics.get("split_seed")
        return 0 if given is None else int(given)

    @property
    def dev_share(self) -> float:
        """Share of the questions that rank."""
        given = self.statistics.get("dev_share")
        return 0.5 if given is None else float(given)

    def digest(self) -> str:
        """Return what names the rows and questions, whatever engine answers them."""
        data = self.model_dump(mode="json", exclude={"model", "tokens_per_second"})
        data["pretrained"] = self.model.get("pretrained", "default")
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def read_config(path: Path, model: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration in a YAML file; relative paths in it start at its folder.

    Args:
        path: the file.
        model: further arguments of the model, which hold before those of the file.

    Raises:
        LeaderboardError: the file is missing or says something impossible; one line.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LeaderboardError(
            f"'{path}' cannot be read: {error.strerror}; give the file of a leaderboard, such as"
            f" examples/leaderboard/small.yaml"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LeaderboardError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise LeaderboardError(f"{path} holds a {type(data).__name__}, not a mapping of keys")
    return parse_config(data, source=str(path), folder=path.parent, model=model)


def parse_config(
    data: Mapping[str, Any],
    *,
    source: str = "config",
    folder: Path = Path(),
    model: Mapping[str, Any] | None = None,
) -> Config:
    """Return the checked configuration of plain data.

    Args:
        data: keys of `Config`.
        source: quoted in errors.
        folder: where relative paths of feature files, specs and a local SAE start.
        model: further arguments of the model, which hold before those in `data`.

    Raises:
        LeaderboardError: an unknown key, a missing or impossible value; one line.
    """
    data = dict(data)
    if model and isinstance(given := data.get("model", {}), Mapping):
        data["model"] = {**given, **model}
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise LeaderboardError(f"{source}: {_one_line(error)}") from None
    features = tuple(
        one
        if isinstance(one, int) or one.file is None
        else one.model_copy(update={"file": folder / one.file})
        for one in config.features
    )
    sae = config.sae
    if sae.path is not None and not Path(sae.path).expanduser().is_absolute():
        sae = sae.model_copy(update={"path": str((folder / sae.path).absolute())})
    specs = tuple(folder / spec for spec in config.specs)
    return config.model_copy(update={"features": features, "specs": specs, "sae": sae})


def _one_line(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        # A union names each of its branches; the path up to them is what a reader wrote.
        where = ".".join(str(s) for s in problem["loc"] if s not in ("int", "SomeFeatures"))
        if problem["type"] == "extra_forbidden":
            owner = _OWNERS.get(str(problem["loc"][0]), Config)
            owner = owner if len(problem["loc"]) > 1 else Config
            message = f"unknown key; known are {', '.join(owner.model_fields)}"
        else:
            message = problem["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {message}" if where else message)
    return "; ".join(dict.fromkeys(parts))


_OWNERS: dict[str, type[BaseModel]] = {
    "features": SomeFeatures,
    "edits": EditConfig,
    "tasks": TaskConfig,
    "prompts": PromptConfig,
    "nulls": NullConfig,
    "screening": ScreeningConfig,
    "sae": SAERef,
}
