import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from interventions.errors import ModelMismatchError, SAEError
from interventions.hook_points import HookPoint
from interventions.sae.activations import feature_acts, norm_factor
from interventions.sae.build import RawSAE, build_sae, vector_sae
from interventions.sae.io import load_sae
from interventions.sae.norms import denormalise, normalise
from interventions.spec import SAERef

D_MODEL, D_SAE = 16, 40


def raw(architecture="standard", seed=0, **changes) -> RawSAE:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    fields = {
        "W_enc": draw(D_MODEL, D_SAE),
        "b_enc": draw(D_SAE),
        "b_dec": draw(D_MODEL),
        "threshold": draw(D_SAE).abs(),
        "b_gate": draw(D_SAE),
        "b_mag": draw(D_SAE),
        "r_mag": 0.1 * draw(D_SAE),
        "k": 6,
    }
    return RawSAE(architecture, draw(D_SAE, D_MODEL), "tiny SAE", **(fields | changes))


def resid(*shape, seed=1):
    return torch.randn(*shape, D_MODEL, generator=torch.Generator().manual_seed(seed))


ARCHITECTURES = ("standard", "jumprelu", "gated", "topk", "abstopk", "matching_pursuit")


def test_hand_arithmetic_of_a_jumprelu_feature():
    sae = build_sae(
        RawSAE(
            "jumprelu",
            torch.tensor([[3.0, 4.0]]),
            "hand",
            W_enc=torch.tensor([[1.0], [2.0]]),
            b_enc=torch.tensor([0.5]),
            b_dec=torch.tensor([1.0, 0.0]),
            threshold=torch.tensor([2.5]),
            apply_b_dec_to_input=True,
        )
    )
    # (x - b_dec)·W + b_enc: (1, 1) -> 2.5, not over the threshold; (1, 1.5) -> 3.5.
    acts, factor = feature_acts(torch.tensor([[1.0, 1.0], [1.0, 1.5]]), sae.directions([0]))
    assert acts.flatten().tolist() == [0.0, 3.5]
    assert factor is None
    assert sae.directions([0]).w.tolist() == [[3.0, 4.0]]
    assert sae.decode(torch.tensor([2.0]), torch.zeros(2)).tolist() == [7.0, 8.0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0)])
def test_any_leading_shape(architecture, shape):
    sae = build_sae(raw(architecture))
    x = resid(*shape)
    acts, _ = feature_acts(x, sae.directions([1, 1, 30]))
    assert acts.shape == (*shape, 3)
    assert torch.allclose(acts, sae.encode(x)[..., [1, 1, 30]], atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_low_precision_residual_is_read_in_fp32(architecture):
    sae = build_sae(raw(architecture))
    x = resid(7).bfloat16()
    acts, _ = feature_acts(x, sae.directions([2, 5]))
    assert acts.dtype == torch.float32
    assert torch.equal(acts, feature_acts(x.float(), sae.directions([2, 5]))[0])


def test_full_gates_are_computed_in_chunks(monkeypatch):
    sae = build_sae(raw("topk"))
    x = resid(9, 11)
    whole, _ = feature_acts(x, sae.directions([0, 7]))
    monkeypatch.setattr("interventions.sae.activations._CHUNK_ELEMENTS", 4 * D_SAE)
    parts, _ = feature_acts(x, sae.directions([0, 7]))
    assert torch.allclose(whole, parts, atol=1e-6)
    assert (whole > 0).any()


@pytest.mark.parametrize("mode", ["layer_norm", "constant_norm_rescale"])
def test_the_factor_undoes_the_normalisation(mode):
    x = 5 * resid(4, 3) + 2
    normed = normalise(x, mode)
    assert torch.allclose(denormalise(normed.z, normed), x, atol=1e-3)
    sae = build_sae(raw(normalize=mode))
    factor = norm_factor(x, sae.directions([0]))
    assert factor is not None
    assert torch.equal(factor, normed.factor)
    if mode == "constant_norm_rescale":
        assert torch.allclose(factor * math.sqrt(D_MODEL), x.norm(dim=-1))
        assert torch.allclose(normed.z.norm(dim=-1), torch.tensor(math.sqrt(D_MODEL)))


def test_a_threshold_below_0_lets_nothing_negative_through():
    threshold = torch.randn(D_SAE, generator=torch.Generator().manual_seed(5))
    sae, z = build_sae(raw("jumprelu", threshold=threshold)), resid(50)
    before = z.clone()
    pre = z @ sae.W_enc + sae.b_enc
    assert torch.equal(sae.encode(z), pre.relu() * (pre > threshold))
    assert ((pre < 0) & (pre > threshold)).any()
    assert torch.equal(z, before)


@pytest.mark.parametrize("mode", ["none", "layer_norm", "constant_norm_rescale"])
def test_an_all_zero_row_of_padding_stays_finite(mode):
    acts, factor = feature_acts(
        torch.zeros(2, D_MODEL), build_sae(raw(normalize=mode)).directions([0, 1])
    )
    assert acts.isfinite().all()
    assert factor is None or factor.isfinite().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_directions_move_between_devices_with_their_sae(architecture):
    dirs = build_sae(raw(architecture)).directions([3]).to("meta")
    moved = (dirs.e, dirs.w, dirs.theta, dirs.index)
    assert {tensor.device.type for tensor in moved} == {"meta"}
    if dirs.full is not None:
        assert dirs.full.W_dec.device.type == "meta"


@pytest.mark.parametrize("feature", [-1, D_SAE, 10**9])
def test_feature_out_of_range_names_feature_limit_and_sae(feature):
    with pytest.raises(SAEError, match=rf"feature {feature} is outside 0\.\.39 of tiny SAE"):
        build_sae(raw()).directions([0, feature])


def test_another_width_names_both_and_the_model():
    sae = build_sae(raw(model_name="gpt2"))
    sae.check_width(D_MODEL, "mine")
    with pytest.raises(ModelMismatchError, match=r"\(made for gpt2\) has width 16, mine has 576"):
        sae.check_width(576, "mine")


def test_hook_point_of_the_spec_wins_over_the_files():
    sae = build_sae(raw(hook_name="blocks.3.hook_resid_pre"))
    assert sae.resolve_hook_point() == HookPoint(3, "resid_pre")
    assert sae.resolve_hook_point("layers.9") == HookPoint(9)
    assert build_sae(raw(), hook_point="layers.2").hook_point == HookPoint(2)
    with pytest.raises(SAEError, match="give `hook_point` in the spec"):
        build_sae(raw()).resolve_hook_point()


@pytest.mark.parametrize(
    "name", ["blocks.4.hook_mlp_out", "layers.4.mlp", "blocks.4.hook_resid_mid"]
)
def test_saes_of_other_sites_give_directions_only(name):
    sae = build_sae(raw(hook_name=name))
    assert sae.hook_point is None
    assert not sae.directions([0]).gateable
    with pytest.raises(
        SAEError, match=f"`clamp` needs feature activations.*{name}.*use `add` or `project`"
    ):
        sae.directions([0]).require_gateable("clamp")


def test_attention_head_saes_are_refused():
    with pytest.raises(SAEError, match="in the space of attention heads"):
        build_sae(raw(hook_name="blocks.4.attn.hook_z"))


@pytest.mark.parametrize("name", ["W_dec", "W_enc", "b_enc", "b_dec"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(name, value):
    broken = raw()
    getattr(broken, name).view(-1)[3] = value
    with pytest.raises(SAEError, match=f"'{name}' holds 1 of .* not finite"):
        build_sae(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"b_enc": None}, "no tensor 'b_enc'"),
        ({"b_enc": torch.zeros(3)}, r"'b_enc' has shape \(3,\), expected \(40,\)"),
        (
            {"W_enc": torch.zeros(D_SAE, D_MODEL)},
            r"'W_enc' has shape \(40, 16\), expected \(16, 40\)",
        ),
        ({"normalize": "covariance_whitening"}, "whitening must be folded"),
        ({"normalize": "batch"}, "normalize_activations 'batch' cannot be applied"),
        ({"max_act": torch.zeros(2)}, "its statistics are of another SAE"),
        ({"architecture": "mystery"}, "unknown architecture 'mystery'; known: abstopk"),
        ({"architecture": "topk", "k": None}, r"k is None with 40 features"),
        ({"architecture": "topk", "k": 41}, r"k is 41 with 40 features"),
        ({"architecture": "groupmax", "k": 7}, r"k is 7 with 40 features"),
        ({"architecture": "jumprelu", "threshold": None}, "no tensor 'threshold'"),
    ],
)
def test_malformed_saes_are_one_line_errors(changes, message):
    with pytest.raises(SAEError, match=message) as caught:
        build_sae(raw(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_must_be_positive(scale):
    with pytest.raises(SAEError, match="it must be positive"):
        build_sae(raw(normalize="expected_average_only_in", scale=scale))


def test_a_scale_that_is_not_asked_for_is_refused():
    with pytest.raises(SAEError, match=r"remove `scale` = 2\.0"):
        build_sae(raw(), scale=2.0)


def test_building_leaves_the_files_tensors_alone():
    source = raw("topk", normalize="expected_average_only_in", scale=3.0)
    source.rescale_acts_by_decoder_norm = True
    before = source.W_dec.clone()
    build_sae(source)
    assert torch.equal(source.W_dec, before)


def test_content_hash_sees_weights_and_maths_but_not_the_path(write_sae):
    one, two = (load_sae(SAERef(path=str(write_sae(name)))) for name in ("a", "b"))
    assert one.content_hash == two.content_hash
    assert one.source != two.source
    b_enc = torch.zeros(D_SAE)
    others = [
        write_sae("c", change={"b_enc": b_enc}),
        write_sae("d", cfg={"apply_b_dec_to_input": False}),
        write_sae("e", cfg={"normalize_activations": "layer_norm"}),
        write_sae("f", cfg={"architecture": "standard"}),
    ]
    hashes = {load_sae(SAERef(path=str(path))).content_hash for path in others}
    assert len(hashes | {one.content_hash}) == 5


def test_content_hash_is_the_same_in_another_process(write_sae):
    folder = write_sae()
    code = (
        "from interventions.sae.io import load_sae; from interventions.spec import SAERef;"
        f"import sys; sys.stdout.write(load_sae(SAERef(path={str(folder)!r})).content_hash)"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == load_sae(SAERef(path=str(folder))).content_hash


def test_a_stored_dtype_of_bf16_is_computed_in_fp32(write_sae):
    folder = write_sae(change={"W_enc": torch.randn(D_MODEL, D_SAE).bfloat16()})
    sae = load_sae(SAERef(path=str(folder)))
    assert {sae.W_enc.dtype, sae.W_dec.dtype, sae.encode(resid(2)).dtype} == {torch.float32}


def test_vectors_can_be_added_but_not_clamped(tmp_path):
    save_file({"v": torch.arange(4.0)}, tmp_path / "v.safetensors", {"hook_point": "layers.2"})
    sae = load_sae(SAERef(path=str(tmp_path / "v.safetensors")))
    assert sae.directions([0]).w.tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert sae.hook_point == HookPoint(2)
    with pytest.raises(SAEError, match="directions without an encoder"):
        feature_acts(torch.zeros(1, 4), sae.directions([0]))
    with pytest.raises(SAEError, match=r"feature 1 is outside 0\.\.0"):
        sae.directions([1])


@pytest.mark.parametrize("bad", [torch.zeros(2, 2, 2), torch.zeros(3, dtype=torch.int64)])
def test_vectors_of_another_shape_or_kind(bad):
    with pytest.raises(SAEError, match="a direction is a float tensor"):
        vector_sae(bad, source="v")


def test_import_is_light():
    code = (
        "import sys, interventions.sae.io, interventions.sae.activations;"
        "heavy = {'sae_lens', 'transformer_lens', 'transformers', 'wandb', 'lm_eval'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_sae_prints_as_one_short_line():
    assert repr(build_sae(raw(hook_name="layers.3"))) == (
        "SAE('tiny SAE', standard, d_model=16, d_sae=40, hook_point=blocks.3.hook_resid_post,"
        " norm=none)"
    )
