"""`sae-steered evaluate` end to end on a tiny model: one load, paired rows, files that add up."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from harness_ext import cli
from harness_ext.autoload import install
from harness_ext.errors import TaskConfigError
from harness_ext.evaluate import COLUMNS, Comparison, Run, compare
from harness_ext.evaluate_specs import SHOWN, feature_specs, named_specs
from harness_ext.evaluate_table import render
from harness_ext.metrics import summarise
from harness_ext.records import read_records
from interventions.errors import SAEError, SpecError, SteeringError
from interventions.plan import ModelFacts, make_plan
from interventions.spec import InterventionSpec
from interventions.spec_io import load_spec
from tests.tiny_models import save_model, save_sae

LIMIT = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("tiny")
    return {
        "backend": "hf",
        "pretrained": str(save_model(folder, max_position_embeddings=512)),
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> list[InterventionSpec]:
    sae = save_sae(tmp_path_factory.mktemp("sae"))
    flags = {"op": "add", "value": 30.0, "sae_path": str(sae.path), "positions": "all"}
    return [spec.model_copy(update={"check_model": False}) for spec in feature_specs("0,1", flags)]


@pytest.fixture(scope="module")
def run(model, specs, tmp_path_factory):
    install()
    output = tmp_path_factory.mktemp("out")
    options = {"limit": LIMIT, "gen_kwargs": {"max_gen_toks": 8}, "chat_template": False}
    comparison = compare(model, specs, ["steer_arith_hint"], output=output, **options)
    return comparison, output


def test_every_run_answers_the_same_prompts_under_its_own_intervention(run) -> None:
    comparison, _ = run
    assert [r.name for r in comparison.runs] == ["baseline", "add f0 at 30", "add f1 at 30"]
    assert comparison.runs[0].fingerprint == "none"
    assert len({r.fingerprint for r in comparison.runs}) == 3
    asked = [{(x.qid, x.arm_name) for x in r.records} for r in comparison.runs]
    assert asked[0] == asked[1] == asked[2]
    assert len(asked[0]) == 4 * LIMIT
    texts = [[x.reasoning + x.final for x in r.records] for r in comparison.runs]
    assert texts[0] != texts[1] != texts[2]


def test_the_numbers_can_be_recomputed_from_the_files(run) -> None:
    comparison, output = run
    written = json.loads((output / "comparison.json").read_text())
    for r, folder in zip(
        comparison.runs, ["baseline", "add_f0_at_30", "add_f1_at_30"], strict=True
    ):
        records = read_records(output / folder / "records.jsonl")
        samples = list((output / folder).glob("samples_steer_arith_hint_*.jsonl"))
        assert records == list(r.records) == read_records(samples[0])
        results = json.loads(next((output / folder).glob("results_*.json")).read_text())
        told = results["config"]["sae_steered"]
        assert told["intervention"] == r.fingerprint
        rows = [row for row in told["receipt"]["edits"]]
        assert all(row["selected"] == row["expected"] > 0 for row in rows)
        summary = summarise(records)["steer_arith_hint"][r.fingerprint]
        row = next(row for row in written["runs"] if row["name"] == r.name)
        assert row["summary"]["steer_arith_hint"] == json.loads(json.dumps(summary))


def test_the_receipt_of_a_run_counts_that_run_only(run) -> None:
    _, output = run
    rows = []
    for folder in ("add_f0_at_30", "add_f1_at_30"):
        results = json.loads(next((output / folder).glob("results_*.json")).read_text())
        rows.append(results["config"]["sae_steered"]["receipt"]["rows"])
    assert rows == [4 * LIMIT, 4 * LIMIT]


def test_the_table_shows_every_run_and_column(run) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(run[0]))
    text = console.export_text()
    assert "16 responses a row" in text
    for words in ("baseline", "add f0", "add f1", "accuracy", "tokens"):
        assert words in text
    assert set(COLUMNS) >= {"acc_none", "influence", "mean_tokens"}


def test_tasks_without_records_are_shown_by_lm_evals_own_metrics() -> None:
    def made(name: str, acc: float) -> Run:
        row = {"alias": "piqa", "acc,none": acc, "acc_stderr,none": 0.0125, "f1,strict": 1.0}
        row |= {"f1_stderr,strict": "N/A", "name": "piqa", "sample_len": 8}
        return Run(name, name, (), {"results": {"piqa": row, "a_group": {"alias": "a_group"}}})

    comparison = Comparison((made("baseline", 0.5), made("music", 0.375)))
    assert comparison.others == {"piqa": ("acc", "f1 (strict)")}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(comparison))
    rows = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert ["baseline", "0.5", "±", "0.013", "1"] in rows
    assert ["music", "0.375", "±", "0.013", "1"] in rows
    told = comparison.as_dict()["runs"][1]
    assert told["lm_eval"]["piqa"]["acc,none"] == 0.375
    assert told["summary"] == {}


def test_mistakes_are_told_before_the_model_is_loaded(model, specs, tmp_path, monkeypatch) -> None:
    import transformers

    def fail(*args, **kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    out_of_range = specs[0].model_copy(
        update={"edits": (specs[0].edits[0].model_copy(update={"feature": 999_999}),)}
    )
    with pytest.raises(SAEError, match="feature 999999 is outside"):
        compare(model, [out_of_range], ["steer_arith_hint"], output=tmp_path)
    with pytest.raises(SpecError, match="2 interventions are called"):
        compare(model, [specs[0], specs[0]], ["steer_arith_hint"], output=tmp_path)
    one_folder = [specs[0].model_copy(update={"name": name}) for name in ("a b", "a_b")]
    with pytest.raises(SpecError, match=r"2 interventions are called 'a b'.*folder 'a_b'"):
        compare(model, one_folder, ["steer_arith_hint"], output=tmp_path)
    with pytest.raises(TaskConfigError, match="unknown task 'steer_nothing'"):
        compare(model, specs, ["steer_nothing"], output=tmp_path)


def test_feature_flags() -> None:
    with pytest.raises(SpecError, match="feature 'x' is not a number"):
        feature_specs("1,x", {"op": "clamp", "strength": 1.0})
    with pytest.raises(SteeringError, match="either `value` or `strength`"):
        feature_specs("1", {"op": "clamp"})
    with pytest.raises(SpecError, match="no intervention given for 'other'"):
        named_specs("other")


DEFAULT_FACTS = ModelFacts("HuggingFaceTB/SmolLM2-135M-Instruct", d_model=576, n_layers=30)


def test_the_default_run_has_a_null_of_the_same_size() -> None:
    chosen = named_specs("default")
    assert [spec.name.split()[0] for spec in chosen] == [*SHOWN, "random"]
    assert chosen[-1].edits[0].value == chosen[0].edits[0].value
    assert all(make_plan(spec, DEFAULT_FACTS).fingerprint for spec in chosen)


@pytest.mark.parametrize("name", ["music.yaml", "two_layers.yaml"])
def test_the_example_specs_fit_the_default_model(repo_root: Path, name: str) -> None:
    spec = load_spec(repo_root / "examples" / "specs" / name)
    assert make_plan(spec, DEFAULT_FACTS).layers


def test_the_example_for_a_release_is_a_spec(repo_root: Path) -> None:
    spec = load_spec(repo_root / "examples" / "specs" / "r1_distill.json")
    assert spec.sae is not None
    assert spec.sae.release == "llama_scope_r1_distill"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--strength", "2"], "--strength is about --features, which is not given"),
        (["--spec", "SPEC", "--op", "add"], "--op is about --features"),
        (["--sae-path", "mine"], "--sae-path is about --features"),
        (["--features", ""], "feature '' is not a number"),
        (["--limit", "0"], "argument --limit: 0 is less than 1"),
        (["--limit", "-3"], "argument --limit: -3 is less than 1"),
        (["--metadata", "{hint_seed: 1}"], "'{hint_seed: 1}' is no JSON object"),
        (["--metadata", "[1]"], "'[1]' is no JSON object"),
        (["--output", "FILE"], "cannot be written: "),
    ],
)
def test_arguments_that_would_do_nothing_or_harm_are_refused(argv, told, tmp_path, capsys):
    (tmp_path / "spec.yaml").write_text("{sae: default, edits: [{op: ablate, feature: 1}]}")
    (tmp_path / "file").write_text("in the way")
    places = {"SPEC": str(tmp_path / "spec.yaml"), "FILE": str(tmp_path / "file")}
    argv = ["evaluate", *(places.get(word, word) for word in argv)]
    if argv[1] != "--output":
        argv += ["--output", str(tmp_path / "out")]
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    captured = capsys.readouterr()
    assert told in captured.err.splitlines()[-1]
    assert captured.out == ""
    assert not (tmp_path / "out").exists()
