"""Find the threshold that stands for a TopK SAE's gate, so that vLLM can be steered with it.

    sae-steered threshold --sae path/to/topk_sae --pretrained default --text notes.txt

The first half of the text sets the threshold at which k features a token are active on average;
the second half shows how far its features are those of the real gate. Attention sinks are left
out. Put the number into the spec: {"sae": {"path": ..., "threshold": 1.23}}.
"""

import argparse
import json
from pathlib import Path

from interventions.default_model import resolve_pretrained
from interventions.errors import SAEError
from interventions.sae.io import load_sae
from interventions.sae.threshold import agreement, calibrated_threshold
from interventions.spec import DEFAULT_NORM_GUARD, SAERef


def main(argv: list[str] | None = None) -> int:
    """Return the exit status after printing the threshold and how well it stands for the gate.

    Raises:
        interventions.errors.SteeringError: the SAE or the model cannot be read, or the SAE has
            another gate.
    """
    parser = argparse.ArgumentParser(
        prog="sae-steered threshold",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sae", metavar="PATH", help="folder or file of the SAE")
    parser.add_argument("--release", help="SAELens release, or a repo on the hub; with --id")
    parser.add_argument("--id", help="of the SAE in a release, or folder in a path or repo")
    parser.add_argument("--pretrained", default="default", help="the model (default: %(default)s)")
    parser.add_argument("--text", metavar="FILE", nargs="+", required=True, help="UTF-8 text files")
    parser.add_argument("--context", type=int, default=256, help="tokens a row (%(default)s)")
    parser.add_argument("--tokens", type=int, default=20_000, help="most of them (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if (args.sae is None) == (args.release is None):
        parser.error("give either --sae or --release")
    ref = SAERef.model_validate({"path": args.sae, "release": args.release, "id": args.id})
    found = find(ref, args.pretrained, args.text, context=args.context, most=args.tokens)
    if args.json:
        print(json.dumps(found))
    else:
        print(
            f"threshold {found['threshold']:.6g}\n"
            f"on {found['tokens']} other tokens: {found['l0']:.1f} features a token (k ="
            f" {found['k']:.0f}), {found['precision']:.1%} of them kept by the gate too, which is"
            f" {found['recall']:.1%} of what the gate keeps"
        )
    return 0


def find(
    ref: SAERef, pretrained: str, files: list[str], *, context: int, most: int
) -> dict[str, float]:
    """Return `threshold`, and `l0`, `k`, `precision`, `recall` on `tokens` held-out tokens."""
    import torch
    import transformers

    from interventions.train.harvest import residuals

    sae = load_sae(ref)
    point = sae.resolve_hook_point()
    path = resolve_pretrained(pretrained).path
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    sae.check_width(model.config.get_text_config().hidden_size, pretrained)
    texts = [Path(file).read_text(encoding="utf-8") for file in files]
    ids = [token for text in texts for token in tokenizer(text).input_ids][:most]
    if len(ids) < 4 * context:
        raise SAEError(f"{len(ids)} tokens are too few for rows of {context}; give {4 * context}")
    rows = list(torch.tensor(ids).split(context))
    halves = []
    for part in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
        resid = residuals(model, point, part, 4096).float()
        norms = resid.norm(dim=-1)
        halves.append(resid[norms <= DEFAULT_NORM_GUARD * norms.median()])
    threshold = calibrated_threshold(sae, halves[0])
    return {
        "threshold": threshold,
        "tokens": len(halves[1]),
        **agreement(sae, threshold, halves[1]),
    }


if __name__ == "__main__":
    raise SystemExit(main())
