import json

import pytest
import torch

from interventions.hook_points import HookPoint
from interventions.train.export import calibrated, fold, save_saelens
from interventions.train.pipeline import load_trained
from interventions.train.stats import feature_stats, firing
from interventions.train.trainer import Dictionary


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(4)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Dictionary(rand(16, 40), rand(40), 3 * rand(40, 16), rand(16), scale=0.25)


@pytest.fixture
def resid():
    return 8 * torch.randn(3000, 16, generator=torch.Generator().manual_seed(5))


def test_folding_changes_units_and_nothing_else(weights, resid):
    sae = fold(weights, torch.float32)
    x = resid * weights.scale
    acts = weights.pre(x).relu()
    norms = weights.W_dec.norm(dim=-1)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(40))
    torch.testing.assert_close(sae.encode(resid), acts * norms / 0.25, rtol=1e-4, atol=1e-3)
    recon = (acts @ weights.W_dec + weights.b_dec) / weights.scale
    torch.testing.assert_close(sae.decode(sae.encode(resid)), recon, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_threshold_gives_k_active_features(weights, resid, k):
    sae = calibrated(fold(weights, torch.bfloat16), resid, k)
    l0 = (sae.encode(resid) > 0).sum() / len(resid)
    assert l0.item() == pytest.approx(k, abs=0.01)
    assert sae.threshold.unique().numel() == 1


def test_our_loader_reads_what_is_saved(weights, resid, tmp_path):
    sae = calibrated(fold(weights, torch.bfloat16), resid, 4)
    meta = {"model_name": "m", "median_norm": 31.5}
    path = save_saelens(tmp_path / "sae", sae, HookPoint(2), meta)
    read = load_trained(path.parent)
    assert (str(read.hook_point), read.model_name) == ("blocks.2.hook_resid_post", "m")
    assert read.median_norm == 31.5
    torch.testing.assert_close(read.encode(resid), sae.encode(resid), rtol=1e-5, atol=1e-4)
    config = json.loads((path.parent / "cfg.json").read_text())
    assert config["normalize_activations"] == "none"


@pytest.mark.slow
def test_sae_lens_reads_what_is_saved(weights, resid, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    sae = calibrated(fold(weights, torch.bfloat16), resid, 4)
    save_saelens(tmp_path, sae, HookPoint(2), {"model_name": "m", "median_norm": 31.5})
    theirs = sae_lens.SAE.load_from_disk(str(tmp_path), device="cpu")
    acts = sae.encode(resid)
    assert (acts > 0).any()
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(resid), acts, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(theirs.decode(acts), sae.decode(acts), rtol=1e-5, atol=1e-3)
    assert theirs.cfg.metadata.hook_name == "blocks.2.hook_resid_post"


def test_stats_equal_their_definition(weights, resid):
    sae = calibrated(fold(weights, torch.float32), resid, 4)
    sae.b_enc[7] = -1e6  # never fires
    steps = []
    found = feature_stats(firing(sae.encode, resid, steps.append))
    acts = sae.encode(resid)
    assert steps[-1] == 3000
    for feature in range(40):
        values = acts[:, feature][acts[:, feature] > 0]
        assert found["count"][feature] == len(values)
        assert found["density"][feature].item() == pytest.approx(len(values) / 3000)
        if len(values):
            assert found["max_act"][feature] == values.max()
            assert found["mean_act"][feature].item() == pytest.approx(
                values.mean().item(), rel=1e-4
            )
            rank = round((len(values) - 1) * 0.999)
            assert found["p999"][feature] == values.sort().values[rank]
    assert [found[name][7].item() for name in ("count", "max_act", "mean_act", "p999")] == [0] * 4
