"""Arguments that commands about features share: model, SAE, text, what becomes of a ranking."""

import argparse
import math
from pathlib import Path
from typing import Any

from interventions.errors import SpecError
from interventions.features.doctor import check_at_load
from interventions.features.scored import (
    SPEC_STRENGTH,
    SPEC_SUFFIXES,
    Scored,
    next_command,
    write_scored,
    write_spec,
)
from interventions.spec import DEFAULT_NORM_GUARD, SAERef
from interventions.subject import Subject, load_subject
from interventions.text.config import TextConfig, parse_text


def count(text: str) -> int:
    """Return a whole number of at least 1, for `type=` of an argument.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def finite(text: str) -> float:
    """Return a number that is neither infinite nor NaN, for `type=` of an argument.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return number


def at_least_0(text: str) -> float:
    """Return a finite number that is not negative, for `type=` of an argument.

    Raises:
        ArgumentTypeError: it is something else.
    """
    number = finite(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is less than 0")
    return number


def spec_file(text: str) -> Path:
    """Return the path of a spec to write, for `type=` of an argument: before hours of reading.

    Raises:
        ArgumentTypeError: its suffix is not one of a spec.
    """
    path = Path(text)
    if path.suffix not in SPEC_SUFFIXES:
        raise argparse.ArgumentTypeError(f"'{text}' is neither .yaml nor .json; name such a file")
    return path


def add_ranking(parser: argparse.ArgumentParser, *, top: int) -> Any:
    """Return the group of arguments that `write_ranking` reads, added to the parser.

    Args:
        parser: of the command.
        top: default of `--top`.
    """
    out = parser.add_argument_group("output")
    add = out.add_argument
    add(
        "--top",
        type=count,
        default=top,
        metavar="N",
        help="features in the table (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="the ranking as JSON, for `find`, `facts`, `dashboard`",
    )
    add(
        "--spec-out",
        type=spec_file,
        metavar="FILE",
        help="spec that steers the best, .yaml or .json",
    )
    add(
        "--spec-top", type=count, default=1, metavar="N", help="features in --spec-out (default: 1)"
    )
    add(
        "--spec-strength",
        type=finite,
        default=SPEC_STRENGTH,
        metavar="X",
        help="of --spec-out, in max_act (default: %(default)s)",
    )
    add("--json", action="store_true", help="print JSON in place of the table")
    return out


def write_ranking(arguments: argparse.Namespace, scored: Scored) -> str | None:
    """Return the command that steers with the best features, after writing the files asked for.

    Returns:
        None without `--spec-out`, and where no feature is in the ranking.

    Raises:
        FeatureError: a file cannot be written, or the best feature has no largest activation.
    """
    if arguments.out:
        write_scored(arguments.out, scored)
    if not arguments.spec_out or not scored.features:
        return None
    write_spec(arguments.spec_out, scored, top=arguments.spec_top, strength=arguments.spec_strength)
    return next_command(scored, arguments.spec_out)


def ways_on(arguments: argparse.Namespace, command: str | None) -> list[str]:
    """Return lines that say how to steer with the spec, or that there is none.

    Args:
        arguments: of `add_ranking`.
        command: of `write_ranking`.
    """
    if command is not None:
        return [
            "steer with it:",
            f"  {command}",
            f"clamped to {arguments.spec_strength:g} times max_act; where replies break or never"
            f" end, give a smaller --spec-strength",
        ]
    if arguments.spec_out is not None:
        return [f"no feature to steer: {arguments.spec_out} was not written"]
    return []


def add_subject(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that `subject_of` reads."""
    group = parser.add_argument_group("model and SAE")
    group.add_argument("--model", default="default", help="hub name, folder, or `default`")
    group.add_argument("--revision", help="of the model on the hub")
    group.add_argument("--sae-release", metavar="NAME", help="SAELens release, with --sae-id")
    group.add_argument("--sae-id", metavar="ID", help="id in the release, or folder in the repo")
    group.add_argument("--sae-path", metavar="PATH", help="folder or file of an SAE")
    group.add_argument("--sae-repo", metavar="OWNER/NAME", help="Hugging Face repository")
    group.add_argument("--hook-point", metavar="H", help="in place of the SAE's own")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    group.add_argument("--dtype", default="auto", help="of the model (default: as it is stored)")
    group.add_argument(
        "--guard",
        type=at_least_0,
        default=DEFAULT_NORM_GUARD,
        metavar="X",
        help="leave out tokens whose residual norm is over X medians (sinks); 0 keeps them",
    )
    group.add_argument(
        "--any-model", action="store_true", help="accept an SAE that names another model"
    )
    group.add_argument(
        "--no-check", action="store_true", help="skip the short check that the SAE fits at all"
    )


def sae_of(arguments: argparse.Namespace) -> SAERef:
    """Return the SAE that the arguments name; the default one if they name none.

    Raises:
        SpecError: more than one is named, or a release without an id.
    """
    given = {
        key: getattr(arguments, f"sae_{key}")
        for key in ("release", "path", "repo")
        if getattr(arguments, f"sae_{key}")
    }
    if len(given) > 1:
        raise SpecError(f"give one of --sae-{', --sae-'.join(given)}")
    if not given:
        if arguments.sae_id:
            raise SpecError("--sae-id goes with --sae-release, --sae-repo or --sae-path")
        if arguments.model != "default":
            raise SpecError(
                f"no SAE given for '{arguments.model}'; name one with --sae-release and --sae-id,"
                f" --sae-repo or --sae-path"
            )
        return SAERef(default=True)
    if "release" in given and not arguments.sae_id:
        raise SpecError(f"--sae-release {given['release']} needs --sae-id")
    return SAERef(**given, id=arguments.sae_id)


def subject_of(arguments: argparse.Namespace, *, check: bool = True) -> Subject:
    """Return the model and the SAE that the arguments name, loaded.

    Args:
        arguments: of `add_subject`.
        check: read some hundred tokens, and warn where the SAE does not reconstruct them.

    Raises:
        SteeringError: they are not there, or do not fit each other.
    """
    subject = load_subject(
        arguments.model,
        sae_of(arguments),
        hook_point=arguments.hook_point,
        device=arguments.device,
        dtype=arguments.dtype,
        guard=arguments.guard or None,
        check_model=not arguments.any_model,
        revision=arguments.revision,
    )
    if check and not arguments.no_check:
        check_at_load(subject)
    return subject


def add_text(parser: argparse.ArgumentParser, *, tokens: int, context: int = 256) -> None:
    """Add the arguments that `text_of` reads.

    Args:
        parser: of the command.
        tokens: default of `--tokens`.
        context: default of `--context`.
    """
    group = parser.add_argument_group("text")
    group.add_argument(
        "--text",
        action="append",
        default=[],
        metavar="SOURCE",
        help="a .jsonl, .json, .parquet or .txt file, `hub:ID` or `hub:ID:CONFIGURATION`, or"
        " `docs:PACKAGE` (docstrings of an installed package; `docs:stdlib`); may be repeated",
    )
    group.add_argument(
        "--column", metavar="NAME", help="column of --text files that holds text (default: text)"
    )
    group.add_argument(
        "--template",
        metavar="FORMAT",
        help="text from several columns, such as '{question} {reasoning}{final}' for records.jsonl",
    )
    group.add_argument("--split", default="train", help="of hub data sets (default: train)")
    group.add_argument("--text-config", type=Path, metavar="YAML", help="sources, weights and all")
    # Without defaults here, so that it is known whether they stand over those of --text-config.
    for name, default in (("tokens", tokens), ("context", context)):
        group.add_argument(f"--{name}", type=count, metavar="N", help=f"(default: {default})")
    parser.set_defaults(text_defaults={"tokens": tokens, "context": context})


def text_of(arguments: argparse.Namespace) -> TextConfig:
    """Return the text that the arguments name; `--tokens` and `--context` win over a file's.

    Raises:
        SpecError: none is named, or it is named twice.
    """
    wanted = {name: getattr(arguments, name, None) for name in ("tokens", "context")}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if arguments.text_config is not None:
        for name in ("text", "column", "template"):
            if getattr(arguments, name):
                raise SpecError(f"give --{name} or --text-config, not both")
        found = _yaml(arguments.text_config)
        return parse_text({**found, **wanted}, source=str(arguments.text_config))
    if not arguments.text:
        raise SpecError(
            "no text given; name a file, `hub:ID` or `docs:stdlib` with --text, or a --text-config"
        )
    form = {
        key: value
        for key, value in (("text", arguments.column), ("template", arguments.template))
        if value is not None
    }
    sources: list[dict[str, Any]] = []
    for text in arguments.text:
        kind, _, rest = text.partition(":")
        if kind == "hub" and rest:
            # A hub id has no colon: what follows one is the configuration.
            dataset, _, name = rest.partition(":")
            sources.append(
                {"dataset": dataset, "name": name or None, "split": arguments.split, **form}
            )
        elif kind == "docs" and rest:
            sources.append({"docs": [rest]})
        else:
            sources.append({"path": text, **form})
    settings = {"sources": sources, **getattr(arguments, "text_defaults", {}), **wanted}
    return parse_text(settings, source="arguments")


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        where = str(error).replace("\n", " ")
        raise SpecError(f"{path} cannot be read: {where}") from error
    if not isinstance(found, dict):
        raise SpecError(f"{path} holds a {type(found).__name__}; a text config is a mapping")
    return found
