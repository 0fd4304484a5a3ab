import json
from pathlib import Path

import pytest
import torch

from harness_ext.cli import main
from interventions.errors import SAEError
from interventions.plan import ModelFacts, make_plan
from interventions.sae.io import load_sae
from interventions.sae.threshold import agreement, calibrated_threshold, with_threshold
from interventions.spec import SAERef, parse_spec
from tests.interventions.sae.conftest import D_MODEL


@pytest.fixture
def topk(write_sae):
    cfg = {"architecture": "topk", "k": 4, "apply_b_dec_to_input": False}
    return write_sae("topk", cfg=cfg, change={"threshold": None})


@pytest.fixture
def resid():
    return torch.randn(400, D_MODEL, generator=torch.Generator().manual_seed(1))


def test_k_features_a_token_are_active_on_average(topk, resid):
    sae = load_sae(SAERef(path=str(topk)))
    threshold = calibrated_threshold(sae, resid)
    pre = resid @ sae.W_enc + sae.b_enc
    assert int((pre > threshold).sum()) == len(resid) * 4
    found = agreement(sae, threshold, resid)
    assert found["l0"] == pytest.approx(4)
    assert found["k"] == 4
    kept = torch.zeros_like(pre).scatter_(1, pre.topk(4).indices, 1.0).bool() & (pre > 0)
    both = int((kept & (pre > threshold)).sum())
    assert found["precision"] == pytest.approx(both / (len(resid) * 4))
    assert found["recall"] == pytest.approx(both / int(kept.sum()))


def test_a_spec_with_a_threshold_gates_by_the_feature_alone(topk, resid):
    plain = load_sae(SAERef(path=str(topk)))
    sae = load_sae(SAERef(path=str(topk), threshold=1.5))
    pre = resid @ plain.W_enc + plain.b_enc
    torch.testing.assert_close(sae.encode(resid), pre * (pre > 1.5))
    assert sae.directions([0, 3]).full is None
    assert plain.directions([0, 3]).full is not None


def test_the_threshold_is_part_of_the_fingerprint(topk):
    def fingerprint(**more):
        sae = {"path": str(topk), **more}
        spec = parse_spec({"sae": sae, "norm_guard": None, "edits": [{"op": "ablate"}]})
        return make_plan(spec, ModelFacts("tiny", D_MODEL, 8)).fingerprint

    assert len({fingerprint(), fingerprint(threshold=1.5), fingerprint(threshold=1.25)}) == 3


def test_other_gates_have_no_use_for_it(write_sae):
    with pytest.raises(SAEError, match=r"is a jumprelu SAE; `threshold` goes with topk"):
        load_sae(SAERef(path=str(write_sae()), threshold=1.0))


def test_the_residual_goes_where_the_sae_is(topk, resid):
    # No second device is needed to see that nothing is left behind: the last step, which reads a
    # number, is the only one that fails on `meta`.
    sae = load_sae(SAERef(path=str(topk))).to("meta")
    assert with_threshold(sae, 1.5).threshold.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        calibrated_threshold(sae, resid)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta tensor"):
        agreement(sae, 1.5, resid)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--device", "cuda:9"], "device 'cuda:9' is not there"),
        (["--pretrained", "/no/model"], "cannot load the model '/no/model'"),
    ],
)
def test_what_the_command_cannot_read_is_one_line(topk, tmp_path, capsys, more, message):
    (tmp_path / "a.txt").write_text("some text")
    text = [] if "--text" in more else ["--text", str(tmp_path / "a.txt")]
    assert main(["threshold", "--sae", str(topk), *text, *more]) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert message in error


def test_an_sae_of_another_kind_is_refused_before_the_model_is_loaded(write_sae, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("some text")
    command = ["threshold", "--text", str(text), "--pretrained", "/no/model", "--sae"]
    assert main([*command, str(write_sae())]) == 2
    assert "is a jumprelu SAE; `threshold` goes with topk" in capsys.readouterr().err
    assert main([*command[:-1], "--release", "gemma-scope-2b-pt-res"]) == 2
    assert "--release gemma-scope-2b-pt-res needs --id" in capsys.readouterr().err


@pytest.mark.real
def test_the_command_finds_a_threshold_for_a_real_stream(tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    from interventions.default_model import default_sae_path

    source = default_sae_path()
    folder = tmp_path / "topk"
    folder.mkdir()
    weights = load_file(source / "sae_weights.safetensors")
    weights.pop("threshold")
    save_file(weights, folder / "sae_weights.safetensors")
    config = json.loads((source / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "architecture": "topk", "k": 32}))
    text = Path(__file__).parents[3] / "docs" / "interventions.md"
    command = ["threshold", "--sae", str(folder), "--text", str(text), "--context", "64", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"] > 0
    assert 16 < found["l0"] < 64
    assert found["precision"] > 0.6
