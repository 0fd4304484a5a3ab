"""Reading the residual stream: equal to transformers' hidden states, whatever shares the batch."""

import pytest
import torch

from interventions.errors import FeatureError, HookPointError
from interventions.hook_points import parse_hook_point
from interventions.residuals import read_residuals
from tests.tiny_models import FAMILIES, make_model


def some_rows(n=9):
    generator = torch.Generator().manual_seed(0)
    lengths = [3 + (7 * i) % 23 for i in range(n)]
    return [torch.randint(3, 200, (length,), generator=generator) for length in lengths]


def by_row(model, point, rows, **settings):
    found = {}
    for batch in read_residuals(model, point, rows, **settings):
        for slot, number in enumerate(batch.rows):
            kept = batch.real[slot]
            assert batch.tokens[slot][kept].tolist() == rows[number].tolist()
            found[number] = batch.resid[slot][kept]
    return [found[i] for i in range(len(rows))]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("site", ["resid_post", "resid_pre"])
def test_it_equals_the_hidden_states(family, site):
    model = make_model(family)
    rows = some_rows()
    found = by_row(model, parse_hook_point(f"blocks.1.hook_{site}"), rows, batch_tokens=40)
    index = 2 if site == "resid_post" else 1
    for row, resid in zip(rows, found, strict=True):
        with torch.no_grad():
            states = model(row[None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(resid, states[index][0], atol=2e-5, rtol=1e-4)


def test_layers_above_never_run_and_no_hook_stays():
    model = make_model("llama")
    model.model.layers[2].forward = None  # would fail if it were called
    by_row(model, parse_hook_point("blocks.1.hook_resid_post"), some_rows(3))
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_what_counts_is_real_not_a_sink_and_not_special():
    model = make_model("llama")
    rows = some_rows(4)
    (batch,) = read_residuals(model, parse_hook_point("blocks.1.hook_resid_post"), rows)
    assert int(batch.usable(None).sum()) == sum(map(len, rows))
    limit = float(batch.norms[batch.real].median())
    keep = batch.usable(limit, [int(rows[0][0])])
    assert bool((batch.norms[keep] <= limit).all())
    assert not (batch.tokens[keep] == rows[0][0]).any()
    assert 0 < int(keep.sum()) < int(batch.real.sum())


def test_a_stream_that_is_not_finite_is_refused_and_is_no_sink():
    model = make_model("llama")
    rows, point = some_rows(4), parse_hook_point("blocks.1.hook_resid_post")
    used = {int(i) for row in rows for i in row}
    unused = next(i for i in range(3, 200) if i not in used)
    with torch.no_grad():
        model.model.embed_tokens.weight[unused] = float("nan")
    assert sum(len(batch.rows) for batch in read_residuals(model, point, rows)) == 4
    bad = torch.cat([rows[0], torch.tensor([unused])])
    with pytest.raises(FeatureError, match=r"not finite at \d of \d+ tokens in float32; check the"):
        list(read_residuals(model, point, [*rows, bad]))


def test_a_layer_outside_the_model_is_refused():
    with pytest.raises(HookPointError, match="layer 40 is outside"):
        list(read_residuals(make_model("llama"), parse_hook_point(40), some_rows(1)))
