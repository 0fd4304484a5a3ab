"""`backend=vllm`: vLLM, steered inside its compiled graph, with a receipt for every request."""

import os
from collections.abc import Mapping
from typing import Any

import transformers

from harness_ext.engine import whole
from harness_ext.engine_vllm import VLLMEngine
from harness_ext.hf_config import load_config, model_facts
from harness_ext.journal_work import JournalUse
from harness_ext.model_engine import SteeredEngine
from harness_ext.steered_lm import BASELINE
from harness_ext.stopping import Delimiters
from interventions.backends.vllm.adapter import vllm_version
from interventions.backends.vllm.compiled import place
from interventions.backends.vllm.config import SteeringConfig, parse_config
from interventions.default_model import resolve_pretrained
from interventions.plan import Plan, make_plan
from interventions.spec import InterventionSpec
from interventions.spec_io import spec_from_args

_LEAST_EDITS = 8


class SteeredVLLM(SteeredEngine):
    """A language model in vLLM, steered while it scores and generates.

    It takes what lm-eval's `vllm` takes, and steers like `backend=hf`: the same specs with the
    same fingerprints, seeds, reasoning split and journal.
    """

    backend_name = "vllm"

    def __init__(
        self,
        pretrained: str = "default",
        *,
        spec: str | Mapping[str, Any] | InterventionSpec | None = None,
        edits: Any = None,
        hook_points: Any = None,
        max_edits: int | None = None,
        journal: str | os.PathLike[str] | None = None,
        seed: int = 1234,
        think_start_token: str = "<think>",
        think_end_token: str | int | None = None,
        enable_thinking: bool | None = None,
        chat_template_args: dict[str, Any] | None = None,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_model_len: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        lora_local_path: str | None = None,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Check the spec against the model's config, then start the engine.

        Args:
            pretrained: hub name, local folder, or `default`.
            spec: file, JSON text, mapping or spec of the intervention; None steers nothing.
            edits: list of edits, with `sae_*` arguments as their defaults, instead of `spec`.
            hook_points: where later interventions may edit, besides where `spec` does: `all`, or
                hook points joined by `+`. Without a spec and without this, nothing can be steered.
            max_edits: most edits at one hook point; 8, or what `spec` has.
            journal: folder that keeps responses; what is in it already is not made again.
            seed: of the engine, and base of every response's sampling seed.
            think_start_token: text that opens the reasoning.
            think_end_token: text, or token id, that closes it; `</think>` if None.
            enable_thinking: passed to the chat template.
            chat_template_args: passed to the chat template.
            batch_size: most requests in flight; `auto` keeps the engine's queue filled.
            max_batch_size: the engine's `max_num_seqs`.
            max_length: the same as `max_model_len`.
            max_model_len: tokens of prompt and response together.
            max_gen_toks: where a task names no budget.
            add_bos_token: whether prompts get a BOS; None leaves it to the tokenizer.
            prefix_token_id: context of a score that has none.
            lora_local_path: folder of a LoRA adapter for every request.
            device: not read: an engine takes the devices it sees.
            **kwargs: `sae_*` arguments, and all that vLLM's `AsyncEngineArgs` takes.

        Raises:
            interventions.errors.SteeringError: a spec that does not fit the model, before its
                weights are loaded; or an engine that cannot be steered.
            JournalError: the journal cannot be opened.
        """
        inline = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("sae_")}
        wanted = spec_from_args({"spec": spec, "edits": edits, **inline}) or BASELINE
        resolved = resolve_pretrained(pretrained)
        facts = model_facts(resolved.label, load_config(resolved.path, kwargs))
        plan = make_plan(wanted, facts)
        kept = JournalUse(journal)
        max_length = max_length if max_model_len is None else max_model_len
        most = max_batch_size
        arguments: dict[str, Any] = {
            "model": resolved.path,
            "seed": whole("seed", seed, 0),
            "disable_log_stats": True,
            **({} if max_length is None else {"max_model_len": whole("max_model_len", max_length)}),
            **({} if most is None else {"max_num_seqs": whole("max_batch_size", most)}),
            **{key: value for key, value in kwargs.items() if value is not None},
        }
        lora = None
        if lora_local_path is not None:
            arguments["enable_lora"] = True
            vllm_version()  # says what to install where there is none
            from vllm.lora.request import LoRARequest

            lora = LoRARequest("finetuned", 1, lora_local_path)
        engine = VLLMEngine(resolved.label, arguments, _config(plan, hook_points, max_edits), lora)
        if isinstance(think_end_token, int) or str(think_end_token).isdigit():
            think_end_token = engine.tokenizer.decode([int(str(think_end_token))])
        try:
            self._start(
                engine,
                plan,
                facts,
                journal=kept,
                generation_config=_generation_config(resolved.path, engine.tokenizer, kwargs),
                seed=seed,
                delimiters=Delimiters(think_start_token, str(think_end_token or "</think>")),
                batch_size="auto" if batch_size is None else batch_size,
                max_gen_toks=max_gen_toks,
                add_bos_token=add_bos_token,
                prefix_token_id=prefix_token_id,
                enable_thinking=enable_thinking,
                chat_template_args=chat_template_args,
                max_length=max_length,
            )
        except BaseException:
            engine.close()
            raise


def _config(plan: Plan, hook_points: Any, max_edits: int | None) -> SteeringConfig | None:
    """Return what the engine declares: where the plan edits, and what is asked for beside it."""
    places = [str(place(layer.hook_point)) for layer in plan.layers]
    if isinstance(hook_points, str) and hook_points != "all":
        hook_points = hook_points.split("+")
    if hook_points != "all":
        places += [str(point) for point in hook_points or ()]
    if not places and hook_points != "all":
        return None
    most = max([_LEAST_EDITS, *(len(layer.selectors) for layer in plan.layers)])
    return parse_config(
        {"hook_points": "all" if hook_points == "all" else places, "max_edits": max_edits or most}
    )


def _generation_config(path: str, tokenizer: Any, kwargs: Mapping[str, Any]) -> Any:
    try:
        return transformers.GenerationConfig.from_pretrained(
            path, revision=kwargs.get("revision") or "main"
        )
    except OSError:  # a model need not have one
        return transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id)
