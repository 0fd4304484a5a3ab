"""Modules import downwards only, and every module is in the list.

A new module: add it to `ORDER` above everything that it imports. An import inside a function
counts too; one under `if TYPE_CHECKING` does not, for it never runs.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Lowest first.
ORDER = """
interventions
interventions.errors
interventions.cache
interventions.fingerprint
interventions.hook_points
interventions.spec
interventions.spec_io
interventions.positions
interventions.ops
interventions.default_model
interventions.sae
interventions.sae.norms
interventions.sae.gates
interventions.sae.core
interventions.sae.build
interventions.sae.registry
interventions.sae.formats
interventions.sae.formats.files
interventions.sae.formats.saelens
interventions.sae.formats.sparsify
interventions.sae.formats.dictionary_learning
interventions.sae.formats.gemma_scope
interventions.sae.formats.llama_scope
interventions.sae.formats.single_file
interventions.sae.formats.detect
interventions.sae.activations
interventions.sae.threshold
interventions.sae.io
interventions.plan
interventions.editor
interventions.receipt
interventions.backends
interventions.backends.hf
interventions.residuals
interventions.subject
interventions.backends.vllm
interventions.backends.vllm.config
interventions.backends.vllm.compiled
interventions.backends.vllm.triton_op
interventions.backends.vllm.op
interventions.backends.vllm.tables
interventions.backends.vllm.steps
interventions.backends.vllm.accounts
interventions.backends.vllm.layers
interventions.backends.vllm.kv_keys
interventions.backends.vllm.identity
interventions.backends.vllm.access
interventions.backends.vllm.admission
interventions.backends.vllm.adapter
interventions.backends.vllm.worker
interventions.backends.vllm.runners
interventions.backends.vllm.plugin
interventions.backends.vllm.ledger
interventions.backends.vllm.calibrate
interventions.backends.vllm.service
interventions.backends.vllm.endpoint
interventions.text
interventions.text.config
interventions.train
interventions.train.config
interventions.train.progress
interventions.train.files
interventions.train.prompts
interventions.train.generate
interventions.train.generated_text
interventions.train.docs_text
interventions.text.records
interventions.text.rows
interventions.features
interventions.features.checkpoint
interventions.features.words
interventions.features.reason
interventions.features.reason_scores
interventions.features.doctor
interventions.features.firings
interventions.features.examples
interventions.features.scored
interventions.features.passages
interventions.features.aggregate
interventions.features.permutation
interventions.features.contrast
interventions.features.parity
interventions.features.facts_store
interventions.features.facts_write
interventions.features.row_file
interventions.features.leaders
interventions.features.running
interventions.features.contexts
interventions.features.lens
interventions.features.facts_columns
interventions.features.facts
interventions.features.shortlist
interventions.features.prefixes
interventions.features.causal
interventions.features.injection
interventions.features.find
interventions.train.world
interventions.train.harvest
interventions.train.source
interventions.train.tracker
interventions.train.loop
interventions.train.trainer
interventions.train.lens
interventions.train.stats
interventions.train.evaluate
interventions.train.export
interventions.train.lens_export
interventions.train.card
interventions.train.named_features
interventions.train.run
interventions.train.pipeline
harness_ext
harness_ext.errors
harness_ext.paths
harness_ext._sae_steered_autoload
harness_ext.autoload
harness_ext.generation
harness_ext.journal_lines
harness_ext.journal_locks
harness_ext.journal_entry
harness_ext.journal
harness_ext.journal_work
harness_ext.plain_numbers
harness_ext.choices
harness_ext.extract
harness_ext.limits
harness_ext.math_worker
harness_ext.math_process
harness_ext.latex_text
harness_ext.forms
harness_ext.verifier
harness_ext.wrong_answers
harness_ext.hints
harness_ext.llm
harness_ext.llm.verdicts
harness_ext.records
harness_ext.notebook
harness_ext.lexicon
harness_ext.detectors
harness_ext.spans
harness_ext.seed_parity
harness_ext.agreement
harness_ext.counts
harness_ext.stats
harness_ext.repeats
harness_ext.metric_table
harness_ext.metrics
harness_ext.llm.settings
harness_ext.llm.cache
harness_ext.llm.transport
harness_ext.llm.session
harness_ext.llm.untrusted
harness_ext.llm.prompts
harness_ext.llm.objections
harness_ext.llm.verifier
harness_ext.llm.judge
harness_ext.llm.task_hook
harness_ext.llm.attacks
harness_ext.effects
harness_ext.rescore_table
harness_ext.labelled
harness_ext.benchmarks
harness_ext.corpora
harness_ext.prompts
harness_ext.task_options
harness_ext.plain_models
harness_ext.steer_task
harness_ext.hint_task
harness_ext.batching
harness_ext.sampling
harness_ext.stopping
harness_ext.hf_config
harness_ext.requests
harness_ext.responses
harness_ext.scored_rows
harness_ext.generate_hf
harness_ext.score_hf
harness_ext.lm_eval_cache
harness_ext.steered_lm
harness_ext.model_hf
harness_ext.engine
harness_ext.engine_decoding
harness_ext.engine_loop
harness_ext.loop_thread
harness_ext.engine_vllm
harness_ext.server_http
harness_ext.engine_server
harness_ext.engine_lm
harness_ext.model_engine
harness_ext.model_vllm
harness_ext.model_server
harness_ext.model
harness_ext.stdout
harness_ext.evaluate
harness_ext.evaluate_specs
harness_ext.evaluate_table
harness_ext.pages.render
harness_ext.pages.plot
harness_ext.pages.charts
harness_ext.pages.tokens
harness_ext.pages.tables
harness_ext.pages
harness_ext.dashboards
harness_ext.dashboards.links
harness_ext.dashboards.choose
harness_ext.dashboards.view
harness_ext.dashboards.index
harness_ext.dashboards.build
harness_ext.leaderboard
harness_ext.leaderboard.results
harness_ext.leaderboard.board
harness_ext.leaderboard.split
harness_ext.leaderboard.counting
harness_ext.leaderboard.resample
harness_ext.leaderboard.power
harness_ext.leaderboard.shrink
harness_ext.leaderboard.null
harness_ext.leaderboard.bounds
harness_ext.leaderboard.rates
harness_ext.leaderboard.families
harness_ext.leaderboard.statistics
harness_ext.leaderboard.simulate
harness_ext.leaderboard.names
harness_ext.leaderboard.flat
harness_ext.leaderboard.export
harness_ext.leaderboard.pairs
harness_ext.leaderboard.summary
harness_ext.leaderboard.report_table
harness_ext.leaderboard.report_charts
harness_ext.leaderboard.report_rows
harness_ext.leaderboard.report_markdown
harness_ext.leaderboard.report
harness_ext.feature_arguments
harness_ext.backtracking
harness_ext.asked
harness_ext.contrasts
harness_ext.fixed_answers
harness_ext.contrast_run
harness_ext.leaderboard.config
harness_ext.leaderboard.expand
harness_ext.leaderboard.calibrate
harness_ext.leaderboard.nulls
harness_ext.leaderboard.rows
harness_ext.leaderboard.questions
harness_ext.leaderboard.scoring
harness_ext.leaderboard.generate
harness_ext.leaderboard.screening
harness_ext.leaderboard.forecast
harness_ext.leaderboard.tables
harness_ext.leaderboard.run
harness_ext.regress
harness_ext.regress.runs
harness_ext.regress.baseline
harness_ext.regress.comparable
harness_ext.regress.changes
harness_ext.regress.losses
harness_ext.regress.check
harness_ext.regress.show
harness_ext.regress.config
harness_ext.sensitivity
harness_ext.sensitivity.names
harness_ext.sensitivity.prompts
harness_ext.sensitivity.writer
harness_ext.sensitivity.measure
harness_ext.sensitivity.collected
harness_ext.sensitivity.run
harness_ext.sensitivity.output
harness_ext.sensitivity.join
harness_ext.cli
harness_ext.__main__
""".strip().splitlines()

# The import hook imports nothing of ours at start; it calls upwards when lm-eval is imported.
UPWARD_ON_PURPOSE = {"harness_ext._sae_steered_autoload": {"harness_ext.autoload"}}

# What may be imported when the module itself is imported, beyond the standard library.
# Everything else belongs inside the function that needs it, so that reading a spec, or
# asking for help, does not import a model library.
AT_MODULE_LEVEL = {
    "interventions": {"torch", "pydantic", "jaxtyping", "safetensors"},
    "interventions.backends": {"torch", "jaxtyping", "transformers"},
    # Kernels are functions of a module that reads triton's names; imported where a GPU runs them.
    "interventions.backends.vllm.triton_op": {"torch", "triton"},
    "interventions.backends.vllm": {"torch", "numpy", "pydantic"},
    "interventions.train": {"torch", "pydantic", "jaxtyping", "safetensors", "tqdm"},
    "tasks": {"harness_ext"},
}
# Never, not even inside a function.
FORBIDDEN = {
    "interventions": {"lm_eval", "harness_ext"},
    "tasks": {"lm_eval", "interventions", "torch", "transformers"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for folder in ("interventions", "harness_ext", "tasks", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PACKAGES = {name: path for name, path in FILES.items() if name.split(".")[0] in
            ("interventions", "harness_ext")}  # fmt: skip


def running_nodes(tree: ast.AST, functions: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if not functions and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield node
        yield from running_nodes(node, functions)


def imports(name: str, source: str, functions: bool = True) -> set[str]:
    """Return the dotted names that `source` of module `name` imports."""
    found = set()
    for node in running_nodes(ast.parse(source), functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: imports are absolute here"
            base = node.module or ""
            below = {f"{base}.{alias.name}" for alias in node.names}
            # `from package import module` imports the module, not a name of the package.
            found |= {base} | {dotted for dotted in below if dotted in FILES}
    return found


def upward(name: str, imported: set[str], order: list[str]) -> set[str]:
    place = order.index(name)
    return {other for other in imported if other in order and order.index(other) > place}


def test_list_and_files_agree():
    assert len(ORDER) == len(set(ORDER))
    assert set(PACKAGES) - set(ORDER) == set(), "add these to ORDER, above what they import"
    assert set(ORDER) - set(PACKAGES) == set(), "these are in ORDER and have no file"


@pytest.mark.parametrize("name", sorted(set(ORDER) & set(PACKAGES)))
def test_imports_go_down(name):
    found = upward(name, imports(name, PACKAGES[name].read_text()), ORDER)
    found -= UPWARD_ON_PURPOSE.get(name, set())
    assert found == set(), f"{name} imports {found}, which stand after it in ORDER"


@pytest.mark.parametrize("name", sorted(FILES))
def test_third_party_imports(name):
    source = FILES[name].read_text()
    everything = {dotted.split(".")[0] for dotted in imports(name, source)}
    for prefix, names in FORBIDDEN.items():
        if f"{name}.".startswith(f"{prefix}."):
            assert everything & names == set()
    rules = [p for p in AT_MODULE_LEVEL if f"{name}.".startswith(f"{p}.")]
    if rules:
        rule = max(rules, key=len)
        top = {dotted.split(".")[0] for dotted in imports(name, source, functions=False)}
        allowed = AT_MODULE_LEVEL[rule] | sys.stdlib_module_names | {rule.split(".")[0]}
        assert top - allowed == set(), f"{name}: move these imports into the functions"


def test_the_check_sees_an_upward_import():
    source = "def f():\n    from interventions import editor\n"
    imported = imports("interventions.errors", source)
    assert upward("interventions.errors", imported, ORDER) == {"interventions.editor"}
    assert imports("x", source, functions=False) == set()
    guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lm_eval\n"
    assert imports("x", guarded) == {"typing"}
