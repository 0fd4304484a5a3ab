"""Bad input is told in one line, before any weights are loaded; commands end with it."""

import json
import os
import subprocess
import sys

import pytest
import transformers

from harness_ext.model_hf import SteeredHF
from interventions.errors import (
    HookPointError,
    ModelMismatchError,
    ModelNotFoundError,
    SAEError,
    SAENotFoundError,
    SpecError,
    SteeringError,
)

EDIT = {"op": "clamp", "feature": 3, "value": 4.0}


@pytest.fixture
def no_weights(monkeypatch):
    """Make loading weights fail: whoever gets there was too late."""

    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded before the input was checked")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", refuse)


def spec(sae, *, edit=None, **more):
    return {"sae": {"path": sae}, "edits": [EDIT | (edit or {})], **more}


CASES = {
    "feature out of range": (
        lambda sae: {"spec": spec(sae(), edit={"feature": 4999})},
        SAEError,
        ["feature 4999", "0..47", "name a feature"],
    ),
    "layer out of range": (
        lambda sae: {"spec": spec(sae(), hook_point="layers.40")},
        HookPointError,
        ["layer 40", "0..3", "hook_point"],
    ),
    "another width": (
        lambda sae: {"spec": spec(sae(d_model=64))},
        ModelMismatchError,
        ["width 64", "has 32", "use an SAE trained on this model"],
    ),
    "NaN strength": (
        lambda sae: {"sae_path": sae(), "sae_feature_idx": 3, "sae_strength": float("nan")},
        SpecError,
        ["strength", "finite", "nan"],
    ),
    "missing strength": (
        lambda sae: {"sae_path": sae(), "sae_feature_idx": 3},
        SpecError,
        ["`value` or `strength`", "neither"],
    ),
    "unknown key": (
        lambda sae: {"spec": spec(sae(), edit={"colour": "red"})},
        SpecError,
        ["colour", "unknown key", "known keys", "feature"],
    ),
    "missing max activation": (
        lambda sae: {"sae_path": sae(), "sae_feature_idx": 3, "sae_strength": 2.0},
        SAEError,
        ["stores none", "max_act"],
    ),
    "unknown release": (
        lambda sae: {"spec": {"sae": {"release": "gemma-scope-9000", "id": "x"}, "edits": [EDIT]}},
        SAENotFoundError,
        ["gemma-scope-9000", "gemma-scope"],
    ),
    "unknown id of a release": (
        lambda sae: {
            "spec": {
                "sae": {"release": "gemma-scope-2b-pt-res-canonical", "id": "layer_99/width_16k"},
                "edits": [EDIT],
            }
        },
        SAENotFoundError,
        ["layer_99/width_16k", "closest", "layer_"],
    ),
    "no network for a repo": (
        lambda sae: {"spec": {"sae": {"repo": "nobody/no-such-sae"}, "edits": [EDIT]}},
        SAENotFoundError,
        ["nobody/no-such-sae", "cannot be reached", "path"],
    ),
    "SAE that is not there": (
        lambda sae: {"spec": spec("/no/such/folder")},
        SAENotFoundError,
        ["/no/such/folder", "repo"],
    ),
    "spec that is not there": (
        lambda sae: {"spec": "no-such-spec.json"},
        SpecError,
        ["no-such-spec.json", "existing file"],
    ),
    "misspelt argument": (
        lambda sae: {"sae_path": sae(), "sae_feature": 3, "sae_value": 1.0},
        SpecError,
        ["sae_feature", "sae_feature_idx"],
    ),
    "two edits that contradict": (
        lambda sae: {"spec": {"sae": {"path": sae()}, "edits": [EDIT, {**EDIT, "value": 5.0}]}},
        SpecError,
        ["edits 1 and 2", "keep one"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_before_the_weights(no_weights, model_folder, sae_folder, case):
    arguments, kind, parts = CASES[case]
    with pytest.raises(kind) as caught:
        SteeredHF(model_folder(), device="cpu", **arguments(sae_folder))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    for part in parts:
        assert part in message
    assert isinstance(caught.value, SteeringError)


def test_an_sae_of_another_model(no_weights, tmp_path):
    from tests.tiny_models import make_tokenizer, save_sae

    sae = save_sae(tmp_path / "sae", model_name="google/gemma-2-2b").path
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=4, vocab_size=300)
    model = transformers.LlamaForCausalLM(config)
    model.config.name_or_path = "meta-llama/Llama-3.1-8B"
    with pytest.raises(ModelMismatchError, match="check_model: false"):
        SteeredHF(model, tokenizer=make_tokenizer(), spec=spec(str(sae)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("nobody/no-such-model", ModelNotFoundError), ("/no/such/folder", SteeringError)],
)
def test_no_such_model(no_weights, name, kind):
    with pytest.raises(kind) as caught:
        SteeredHF(name, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    assert "hub name that can be reached" in message


def test_remote_code_is_not_run_unless_asked(tmp_path):
    folder = tmp_path / "remote"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}})
    )
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(SteeringError) as caught:
        SteeredHF(str(folder), device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def run(command, cwd, **env):
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | env,
        timeout=300,
    )


@pytest.mark.slow
def test_the_command_ends_with_one_line(model_folder, sae_folder, tmp_path, repo_root):
    """`python -m harness_ext` is lm-eval's command with our model in it, installed or not."""
    (tmp_path / "docs.jsonl").write_text('{"q": "a", "a": "b"}\n')
    (tmp_path / "tiny.yaml").write_text(
        "task: tiny_cli\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs: {until: [], max_gen_toks: 4}\n"
        "metric_list: [{metric: exact_match}]\n"
    )
    wrong = f"pretrained={model_folder()},sae_path={sae_folder()},sae_feature_idx=4999,sae_value=1"
    command = [sys.executable, "-m", "harness_ext", "--model", "sae_steered", "--tasks", "tiny_cli"]
    command += ["--include_path", str(tmp_path), "--device", "cpu", "--model_args"]
    ended = run([*command, wrong], tmp_path, PYTHONPATH=str(repo_root))
    assert ended.returncode not in (0, None)
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "4999" in line and "error" in line]
    assert "0..47" in line
    assert ended.stderr.rstrip().endswith(line)
