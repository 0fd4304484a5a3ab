"""The residual moves by what sae_lens says: decode(features with f replaced) + error.

`before` is what the layer returned, `after` what the next layer was given; both are recorded by
hooks of the test. Every prompt and every decode position is compared, fp32, to 1e-4.
"""

from typing import Any

import pytest
import torch

from tests.lm_requests import loglikelihood_requests, recording

sae_lens = pytest.importorskip("sae_lens")

PROMPTS = ["the cat sat on the mat", "What is 3 + 4 in the end?", "x"]
BOS = 0


def reference(sae: Any, x: torch.Tensor, changes: list[tuple[str, int, float]]) -> torch.Tensor:
    """Return the delta that sae_lens gives for each change alone, summed."""
    total = torch.zeros_like(x)
    for op, feature, value in changes:
        acts = sae.encode(x)
        recon = sae.decode(acts)
        acts = sae.encode(x)
        a = acts[..., feature]
        acts[..., feature] = {
            "clamp": torch.full_like(a, value),
            "ablate": torch.zeros_like(a),
            "scale": a * value,
            "add": a + value,
        }[op]
        error = x - recon
        total += sae.decode(acts) + error - x
    return total


def load(path: str) -> Any:
    return sae_lens.SAE.load_from_disk(path, device="cpu")


ARCHITECTURES = ["standard", "jumprelu", "gated", "topk"]
NORMS = ["none", "layer_norm", "constant_norm_rescale"]


@pytest.mark.parametrize("b_dec_to_input", [True, False], ids=["b_dec", "no_b_dec"])
@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_operator_at_every_position(
    steered, generate, sae_folder, architecture, normalize, b_dec_to_input
):
    path = sae_folder(architecture=architecture, normalize=normalize, b_dec_to_input=b_dec_to_input)
    sae = load(path)
    lm = steered([], spec={"sae": {"path": path}})
    with recording(lm.model, 1) as seen, torch.no_grad():
        generate(lm, PROMPTS)
        x = seen.raw()
        assert torch.equal(seen.delta(), torch.zeros_like(x))
        busiest = (sae.encode(x) > 0).sum(dim=(0, 1)).argsort(descending=True).tolist()
    ops = [("clamp", 1.7), ("ablate", 0.0), ("scale", 2.5), ("add", 1.3)]
    changes = [(op, busiest[i], value) for i, (op, value) in enumerate(ops)]
    for op, feature, value in changes:
        edit = {"op": op, "feature": feature} | ({} if op == "ablate" else {"value": value})
        lm.set_intervention({"sae": {"path": path}, "edits": [edit], "norm_guard": None})
        with recording(lm.model, 1) as seen, torch.no_grad():
            responses = generate(lm, PROMPTS)
            want = reference(sae, seen.raw(), [(op, feature, value)])
        compare(seen.delta(), want, lm, responses, minimum=0.1)


def compare(got, want, lm, responses, *, minimum: float, kept=None):
    """Compare real tokens; everything else, padding and ended rows included, did not move."""
    lengths = [len(lm._encode_prompt(prompt)) for prompt in PROMPTS]
    width = max(lengths)
    order = sorted(range(len(PROMPTS)), key=lambda i: (-lengths[i], PROMPTS[i]))
    mask = torch.zeros(got.shape[:2], dtype=torch.bool)
    for place, index in enumerate(order):
        mask[place, width - lengths[index] : width + responses[index].n_tokens - 1] = True
    if kept is not None:
        mask &= kept(width, [width - lengths[i] for i in order], got.shape[1])
    want = torch.where(mask.unsqueeze(-1), want, 0.0)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert got.abs().max() > minimum, "nothing moved, so nothing was compared"


def test_two_features_at_one_layer_and_two_layers(steered, generate, sae_folder):
    first, second = load(sae_folder()), load(sae_folder(layer=2, seed=5))
    at_one = [("clamp", 3, 4.0), ("clamp", 8, 2.0), ("ablate", 5, 0.0), ("add", 3, 1.0)]
    at_two = [("scale", 7, 3.0), ("clamp", 9, 2.5)]

    def edit(change, **more):
        op, feature, value = change
        return {"op": op, "feature": feature, **more} | ({} if op == "ablate" else {"value": value})

    other = {"path": sae_folder(layer=2, seed=5)}
    lm = steered([*map(edit, at_one), *(edit(change, sae=other) for change in at_two)])
    with recording(lm.model, 1) as one, recording(lm.model, 2) as two, torch.no_grad():
        responses = generate(lm, PROMPTS)
        compare(one.delta(), reference(first, one.raw(), at_one), lm, responses, minimum=1)
        compare(two.delta(), reference(second, two.raw(), at_two), lm, responses, minimum=0.5)


def test_the_order_of_edits_does_not_matter(steered, generate):
    edits = [
        {"op": "clamp", "feature": 3, "value": 4.0},
        {"op": "scale", "feature": 8, "value": 3.0},
        {"op": "project", "feature": 11, "value": 2.0},
    ]
    deltas = []
    for order in (edits, edits[::-1]):
        lm = steered(order)
        with recording(lm.model, 1) as seen:
            generate(lm, PROMPTS)
        deltas.append(seen.delta())
    torch.testing.assert_close(*deltas, atol=1e-5, rtol=0)


KEPT = {
    "all": lambda column, width, start: column >= start,
    "prompt": lambda column, width, start: (column >= start) & (column < width),
    "generated": lambda column, width, start: column >= width,
    "last_prompt": lambda column, width, start: column == width - 1,
}


@pytest.mark.parametrize("skip_bos", [False, True])
@pytest.mark.parametrize("positions", KEPT)
def test_positions_while_generating(steered, generate, sae_folder, positions, skip_bos):
    edit = {"op": "clamp", "feature": 3, "value": 4.0}
    lm = steered([edit], spec={"positions": positions, "skip_bos": skip_bos})
    with recording(lm.model, 1) as seen, torch.no_grad():
        responses = generate(lm, PROMPTS)
        want = reference(load(sae_folder()), seen.raw(), [("clamp", 3, 4.0)])

    def kept(width, starts, columns):
        column = torch.arange(columns)
        rows = [
            KEPT[positions](column, width, start) & ~((column == start) & skip_bos)
            for start in starts
        ]
        return torch.stack(rows)

    compare(seen.delta(), want, lm, responses, minimum=1, kept=kept)


@pytest.mark.parametrize("special", [False, True])
def test_thinking_while_generating(steered, sae_folder, special):
    """The prompt opens the span, as R1's template does; a closing token in the output ends it."""
    edit = {"op": "clamp", "feature": 3, "value": 4.0, "positions": "thinking"}
    lm = steered([edit], model={"special_think": special})
    start, end = lm.tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    prompts = ["Why? <think> the", "no <think> so </think> the cat", "<think>a</think><think>b"]
    sae = load(sae_folder())
    from harness_ext.model_hf import SteeredHF
    from tests.lm_requests import generate_requests

    # Make the model close its span at the fourth token: push that logit up at one position.
    head = lm.model.get_output_embeddings()
    steps = [0]

    def close(module, args, output):
        steps[0] += 1
        if steps[0] == 4:
            output[..., -1, end] = 1e4

    handle = head.register_forward_hook(close)
    try:
        with recording(lm.model, 1) as seen, torch.no_grad():
            responses = lm.generate_until(generate_requests(prompts), disable_tqdm=True)
            want = reference(sae, seen.raw(), [("clamp", 3, 4.0)])
    finally:
        handle.remove()
    assert isinstance(lm, SteeredHF)
    lengths = [len(lm._encode_prompt(prompt)) for prompt in prompts]
    width, order = max(lengths), sorted(range(3), key=lambda i: (-lengths[i], prompts[i]))
    mask = torch.zeros(want.shape[:2], dtype=torch.bool)
    for place, index in enumerate(order):
        tokens = lm._encode_prompt(prompts[index])
        inside = False
        for column, token in enumerate(tokens, width - len(tokens)):
            inside = (inside or token == start) and token != end
            mask[place, column] = inside and token != start
        # Three tokens are made and fed before the closing one; prompt 2 has no open span.
        mask[place, width : width + 3] = inside
    torch.testing.assert_close(
        seen.delta(), torch.where(mask.unsqueeze(-1), want, 0.0), atol=1e-4, rtol=0
    )
    assert mask[:, width:].any()
    assert mask[:, :width].any()
    for index in (0, 2):
        assert responses[index].count("</think>") == 1
        assert responses[index].n_reasoning_tokens == 4
        assert responses[index].reasoning + "</think>" + responses[index].final == responses[index]


def test_only_where_the_feature_fires(steered, generate, sae_folder):
    sae = load(sae_folder())
    lm = steered([{"op": "clamp", "feature": 3, "value": 4.0, "when": "active"}])
    with recording(lm.model, 1) as seen, torch.no_grad():
        responses = generate(lm, PROMPTS)
        x = seen.raw()
        fires = sae.encode(x)[..., 3] > 0
        want = torch.where(
            fires.unsqueeze(-1), reference(sae, x, [("clamp", 3, 4.0)]), torch.zeros_like(x)
        )
    compare(seen.delta(), want, lm, responses, minimum=0.5)
    assert 0 < fires.sum() < fires.numel()
    (edit,) = lm.get_model_info()["sae_steered"]["receipt"]["edits"]
    assert 0 < edit["fired"] < edit["selected"]


def test_the_norm_guard_leaves_loud_tokens_alone(steered, generate, sae_folder):
    sae = load(sae_folder())
    free = steered()
    with recording(free.model, 1) as seen:
        generate(free, PROMPTS)
    norms = seen.raw().norm(dim=-1).flatten()
    limit = norms.quantile(0.6).item()
    spec = {"norm_guard": 2.0, "median_norm": limit / 2.0}
    lm = steered([{"op": "clamp", "feature": 3, "value": 4.0}], spec=spec)
    with recording(lm.model, 1) as seen, torch.no_grad():
        responses = generate(lm, PROMPTS)
        x = seen.raw()
        calm = x.norm(dim=-1, keepdim=True) <= limit
        want = torch.where(calm, reference(sae, x, [("clamp", 3, 4.0)]), torch.zeros_like(x))
    compare(seen.delta(), want, lm, responses, minimum=1)
    (edit,) = lm.get_model_info()["sae_steered"]["receipt"]["edits"]
    assert 0 < edit["guarded"] < edit["selected"]
    assert edit["edited"] == edit["selected"] - edit["guarded"]


def test_resid_pre_is_what_the_layer_receives(steered, sae_folder):
    path = sae_folder(layer=2, site="resid_pre")
    lm = steered([], spec={"sae": {"path": path}})
    # Entering layer 2 is leaving layer 1: the two hook points are one place.
    other = steered([{"op": "clamp", "feature": 3, "value": 4.0}], spec={"sae": {"path": path}})
    at_one = steered(
        [{"op": "clamp", "feature": 3, "value": 4.0}],
        spec={"sae": {"path": path}, "hook_point": "blocks.1.hook_resid_post"},
    )
    requests = loglikelihood_requests([("the cat", " sat on the mat"), ("x", " y")])
    scores = [model.loglikelihood(requests, disable_tqdm=True) for model in (lm, other, at_one)]
    assert scores[1] == scores[2]
    assert scores[0] != scores[1]
