"""An SAE that does not fit is recognised, and what is wrong with it is named."""

import json
import logging
import math
import shutil
import weakref

import pytest
import torch
from safetensors.torch import save_file

from harness_ext import cli
from interventions.default_model import default_sae_path
from interventions.errors import FeatureError
from interventions.features.doctor import Fit, better, check_at_load, conventions, diagnose
from interventions.residuals import read_residuals
from interventions.sae.io import load_sae
from interventions.spec import SAERef
from interventions.subject import load_model, load_subject
from interventions.train.config import TrainerConfig
from interventions.train.export import calibrated, fold
from interventions.train.trainer import Trainer
from tests.tiny_models import D_MODEL, save_model, save_sae

D_SAE, LAYER = 256, 1
GUARD = 10.0


def some_rows(n=40):
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 260, (100,), generator=generator) for _ in range(n)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("doctor") / "model", bos=False)


@pytest.fixture(scope="module")
def resid(model):
    from interventions.hook_points import HookPoint

    loaded, _, _ = load_model(str(model))
    batches = read_residuals(loaded, HookPoint(LAYER), some_rows())
    return torch.cat([batch.resid[batch.real].float() for batch in batches])


@pytest.fixture(scope="module")
def trained(resid):
    """Return a small SAE that was trained on this stream, in residual units."""
    config = TrainerConfig(
        d_sae=D_SAE, k=6, tokens_seen=60_000, batch_size=512, lr=4e-3, gemm="float32"
    )
    run = Trainer(resid.bfloat16(), config, seed=0)
    for batch in run.batches():
        run.train_step(batch)
    return calibrated(fold(run.weights, torch.float32), resid, 6)


def planted(trained, *, lengths=False, scale=1.0):
    """Return the weights as files hold them that were trained on `scale` times the stream.

    With `lengths` the decoder rows have lengths 2 to 5, activations are as much smaller, and
    thresholds are compared with activation x length, as OpenMOSS does.
    """
    generator = torch.Generator().manual_seed(0)
    n = 2 + 3 * torch.rand(D_SAE, generator=generator) if lengths else torch.ones(D_SAE)
    return {
        "W_enc": trained.W_enc / n,
        "W_dec": trained.W_dec * n[:, None],
        "b_enc": scale * trained.b_enc / n,
        "b_dec": scale * trained.b_dec,
        "threshold": scale * trained.threshold,
    }


def save_planted(folder, weights, *, median=None, layer=LAYER, into="saelens", **config):
    folder.mkdir()
    if into == "saelens":
        cfg = {
            "architecture": "jumprelu",
            "d_in": D_MODEL,
            "d_sae": D_SAE,
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "metadata": {"hook_name": f"blocks.{layer}.hook_resid_post"},
        }
        (folder / "cfg.json").write_text(json.dumps(cfg | config))
        save_file(weights, folder / "sae_weights.safetensors")
        if median is not None:
            save_file({"median_norm": torch.tensor(median)}, folder / "stats.safetensors")
        return str(folder)
    # Llama Scope R1-Distill: `config.json`, torch's Linear layout, a logarithm a feature.
    cfg = {
        "hook_point_in": f"blocks.{layer}.hook_resid_post",
        "hook_point_out": f"blocks.{layer}.hook_resid_post",
        "act_fn": "jumprelu",
        "norm_activation": "inference",
        "apply_decoder_bias_to_pre_encoder": True,
        "use_decoder_bias": True,
        "sparsity_include_decoder_norm": True,
        "d_model": D_MODEL,
        "expansion_factor": D_SAE / D_MODEL,
    }
    (folder / "config.json").write_text(json.dumps(cfg | config))
    tensors = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "decoder.bias": weights["b_dec"],
        "log_jumprelu_threshold": weights["threshold"].log(),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    return str(folder)


def look(model, sae, **more):
    subject = load_subject(str(model), sae, **more)
    return diagnose(subject, some_rows())


def problems(found):
    return [f.text for f in found.findings if f.level == "problem"]


def test_an_sae_that_fits_has_no_problem(model, resid, trained, tmp_path):
    median = float(resid.norm(dim=-1).median())
    sae = save_planted(tmp_path / "sae", planted(trained), median=median)
    found = look(model, sae)
    assert found.ok, found.findings
    assert found.fit.fvu < 0.3
    assert 1 < found.fit.l0 < D_MODEL
    assert [fit.label for fit in found.neighbours] == [
        "blocks.0.hook_resid_post",
        "blocks.2.hook_resid_post",
    ]
    assert all(fit.fvu > found.fit.fvu for fit in found.neighbours)
    assert found.figures["median_norm_stored"] == pytest.approx(found.figures["median_norm"])


@pytest.mark.parametrize("wrong", [0, 2])
def test_one_layer_off_is_named(model, resid, trained, tmp_path, wrong):
    sae = save_planted(tmp_path / "sae", planted(trained), layer=wrong)
    found = look(model, sae)
    assert not found.ok
    assert any(f"hook point: at blocks.{LAYER}.hook_resid_post" in text for text in problems(found))


def test_a_scan_finds_a_layer_further_away(model, resid, trained, tmp_path):
    sae = save_planted(tmp_path / "sae", planted(trained), layer=3)
    subject = load_subject(str(model), sae)
    near, far = (diagnose(subject, some_rows(), scan=scan) for scan in (False, True))
    assert not near.ok
    assert f"at blocks.{LAYER}.hook_resid_post" not in " ".join(problems(near))
    assert any(f"hook point: at blocks.{LAYER}.hook_resid_post" in text for text in problems(far))


def test_a_missing_input_scale_is_named(model, resid, trained, tmp_path):
    scale = math.sqrt(D_MODEL) / float(resid.norm(dim=-1).mean())
    assert not 0.9 < scale < 1.1
    sae = save_planted(tmp_path / "sae", planted(trained, scale=scale))
    found = look(model, sae)
    (text,) = [text for text in problems(found) if text.startswith("convention")]
    assert f"'input scaled by {scale:.4g}'" in text
    assert "`scale` in `sae`" in text


def test_a_scale_too_many_is_named(model, resid, trained, tmp_path):
    sae = save_planted(
        tmp_path / "sae", planted(trained), normalize_activations="expected_average_only_in"
    )
    from interventions.spec import SAERef

    found = look(model, SAERef(path=sae, scale=0.2))
    assert any("'input not scaled'" in text for text in problems(found))


def test_the_gate_of_llama_scope_is_right_from_its_files_and_named_where_it_is_not(
    model, resid, trained, tmp_path
):
    weights = planted(trained, lengths=True)
    right = look(model, save_planted(tmp_path / "scope", weights, into="scope"))
    assert right.ok, right.findings
    # What a loader that takes thresholds as they are makes of the same numbers.
    wrong = look(model, save_planted(tmp_path / "plain", weights))
    assert wrong.fit.fvu > 1.5 * right.fit.fvu
    (text,) = [text for text in problems(wrong) if text.startswith("convention")]
    assert "'threshold on activation x decoder norm'" in text
    assert "--sae-repo" in text
    best = next(f for f in wrong.conventions if f.label == "threshold on activation x decoder norm")
    assert best.fvu == pytest.approx(right.fit.fvu, rel=1e-4)
    flag = {"sparsity_include_decoder_norm": False}
    unset = look(model, save_planted(tmp_path / "flag", weights, into="scope", **flag))
    assert any("activation x decoder norm" in text for text in problems(unset))


def test_a_median_of_another_stream_and_an_sae_of_noise_are_named(model, resid, trained, tmp_path):
    sae = save_planted(tmp_path / "sae", planted(trained), median=1000.0)
    assert any("stored with the SAE is 1000" in text for text in problems(look(model, sae)))
    noise = look(model, str(save_sae(tmp_path / "noise").path))
    assert any("does not reconstruct" in text for text in problems(noise))
    assert any("hardly sparse" in text for text in problems(noise))


def test_conventions_are_made_one_at_a_time(model, resid, trained, tmp_path):
    weights = planted(trained, lengths=True, scale=2.0)
    norm = {"normalize_activations": "expected_average_only_in"}
    ref = SAERef(path=save_planted(tmp_path / "sae", weights, **norm), scale=2.0)
    sae = load_sae(ref)
    made, most, labels = [], 0, []
    for label, other in conventions(sae, 1.0):
        labels.append(label)
        if other.W_enc is not sae.W_enc:
            made.append(weakref.ref(other.W_enc))
        most = max(most, len({id(w()) for w in made if w() is not None}))
    assert len(labels) == 11
    assert most == 1


def test_a_better_fit_is_not_bought_with_features():
    base = Fit("as loaded", 0.2, 40, 0)
    assert better(Fit("", 0.17, 60, 0), base)
    assert not better(Fit("", 0.19, 40, 0), base)
    assert not better(Fit("", 0.1, 100, 0), base)
    assert better(Fit("", 0.2, 15, 0), base)
    assert not better(Fit("", 0.3, 15, 0), base)
    assert not better(Fit("", 0.2, 0.0, 0), base)
    assert better(Fit("", 0.3, 100, 0), Fit("as loaded", 0.9, 0.2, 0))


def test_too_few_tokens_are_refused(model, resid, trained, tmp_path):
    subject = load_subject(str(model), save_planted(tmp_path / "sae", planted(trained)))
    with pytest.raises(FeatureError, match="200 are the least"):
        diagnose(subject, some_rows(1))


def test_the_check_at_load_warns_of_noise_only(model, resid, trained, tmp_path, caplog):
    probe = load_subject(str(model), save_planted(tmp_path / "sae", planted(trained)))
    noise = load_subject(str(model), str(save_sae(tmp_path / "noise").path))
    with caplog.at_level(logging.WARNING):
        assert check_at_load(noise)
        assert "see `sae-steered doctor`" in caplog.text
        caplog.clear()
        found = check_at_load(probe)
        assert [f for f in found if "hardly any" in f.text] == []


def test_the_command_says_it_in_words_and_by_its_status(model, resid, trained, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("the end of the line in an inn, and then another one\n" * 60)
    right = save_planted(tmp_path / "right", planted(trained))
    common = ["doctor", "--model", str(model), "--text", str(text), "--context", "100"]
    noise = str(save_sae(tmp_path / "noise").path)
    assert cli.main([*common, "--sae-path", noise, "--loss"]) == 1
    shown = capsys.readouterr().out
    assert "verdict: the SAE does not fit" in shown
    assert "recovered" in shown
    code = cli.main([*common, "--sae-path", right, "--json"])
    data = json.loads(capsys.readouterr().out)
    assert code == (0 if data["ok"] else 1)
    assert data["fit"]["label"] == "as loaded"
    assert len(data["neighbours"]) == 2
    assert cli.main([*common[:5], "--sae-path", str(tmp_path / "nowhere")]) == 2


@pytest.mark.real
@pytest.mark.slow
def test_the_default_sae_fits_the_default_model_and_its_errors_are_named(capsys, tmp_path):
    def asked(*more):
        code = cli.main(["doctor", "--tokens", "1200", "--json", *more])
        found = json.loads(capsys.readouterr().out)
        return code, found, " ".join(f["text"] for f in found["findings"])

    code, found, _ = asked()
    assert code == 0
    assert found["fit"]["fvu"] < 0.25
    code, _, text = asked("--hook-point", "blocks.14.hook_resid_post")
    assert code == 1
    assert "hook point: at blocks.15.hook_resid_post" in text
    folder = shutil.copytree(default_sae_path(), tmp_path / "sae")
    config = json.loads((folder / "cfg.json").read_text())
    assert config["apply_b_dec_to_input"] is True
    (folder / "cfg.json").write_text(json.dumps(config | {"apply_b_dec_to_input": False}))
    code, _, text = asked("--sae-path", str(folder), "--any-model")
    assert code == 1
    assert "convention: with 'b_dec subtracted from the input'" in text
