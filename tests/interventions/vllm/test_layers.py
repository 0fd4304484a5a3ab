"""Armed layers: the operator is part of the graph, and what it reads may change between calls."""

import shutil

import pytest
import torch
from torch import nn

from interventions.backends.vllm import layers
from interventions.backends.vllm.compiled import FLAG_ALL, FLAG_PROMPT
from interventions.backends.vllm.tables import HookTables
from interventions.errors import HookPointError
from interventions.hook_points import HookPoint
from tests.tiny_models import D_MODEL, N_LAYERS
from tests.vllm_plans import compile_one, plan_of
from tests.vllm_toy import LAYERS, Toy, oracle

POINTS = [HookPoint(0, "resid_pre"), HookPoint(0), HookPoint(2)]
ROWS = 12


def arm(toy, points=POINTS, slots=4):
    tokens = torch.zeros(ROWS + 3, dtype=torch.int32)
    owners = torch.ones(ROWS + 3, dtype=torch.int32)
    tables = {
        index: HookTables.empty(
            slots=slots,
            accounts=2,
            max_edits=8,
            d_model=D_MODEL,
            rows=ROWS + 3,
            device=torch.device("cpu"),
        )
        for index in layers.local(toy, points, N_LAYERS)
    }
    layers.arm(toy, points, N_LAYERS, tokens, owners, tables)
    return tokens, tables


def spec(saes, value, kinds=("relu", "gated")):
    edits = [
        {"op": op, "feature": 3 + n, "sae": {"path": saes[kind]}, "hook_point": str(point)}
        | ({} if op == "ablate" else {"value": value})
        for point in POINTS
        for n, (kind, op) in enumerate(zip(kinds, ("add", "clamp"), strict=True))
    ]
    return {"edits": edits, "norm_guard": None}


def give(tables, slot, plan):
    one = compile_one(plan, POINTS)
    for index, hook_tables in tables.items():
        hook_tables.write(slot, next((h for h in one.hooks if h.index == index), None))


def check(toy, run, tokens, tables, plans, seed):
    """Hold one forward pass against the editor: row i belongs to slot i modulo 4."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 9, (ROWS,), generator=generator)
    slots = torch.arange(ROWS) % 4
    tokens.zero_()
    tokens[:ROWS] = torch.where(slots > 0, slots | (FLAG_ALL | FLAG_PROMPT) << 16, 0).int()
    for hook_tables in tables.values():
        hook_tables.counts.zero_()
    with torch.no_grad():
        output = run(ids)
    total = torch.zeros(len(POINTS), 8, 3, dtype=torch.int64)
    changed = 0
    for slot in range(4):
        rows = (slots == slot).nonzero().squeeze(1)
        plan = plans[slot - 1] if slot else None
        wanted, counts, _ = oracle(toy, plan, ids[rows].tolist(), len(rows), range(len(rows)))
        torch.testing.assert_close(output[rows], wanted, rtol=1e-4, atol=1e-4)
        plain, _, _ = oracle(toy, None, ids[rows].tolist(), len(rows), range(len(rows)))
        changed += int(((wanted - plain).abs().amax(dim=1) > 1e-3).sum())
        for point, of_edits in counts.items():
            for edit, c in enumerate(of_edits):
                total[POINTS.index(point), edit] += torch.tensor(
                    [c.selected, c.guarded, c.fired or 0]
                )
    assert changed == (slots > 0).sum(), "steering must change every steered row"
    for index, hook_tables in tables.items():
        assert torch.equal(hook_tables.counts[1], total[index])
        assert not hook_tables.counts[0].any()
    assert total[..., 0].sum() == 2 * len(POINTS) * (slots > 0).sum()


@pytest.fixture(scope="module")
def plans(saes):
    return [plan_of(spec(saes, value)) for value in (3.0, -2.0, 4.0, 1.5)]


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_every_kind_of_layer(plans, kind):
    toy = Toy(kind)
    tokens, tables = arm(toy)
    for slot in (1, 2, 3):
        give(tables, slot, plans[slot - 1])
    check(toy, toy, tokens, tables, plans, seed=0)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["LlamaDecoderLayer", "GPT2Block"])
def test_a_compiled_graph_sees_what_changes_between_calls(plans, kind, backend):
    if backend == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")
    torch._dynamo.reset()
    toy = Toy(kind)
    tokens, tables = arm(toy)
    graphs = []

    compiled = torch.compile(toy, backend=counting(backend, graphs), fullgraph=True)
    for turn, order in enumerate(([0, 1, 2], [2, 3, 1], [3, 0, 0])):
        chosen = [plans[n] for n in order]
        for slot, plan in enumerate(chosen, 1):
            give(tables, slot, plan)
        check(toy, compiled, tokens, tables, chosen, seed=turn)
    assert len(graphs) == 1, "traced once, though slots, tables and rows changed"
    nodes = [str(node.target) for node in graphs[0].graph.nodes]
    assert sum("edit_" in name for name in nodes) == len(POINTS)


def counting(backend, graphs):
    inner = torch._dynamo.lookup_backend(backend)

    def compile_graph(graph, inputs):
        graphs.append(graph)
        return inner(graph, inputs)

    return compile_graph


def test_only_the_declared_layers_are_touched():
    toy, other = Toy(), Toy()
    weights = set(toy.state_dict())
    kinds = [type(layer) for layer in toy.layers]
    arm(toy)
    touched = [type(layer) is not kind for layer, kind in zip(toy.layers, kinds, strict=True)]
    assert touched == [True, False, True, False]
    assert {type(layer).__name__ for layer in toy.layers} == {"LlamaDecoderLayer"}
    assert all(isinstance(layer, LAYERS["LlamaDecoderLayer"]) for layer in toy.layers)
    assert all(type(layer) is LAYERS["LlamaDecoderLayer"] for layer in other.layers)
    assert set(toy.state_dict()) == weights, "what a checkpoint holds does not change"
    ids = torch.arange(9)
    assert torch.equal(toy(ids), other(ids)), "no row is steered: not a bit differs"


def test_the_stream_may_be_passed_by_name(plans):
    toy = Toy()
    tokens, tables = arm(toy)
    give(tables, 1, plans[0])
    tokens[:2] = 1 | FLAG_ALL << 16
    with torch.no_grad():
        x = toy.embed(torch.tensor([4, 5]))
        named = toy.layers[0](positions=None, hidden_states=x.clone(), residual=None)
        placed = toy.layers[0](None, x.clone(), None)
    assert all(torch.equal(a, b) for a, b in zip(named, placed, strict=True))
    assert tables[0].counts[1, 0, 0] == 4


def test_an_unknown_architecture_is_refused():
    class MixtureLayer(nn.Module):
        pass

    toy = Toy()
    toy.layers = nn.ModuleList(MixtureLayer() for _ in range(N_LAYERS))
    with pytest.raises(HookPointError, match=r"its layers are MixtureLayer.*use backend=hf"):
        layers.local(toy, POINTS, N_LAYERS)
    with pytest.raises(HookPointError, match="no list of layers"):
        layers.decoder_layers(nn.Linear(2, 2), N_LAYERS)


def test_layers_of_other_pipeline_ranks_are_left_to_them():
    class PPMissingLayer(nn.Identity):
        pass

    toy = Toy()
    toy.layers[0] = PPMissingLayer()
    toy.layers[1] = PPMissingLayer()
    assert layers.local(toy, POINTS, N_LAYERS) == [2]
    _, tables = arm(toy)
    assert list(tables) == [2]
