"""Find the threshold that stands for a TopK SAE's gate, so that vLLM can be steered with it.

    sae-steered threshold --sae path/to/topk_sae --pretrained default --text notes.txt

The first half of the text sets the threshold at which k features a token are active on average;
the second half shows how far its features are those of the real gate. Attention sinks are left
out. Put the number into the spec: {"sae": {"path": ..., "threshold": 1.23}}.
"""

import argparse
import json
from pathlib import Path

from harness_ext.feature_arguments import count
from interventions.errors import SAEError, SpecError, TextError
from interventions.sae.io import load_sae
from interventions.sae.threshold import agreement, calibrated_threshold, require_topk
from interventions.spec import DEFAULT_NORM_GUARD, SAERef


def main(argv: list[str] | None = None) -> int:
    """Return the exit status after printing the threshold and how well it stands for the gate.

    Raises:
        interventions.errors.SteeringError: the SAE, the model or the text cannot be read, or the
            SAE has another gate.
    """
    parser = argparse.ArgumentParser(
        prog="sae-steered threshold",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sae", metavar="PATH", help="folder or file of the SAE")
    add("--release", help="SAELens release, or a repo on the hub; with --id")
    add("--id", help="of the SAE in a release, or folder in a path or repo")
    add("--pretrained", default="default", help="the model (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add("--dtype", default="auto", help="of the model (default: as it is stored)")
    add("--text", metavar="FILE", nargs="+", required=True, help="UTF-8 text files")
    add("--context", type=count, default=256, metavar="N", help="tokens a row (%(default)s)")
    add("--tokens", type=count, default=20_000, metavar="N", help="most of them (%(default)s)")
    add("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    if (args.sae is None) == (args.release is None):
        parser.error("give either --sae or --release")
    if args.release is not None and args.id is None:
        raise SpecError(f"--release {args.release} needs --id")
    ref = SAERef.model_validate({"path": args.sae, "release": args.release, "id": args.id})
    found = find(ref, args)
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


def find(ref: SAERef, args: argparse.Namespace) -> dict[str, float]:
    """Return `threshold`, and `l0`, `k`, `precision`, `recall` on `tokens` held-out tokens."""
    import torch

    from interventions.subject import load_model
    from interventions.train.harvest import residuals

    sae = load_sae(ref)
    require_topk(sae)
    point = sae.resolve_hook_point()
    texts = [_read(Path(file)) for file in args.text]
    model, tokenizer, label = load_model(args.pretrained, device=args.device, dtype=args.dtype)
    sae.check_width(model.config.get_text_config().hidden_size, label)
    sae = sae.to(model.device)
    ids = [token for text in texts for token in tokenizer(text, verbose=False).input_ids]
    if len(ids := ids[: args.tokens]) < 4 * args.context:
        raise SAEError(
            f"{len(ids)} tokens are too few for rows of {args.context}; give {4 * args.context}"
        )
    rows = list(torch.tensor(ids).split(args.context))
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


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(f"{path} cannot be read: {error}; give UTF-8 text") from error


if __name__ == "__main__":
    raise SystemExit(main())
