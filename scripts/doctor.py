r"""Check that an SAE fits the model and hook point, and is read as it was trained.

    sae-steered doctor
    sae-steered doctor --sae-path runs/my_sae --text notes.txt --loss

With DeepSeek-R1-Distill-Llama-8B and a published SAE (GPU; about 19 GB of downloads):

    sae-steered doctor --model deepseek-ai/DeepSeek-R1-Distill-Llama-8B \
        --sae-release llama_scope_r1_distill --sae-id l18r_400m_slimpajama_400m_openr1_math

Reads a few thousand tokens, tries the conventions that SAE files leave open (input scale, what the
threshold is compared with, b_dec) and the neighbouring layers. The exit status is 0 where the SAE
fits, 1 where it does not, 2 where it cannot be tried.
"""

import argparse
import json
from typing import Any

from harness_ext.feature_arguments import add_subject, add_text, subject_of, text_of

_TOKENS = 4096


def main(argv: list[str] | None = None) -> int:
    """Return 0 where the SAE fits and 1 where it does not, after printing why.

    Raises:
        SteeringError: model, SAE or text cannot be used.
    """
    parser = argparse.ArgumentParser(
        prog="sae-steered doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_subject(parser)
    add_text(parser, tokens=_TOKENS)
    parser.add_argument("--scan", action="store_true", help="try every layer, not two neighbours")
    parser.add_argument(
        "--loss", action="store_true", help="also the model's loss with the SAE in its place"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    from interventions.features.doctor import diagnose
    from interventions.text.rows import rows

    if not arguments.text and arguments.text_config is None:
        arguments.text = ["docs:stdlib"]
    text = text_of(arguments)
    if text.tokens is None:  # of a --text-config that names none: a corpus may have no end
        text = text.model_copy(update={"tokens": _TOKENS})
    subject = subject_of(arguments, check=False)
    read = [row.ids for row in rows(text, subject.tokenizer)]
    found = diagnose(subject, read, scan=arguments.scan)
    losses = {}
    if arguments.loss:
        from interventions.train.evaluate import loss_recovered

        some = [ids.to(subject.device) for ids in read[:16]]
        limit = subject.guard and subject.guard * found.figures["median_norm"]
        losses = loss_recovered(subject.model, subject.hook_point, subject.sae, some, limit)
    if arguments.json:
        data = {"subject": subject.describe(), **found.as_dict(), "loss": losses}
        print(json.dumps(data))
    else:
        _print(subject, found, losses)
    return 0 if found.ok else 1


def _print(subject: Any, found: Any, losses: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    figures = found.figures
    print(
        f"{subject.sae_ref.label} ({subject.sae.architecture}, {subject.sae.d_sae} features) at"
        f" {subject.hook_point} of {subject.label}"
    )
    stored = figures.get("median_norm_stored")
    print(
        f"{figures['tokens']:.0f} tokens, {figures['sinks']:.0f} sinks left out; median norm"
        f" {figures['median_norm']:.4g}"
        + (f" (stored: {stored:.4g})" if stored else " (none stored)")
        + f"; decoder norms {figures['decoder_norm_min']:.3g} to {figures['decoder_norm_max']:.3g}"
    )
    table = Table()
    table.add_column("read")
    for name in ("FVU", "L0", "silent %"):
        table.add_column(name, justify="right")
    for fit in (found.fit, *found.conventions, *found.neighbours):
        table.add_row(fit.label, f"{fit.fvu:.4g}", f"{fit.l0:.4g}", f"{100 * fit.dead:.1f}")
    Console().print(table)
    if losses:
        print(
            f"next-token loss {losses['loss_base']:.3f}, with the reconstruction"
            f" {losses['loss_reconstructed']:.3f}, without the stream {losses['loss_zero']:.3f}:"
            f" {losses['recovered_zero']:.1%} recovered"
        )
    for finding in found.findings:
        print(f"{finding.level}: {finding.text}")
    print("verdict: " + ("the SAE fits" if found.ok else "the SAE does not fit as it is used here"))


if __name__ == "__main__":
    raise SystemExit(main())
