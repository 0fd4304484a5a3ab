"""The routes under /sae_steered/: what they say, to whom, and how they refuse."""

import importlib.metadata

import pytest
import torch

from interventions.backends.hf import measure_median_norms
from interventions.backends.vllm.config import GRAPH
from interventions.default_model import resolve_pretrained
from interventions.fingerprint import weights_digest
from interventions.hook_points import parse_hook_point
from interventions.plan import ModelFacts, make_plan
from interventions.spec import parse_spec
from tests.vllm_server import specs
from tests.vllm_server.ask import one
from tests.vllm_server.server import KEY, MODEL, POINTS


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers")
    path = resolve_pretrained("default").path
    return (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(),
        transformers.AutoTokenizer.from_pretrained(path),
    )


def message(response, status=400):
    assert response.status_code == status, response.text
    text = response.json()["error"]["message"]
    assert "\n" not in text
    return text


def test_info_tells_what_a_client_has_to_know(server, model):
    info = server.get("/sae_steered/info").json()
    listed = info.pop("saes")
    assert [set(ref) for ref in listed] == [{"path"}]
    assert info == {
        "model": MODEL,
        "identity": weights_digest(model[0]),
        "dtype": "float32",
        "variant": {},
        "d_model": 576,
        "n_layers": 30,
        "hook_points": sorted(POINTS, key=parse_hook_point),
        "max_edits": 4,
        "max_model_len": 1024,
        "max_num_seqs": 16,
        "data_parallel_size": 1,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "vllm": info["vllm"],
        "sae_steered": importlib.metadata.version("sae-steered"),
        "graph": GRAPH,
    }
    assert info["vllm"].count(".") == 2


@pytest.mark.parametrize("name", [name for name, spec in specs.MIXED.items() if spec])
def test_check_names_the_fingerprint_that_transformers_would(server, model, name):
    facts = ModelFacts(resolve_pretrained("default").label, 576, 30, weights_digest(model[0]))
    plan = make_plan(parse_spec(specs.MIXED[name]), facts)
    answer = server.post("/sae_steered/check", {"spec": specs.MIXED[name]})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "fingerprint": plan.fingerprint if plan.layers else "none",
        "edits": plan.description,
        "median_norm": {str(layer.hook_point): layer.median_norm for layer in plan.layers},
    }


@pytest.mark.parametrize("name", specs.BAD)
def test_check_refuses_in_one_line(server, name):
    spec, reason = specs.BAD[name]
    if isinstance(spec, dict):
        assert reason in message(server.post("/sae_steered/check", {"spec": spec}))
    else:
        assert "`spec`" in message(server.post("/sae_steered/check", {"spec": spec}))


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("check", "{", "keys spec"),
        ("check", "[]", "keys spec"),
        ("check", {}, "`spec`: Field required"),
        ("check", {"spec": {}, "specs": 1}, "`specs`"),
        ("check", b"\xff\xfe", "keys spec"),
        ("check", '{"spec":' * 3000, "keys spec"),
        ("receipt", {"tags": "a"}, "`tags`"),
        ("receipt", {"tags": [1]}, "`tags.0`"),
        ("receipt", b" " * (17 << 20), "bytes"),
        ("median_norm", {"hook_points": []}, "`hook_points`"),
        ("median_norm", {"hook_points": ["nowhere"]}, "nowhere"),
        ("median_norm", {"hook_points": ["blocks.3.hook_resid_post"]}, "not at blocks.3"),
        ("median_norm", {"hook_points": ["blocks.99.hook_resid_post"]}, "outside 0..29"),
    ],
)
def test_a_wrong_body_is_refused_in_one_line(server, path, content, reason):
    assert reason in message(server.post(f"/sae_steered/{path}", content))


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": KEY}])
@pytest.mark.parametrize("path", ["check", "receipt", "median_norm"])
def test_the_routes_ask_for_the_servers_key(server, path, headers):
    answer = server.post(f"/sae_steered/{path}", {}, headers=headers)
    assert answer.status_code == 401
    assert answer.json() == {"error": "Unauthorized"}


def test_a_tag_that_nobody_used_has_an_empty_receipt(server):
    assert server.receipt("nobody") == []


def test_median_norms_are_those_that_transformers_measures(server, model):
    points = [parse_hook_point(text) for text in POINTS]
    expected = measure_median_norms(*model, points)
    answer = server.post("/sae_steered/median_norm", {"hook_points": POINTS})
    assert answer.status_code == 200, answer.text
    assert answer.json()["median_norm"] == {
        str(point): pytest.approx(expected[point], rel=2e-3) for point in points
    }
    again = server.post("/sae_steered/median_norm", {"hook_points": POINTS[:1]})
    assert again.json()["median_norm"].items() <= answer.json()["median_norm"].items()


def test_a_direction_without_a_median_is_used_with_the_one_measured(server, saes):
    point = POINTS[1]
    spec = {
        "sae": {"path": str(saes / "listed"), "id": "direction.safetensors"},
        "hook_point": point,
        "edits": [{"op": "add", "value": 30.0}],
    }
    answer = server.post("/sae_steered/check", {"spec": spec})
    assert "needs the median residual norm" in message(answer)
    assert answer.json()["error"]["param"] == "median_norm"
    assert answer.json()["error"]["hook_points"] == [point]
    norms = server.post("/sae_steered/median_norm", {"hook_points": [point]}).json()
    checked = server.post("/sae_steered/check", {"spec": {**spec, **norms}})
    assert checked.status_code == 200, checked.text
    steered = one(server, {**spec, **norms}, tag="direction")
    assert steered.tokens != one(server).tokens
    (facts,) = server.receipt("direction")
    assert facts["fingerprint"] == checked.json()["fingerprint"]


def test_a_file_beside_the_listed_folder_is_not_read(server, saes):
    spec = {"edits": [{"op": "add", "value": 1.0}], "norm_guard": None}
    for path in ({"path": str(saes / "other.safetensors")},
                 {"path": str(saes / "listed"), "id": "../other.safetensors"}):  # fmt: skip
        answer = server.post("/sae_steered/check", {"spec": {**spec, "sae": path}})
        assert "does not read the SAE" in message(answer)
