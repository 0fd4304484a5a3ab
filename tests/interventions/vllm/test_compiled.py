"""A plan as bytes: what a worker unpacks is what the plan said, bit for bit."""

import dataclasses
import pickle
import random

import pytest
import torch

from interventions.backends.vllm.compiled import (
    FLAGS,
    NORMS,
    SCALARS,
    check_compiled,
    compile_norms,
    compile_plan,
    unpack,
)
from interventions.backends.vllm.config import GRAPH
from interventions.errors import SAEError, SpecError
from interventions.hook_points import HookPoint
from interventions.plan import ModelFacts, make_plan
from interventions.receipt import TokenFacts
from interventions.spec import parse_spec
from tests import tiny_models
from tests.vllm_plans import POINT, TOKENS, plan_of, random_spec


def by_msgpack(data):
    msgspec = pytest.importorskip("msgspec", reason="vLLM's own encoder; it comes with vLLM")
    return msgspec.msgpack.decode(msgspec.msgpack.encode(data))


def by_pickle(data):
    return pickle.loads(pickle.dumps(data))


def same(one, other):
    assert dataclasses.replace(one, hooks=()) == dataclasses.replace(other, hooks=())
    assert len(one.hooks) == len(other.hooks)
    for a, b in zip(one.hooks, other.hooks, strict=True):
        assert (a.index, a.limit) == (b.index, b.limit)
        for name in ("scalars", "e", "w"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.mark.parametrize("carry", [by_msgpack, by_pickle])
@pytest.mark.parametrize("seed", range(8))
def test_round_trip(saes, seed, carry):
    rng = random.Random(seed)
    plan = plan_of(random_spec(rng, saes, rng.randint(1, 8)))
    compiled = compile_plan(plan, [POINT], 8, TOKENS)
    assert compiled.hooks[0].e.dtype == torch.float32
    same(unpack(carry(compiled.pack())), compiled)


@pytest.mark.parametrize("seed", range(20))
def test_scalars_are_those_of_the_plan(saes, seed):
    """Column by column, from the groups, in the order in which receipts list edits."""
    rng = random.Random(seed)
    plan = plan_of(random_spec(rng, saes, rng.randint(1, 8)))
    compiled = compile_plan(plan, [HookPoint(0), POINT], 8, TOKENS)
    (layer,), (hook,) = plan.layers, compiled.hooks
    assert hook.index == 1
    assert hook.limit == (layer.norm_limit or float("inf"))
    assert compiled.fingerprint == plan.fingerprint
    row = 0
    for group in layer.groups:
        for place, selector in enumerate(group.selectors):
            found = dict(zip(SCALARS, hook.scalars[row].tolist(), strict=True))
            constants = [found[name] for name in ("a_const", "a_act", "r_const", "r_proj")]
            assert constants == group.constants[:, place].tolist()
            for name in ("beta", "mul", "beta_mag", "theta"):
                assert found[name] == float(getattr(group.directions, name)[place])
            assert found["only_active"] == float(group.only_active[place])
            assert found["norm"] == NORMS[group.directions.norm]
            assert found["wanted"] == FLAGS[selector.positions]
            assert found["skip_bos"] == float(selector.skip_bos)
            assert found["reads"] == float(group.needs_acts)
            assert torch.equal(hook.e[row], group.directions.e[place])
            assert torch.equal(hook.w[row], group.directions.w[place])
            row += 1
    assert row == len(hook.scalars)


def spec(saes, positions, skip_bos=False, **more):
    edits = [
        {"feature": n, "op": "add", "value": 1.0, "positions": kind, "skip_bos": skip_bos}
        for n, kind in enumerate(positions)
    ]
    return {
        "sae": {"path": saes["relu"]}, "edits": edits, "norm_guard": None,
        "hook_point": str(POINT), **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("positions", "keyed", "boundary"),
    [
        (["all"], True, None),
        (["thinking"], True, None),
        (["prompt"], True, 0),
        (["generated"], False, 0),
        (["last_prompt"], False, -1),
        (["generated", "last_prompt"], False, -1),
        (["all", "generated"], True, 0),
        (["prompt", "last_prompt"], True, -1),
        (["thinking", "generated"], True, 0),
    ],
)
def test_which_blocks_depend_on_an_intervention(saes, positions, keyed, boundary):
    compiled = compile_plan(plan_of(spec(saes, positions)), [POINT], 8, TOKENS)
    assert (compiled.keyed, compiled.boundary) == (keyed, boundary)
    think = (TOKENS.think_start, TOKENS.think_end) if "thinking" in positions else None
    assert compiled.think == think


def test_the_bos_is_named_only_where_an_edit_skips_it(saes):
    for skip in (False, True):
        compiled = compile_plan(plan_of(spec(saes, ["all"], skip)), [POINT], 8, TOKENS)
        assert compiled.bos == (TOKENS.bos if skip else None)
    without = TokenFacts(bos=None)
    assert compile_plan(plan_of(spec(saes, ["all"], True)), [POINT], 8, without).bos is None


def test_what_a_layer_receives_is_what_the_one_before_returns(saes):
    pre = spec(saes, ["all"], hook_point="blocks.2.hook_resid_pre")
    assert compile_plan(plan_of(pre), [POINT], 8, TOKENS).hooks[0].index == 0
    first = spec(saes, ["all"], hook_point="blocks.0.hook_resid_pre")
    with pytest.raises(SpecError, match=r"not at blocks\.0\.hook_resid_pre; declare it"):
        compile_plan(plan_of(first), [POINT], 8, TOKENS)
    both = spec(saes, ["all", "all"])
    both["edits"][1]["hook_point"] = "blocks.2.hook_resid_pre"
    with pytest.raises(SpecError, match="are one place"):
        compile_plan(plan_of(both), [POINT], 8, TOKENS)


def test_what_cannot_be_compiled_is_refused(saes, tmp_path):
    nine = spec(saes, ["all"] * 9)
    with pytest.raises(SpecError, match=r"9 edits at .* takes 8; start it with `max_edits` of 9"):
        compile_plan(plan_of(nine), [POINT], 8, TOKENS)
    topk = str(tiny_models.save_sae(tmp_path / "topk", architecture="topk").path)
    gated = {"sae": {"path": topk}, "edits": [{"feature": 1, "op": "ablate"}], "norm_guard": None}
    with pytest.raises(SAEError, match=r"topk SAE.*give `threshold`"):
        compile_plan(plan_of(gated), [POINT], 8, TOKENS)
    added = {**gated, "edits": [{"feature": 1, "op": "add", "value": 2.0}]}
    hook = compile_plan(plan_of(added), [POINT], 8, TOKENS).hooks[0]
    assert float(hook.scalars[0, SCALARS.index("reads")]) == 0
    facts = ModelFacts("tiny", tiny_models.D_MODEL, tiny_models.N_LAYERS)
    unmeasured = make_plan(parse_spec({**added, "norm_guard": 10.0}), facts)
    with pytest.raises(SAEError, match="needs the median residual norm"):
        compile_plan(unmeasured, [POINT], 8, TOKENS)


def test_another_version_is_refused_on_both_sides(saes):
    packed = compile_plan(plan_of(spec(saes, ["all"])), [POINT], 8, TOKENS).pack()
    check_compiled({"compiled": packed}, "r")
    for graph in ("0.0", None):
        other = {**packed, "graph": graph}
        with pytest.raises(SpecError, match=f"graph version {graph}, this engine has {GRAPH}"):
            unpack(other)
        with pytest.raises(SpecError, match="install one version"):
            check_compiled({"compiled": other}, "r")
    for entry in (None, "text", {}, {"compiled": "text"}, {"spec": {}}):
        with pytest.raises(SpecError, match="no frontend compiled"):
            check_compiled(entry, "r")


def test_looking_at_norms_changes_nothing_and_reads_no_cached_block():
    points = [HookPoint(0), HookPoint(2)]
    one, two = (compile_norms([HookPoint(2)], points, 16) for _ in range(2))
    assert one.fingerprint != two.fingerprint
    assert one.keyed
    assert [hook.index for hook in one.hooks] == [1]
    assert not one.hooks[0].e.any()
    assert not one.hooks[0].w.any()
    with pytest.raises(SpecError, match="declare"):
        compile_norms([HookPoint(1)], points, 16)
