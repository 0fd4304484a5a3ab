"""`backend=server` on a real `vllm serve`: it answers what `backend=vllm` answers."""

import pytest

from harness_ext.errors import ServerError
from harness_ext.model import SAESteeredLM
from harness_ext.stopping import Delimiters
from interventions.errors import ModelMismatchError, SpecError
from tests.lm_requests import loglikelihood_requests
from tests.vllm_lm.asked import CLAMP, SPECS, ask, facts, questions, spec
from tests.vllm_lm.conftest import DECLARED
from tests.vllm_lm.test_scores import PAIRS
from tests.vllm_server.server import KEY, serve

SAMPLED = {"do_sample": True, "temperature": 0.8}
REASONING = Delimiters("assistant", " =")


def scenario(lm, asked):
    """Return plain data: what a model answers in every way, and its receipts."""
    found = {}
    for name in ("none", "all", "generated", "two layers"):
        lm.set_intervention(SPECS[name])
        found[name, "intervention"] = lm.intervention
        found[name, "greedy"] = [facts(one) for (one,) in ask(lm, asked)]
        sampled = ask(lm, asked[:3], 2, **SAMPLED)
        found[name, "sampled"] = [facts(one) for repeats in sampled for one in repeats]
        found[name, "stops"] = [facts(one) for (one,) in ask(lm, asked, until=[" ="])]
        before, lm._delimiters = lm._delimiters, REASONING
        found[name, "reasoning"] = [facts(one) for (one,) in ask(lm, asked, until=["1", " is"])]
        lm._delimiters = before
        found[name, "scores"] = lm.loglikelihood(loglikelihood_requests(PAIRS), disable_tqdm=True)
        found[name, "rows"] = lm.get_model_info()["sae_steered"]["receipt"]["rows"]
    return found


@pytest.fixture(scope="module")
def direct(engines, hf_model):
    lm = engines.get("main", hook_points=DECLARED)
    found = scenario(lm, questions(hf_model, 6))
    engines.close()
    return found


@pytest.fixture(scope="module")
def server(direct, tmp_path_factory, engines):
    config = {"hook_points": DECLARED.split("+"), "max_edits": 4}
    with serve(tmp_path_factory.mktemp("server") / "log.txt", config) as running:
        yield running


@pytest.fixture
def connect(server, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    made = []

    def model(**arguments):
        lm = SAESteeredLM(backend="server", base_url=f"{server.url}/v1", **arguments)
        made.append(lm)
        return lm

    yield model
    for lm in made:
        lm.close()


def test_the_same_as_in_this_process(connect, direct, hf_model, say):
    found = scenario(connect(pretrained="default"), questions(hf_model, 6))
    assert found.keys() == direct.keys()
    for key, value in direct.items():
        if key[1] == "scores":
            for (ours, greedy), (theirs, other) in zip(found[key], value, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-4)
                assert greedy == other
        else:
            assert found[key] == value, key
    say(f"{len(found)} answers and receipts are the same")


def test_the_model_that_the_server_names(connect):
    lm = connect()
    assert lm.get_model_info()["sae_steered"]["engine"]["vllm"]
    assert lm._identity == connect(pretrained="default")._identity


def test_a_journal_resumes(connect, hf_model, tmp_path):
    asked = questions(hf_model, 4)
    runs = [connect(spec=SPECS["all"], journal=tmp_path / "journal") for _ in range(2)]
    first, again = (ask(lm, asked, **SAMPLED) for lm in runs)
    assert [facts(one) for (one,) in again] == [facts(one) for (one,) in first]
    told = runs[1].get_model_info()["sae_steered"]
    assert told["journal"]["made"] == 0
    assert told["receipt"]["resumed"] == 4


def test_what_the_server_refuses(connect, server, monkeypatch):
    with pytest.raises(SpecError, match="not at blocks"):
        connect(spec=spec(CLAMP, hook_point="blocks.3.hook_resid_post"))
    many = [{"op": "add", "feature": feature, "value": 1.0} for feature in range(5)]
    with pytest.raises(SpecError, match=r"5 edits.*takes 4"):
        connect(spec=spec(*many))
    monkeypatch.setenv("VLLM_API_KEY", "wrong")
    with pytest.raises(ServerError, match="refuses the key in VLLM_API_KEY"):
        connect()


def test_another_model(connect, tmp_path):
    from tests.tiny_models import save_model

    with pytest.raises(ModelMismatchError, match="the server runs"):
        connect(pretrained=str(save_model(tmp_path / "tiny", "llama")))


def test_evaluate(server, monkeypatch, tmp_path):
    """The last one: it leaves its own connection closed."""
    from harness_ext.evaluate import compare
    from interventions.spec_io import load_spec

    monkeypatch.setenv("VLLM_API_KEY", KEY)
    specs = [load_spec({"name": name, **SPECS[name]}) for name in ("all", "generated")]
    args = {"backend": "server", "base_url": server.url}
    options = {"limit": 2, "gen_kwargs": {"max_gen_toks": 24}}
    comparison = compare(args, specs, ["steer_arith_hint"], output=tmp_path, **options)
    assert [run.name for run in comparison.runs] == ["baseline", "all", "generated"]
    assert len({run.fingerprint for run in comparison.runs}) == 3
