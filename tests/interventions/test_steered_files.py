"""The files of lm-eval's own `steered` model: what it computes with them is what we compute."""

import json

import pytest
import torch
from lm_eval.models.hf_steered import SteeredModel
from safetensors.torch import load_file, save_file

from harness_ext.model_hf import SteeredHF
from interventions.editor import Editor
from interventions.errors import SpecError
from interventions.plan import ModelFacts, make_plan
from interventions.spec import SAERef
from interventions.spec_io import load_spec
from tests.tiny_models import D_MODEL, N_LAYERS, save_model, save_sae

TINY = ModelFacts("tiny", D_MODEL, N_LAYERS)
FEATURE, VALUE = 5, 3.5


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_STEERED_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_model(tmp_path_factory.mktemp("model") / "llama"))


@pytest.fixture
def sparsify(tmp_path):
    """An SAE in the layout of sparsify, which is what the CSV names, and its tensors."""
    weights = load_file(save_sae(tmp_path / "source").path / "sae_weights.safetensors")
    folder = tmp_path / "saes" / "layers.1"
    folder.mkdir(parents=True)
    theirs = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    save_file(theirs, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"activation": "topk", "k": 8, "d_in": D_MODEL}))
    return folder, theirs


def write_csv(tmp_path, folder, action):
    file = tmp_path / f"{action}.csv"
    file.write_text(
        "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,head_index,sae_id\n"
        f"sparsify,{action},{folder.parent},layers.1,{FEATURE},{VALUE},,\n"
    )
    return file


def write_pt(tmp_path, weights, action, *, bias):
    file = tmp_path / f"{action}-{bias}.pt"
    torch.save(
        {
            "layers.1": {
                "steering_vector": weights["W_dec"][FEATURE].clone(),
                "steering_coefficient": VALUE,
                "action": action,
                "bias": weights["b_dec"].clone() if bias else None,
            }
        },
        file,
    )
    return file


def edited(file, x):
    (layer,) = make_plan(load_spec(file), TINY).layers
    editor = Editor(layer)
    masks = {selector: torch.ones(x.shape[:-1]).bool() for selector in layer.selectors}
    return editor(x, masks)


def test_their_functions_called_directly(tmp_path, sparsify):
    folder, weights = sparsify
    x = 3 * torch.randn(2, 7, D_MODEL, generator=torch.Generator().manual_seed(1))
    w, b = weights["W_dec"][FEATURE], weights["b_dec"]
    unit = w / w.norm()
    cases = [
        (write_csv(tmp_path, folder, "add"), SteeredModel.add(x, VALUE * w, None)),
        (write_csv(tmp_path, folder, "clamp"), SteeredModel.clamp(x, unit, VALUE, None, b)),
        (write_pt(tmp_path, weights, "add", bias=False), SteeredModel.add(x, VALUE * w, None)),
        (
            write_pt(tmp_path, weights, "clamp", bias=True),
            SteeredModel.clamp(x, unit, VALUE, None, b),
        ),
        (
            write_pt(tmp_path, weights, "clamp", bias=False),
            SteeredModel.clamp(x, unit, VALUE, None, None),
        ),
    ]
    for file, theirs in cases:
        torch.testing.assert_close(edited(file, x), theirs, atol=1e-5, rtol=0)
        assert (theirs - x).abs().max() > 0.1


@pytest.mark.parametrize(
    ("action", "bias", "kind"),
    [
        ("add", False, "pt"),
        ("clamp", False, "pt"),
        ("clamp", True, "pt"),
        ("clamp", True, "csv"),
        ("add", False, "csv"),
    ],
)
def test_logits_of_their_model_and_ours(tmp_path, model, sparsify, action, bias, kind):
    """Their CSV route always asserts on `add` and needs sparsify; so their model reads the .pt."""
    folder, weights = sparsify
    theirs_file = write_pt(tmp_path, weights, action, bias=bias)
    ours_file = theirs_file if kind == "pt" else write_csv(tmp_path, folder, action)
    arguments = {"dtype": "float32", "device": "cpu", "batch_size": 2}
    theirs = SteeredModel(model, steer_path=str(theirs_file), **arguments)
    ours = SteeredHF(model, spec=str(ours_file), **arguments)
    rows = [[5, 6, 7, 8, 9, 10], [20, 21, 22, 23, 24, 25]]
    logits = theirs._model_call(torch.tensor(rows))
    seen = []
    real = ours._model_call
    ours._model_call = lambda *args, **kwargs: seen.append(real(*args, **kwargs)) or seen[-1]
    requests = [(None, row[:3], [*row[3:], 1]) for row in rows]
    scores = ours._loglikelihood_tokens(requests, disable_tqdm=True)
    order = [0, 1] if torch.allclose(seen[0][0], logits[0], atol=1e-3) else [1, 0]
    torch.testing.assert_close(seen[0][order], logits, atol=1e-5, rtol=0)
    their_scores = theirs._loglikelihood_tokens(requests, disable_tqdm=True)
    for (a, greedy), (b, their_greedy) in zip(scores, their_scores, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
        assert greedy == their_greedy
    plain = SteeredHF(model, **arguments)
    assert (plain.model(torch.tensor(rows)).logits - logits).abs().max() > 0.01


def test_several_rows_of_a_csv_at_one_layer_are_all_kept(tmp_path, sparsify):
    """Their loader keeps the last one only."""
    folder, _ = sparsify
    file = write_csv(tmp_path, folder, "add")
    row = f"sparsify,add,{folder.parent},layers.1,9,1.5,,\n"
    file.write_text(file.read_text() + row)
    spec = load_spec(file)
    assert [edit.feature for edit in spec.edits] == [FEATURE, 9]
    assert spec.norm_guard is None


def test_a_release_of_saelens_in_a_csv(tmp_path):
    file = tmp_path / "s.csv"
    file.write_text(
        "loader,action,sparse_model,hookpoint,feature_index,steering_coefficient,head_index,sae_id\n"
        "sae_lens,add,gemma-scope-2b-pt-res-canonical,,12082,240.0,,layer_20/width_16k/canonical\n"
    )
    (edit,) = load_spec(file).edits
    assert edit.sae == SAERef(
        release="gemma-scope-2b-pt-res-canonical", id="layer_20/width_16k/canonical"
    )
    assert (edit.hook_point, edit.value) == (None, 240.0)


def test_the_vector_is_kept_under_its_own_hash(tmp_path, sparsify):
    file = write_pt(tmp_path, sparsify[1], "add", bias=False)
    first, again = load_spec(file), load_spec(file)
    assert first.edits == again.edits
    (kept,) = (tmp_path / "cache" / "vectors").iterdir()
    assert torch.equal(load_file(kept)["direction"], sparsify[1]["W_dec"][FEATURE])


def test_the_fingerprint_follows_the_vector(tmp_path, sparsify):
    prints = set()
    for scale in (1.0, 1.0, 2.0):
        weights = {**sparsify[1], "W_dec": sparsify[1]["W_dec"] * scale}
        prints.add(
            make_plan(load_spec(write_pt(tmp_path, weights, "add", bias=False)), TINY).fingerprint
        )
    assert len(prints) == 2


def test_the_file_of_the_airi_fork(tmp_path, sparsify):
    from interventions.spec_io import spec_from_args

    file = tmp_path / "airi.pt"
    torch.save(
        {7: {"max_activation": 5.84, "strength": 2.0}, 9: {"max_activation": 1.0, "strength": 3.0}},
        file,
    )
    spec = spec_from_args({"sae_path": str(sparsify[0]), "sae_intervention_path": str(file)})
    assert spec is not None
    assert [(e.op, e.feature, e.strength, e.max_act) for e in spec.edits] == [
        ("project", 7, 2.0, 5.84),
        ("project", 9, 3.0, 1.0),
    ]


VECTOR = torch.ones(D_MODEL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({}, "nothing to steer"),
        ({"layers.1": {"action": "add"}}, "steering_vector"),
        ({"layers.1": {"steering_vector": VECTOR, "action": "boost"}}, "unknown action 'boost'"),
        ({"layers.1": {"steering_vector": VECTOR, "action": "add", "head_index": 2}}, "head_index"),
        ({"layers.1": {"steering_vector": 0 * VECTOR, "action": "add"}}, "length 0"),
        ({"layers.1": {"steering_vector": [1.0], "action": "add"}}, "AttributeError"),
        ({"layers.1": {"steering_vector": VECTOR, "action": "add", "bias": VECTOR}}, "bias goes"),
        (
            {"layers.1": {"steering_vector": VECTOR, "action": "clamp", "bias": VECTOR[:4]}},
            "bias has 4 values, steering_vector 32",
        ),
        (
            {
                "layers.1": {
                    "steering_vector": VECTOR,
                    "action": "add",
                    "steering_coefficient": None,
                }
            },
            "TypeError",
        ),
        ({"layers.1.mlp": {"steering_vector": VECTOR, "action": "add"}}, "residual stream"),
    ],
)
def test_wrong_files_are_told_in_one_line(tmp_path, content, message):
    file = tmp_path / "wrong.pt"
    torch.save(content, file)
    with pytest.raises(SpecError, match=message) as caught:
        load_spec(file)
    assert "\n" not in str(caught.value)


def test_pickles_are_never_run(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = tmp_path / "evil.pt"
    file.write_bytes(pickle.dumps({"layers.1": Evil()}))
    with pytest.raises(SpecError, match="pickles are never run"):
        load_spec(file)
    torch.save({"layers.1": Evil()}, file)
    with pytest.raises(SpecError, match="pickles are never run"):
        load_spec(file)
    assert not (tmp_path / "ran").exists()
