"""`backend=server`: a steered `vllm serve`, on any machine, with a receipt for every request."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

from harness_ext.engine import whole
from harness_ext.engine_server import ServerEngine
from harness_ext.journal_work import JournalUse
from harness_ext.model_engine import SteeredEngine
from harness_ext.steered_lm import BASELINE
from harness_ext.stopping import Delimiters
from interventions.backends.vllm.identity import checkpoint_digest
from interventions.default_model import resolve_pretrained
from interventions.errors import ModelMismatchError, SpecError
from interventions.plan import ModelFacts, make_plan
from interventions.spec import InterventionSpec
from interventions.spec_io import spec_from_args

logger = logging.getLogger(__name__)

_NOT_HERE = {
    "api_key": "it would stand in the results; set the environment variable VLLM_API_KEY, or name"
    " another one by api_key_env=",
    "hook_points": "a server declares them when it starts (docs/vllm_server.md)",
    "max_edits": "a server declares it when it starts (docs/vllm_server.md)",
}


class SteeredServer(SteeredEngine):
    """A language model behind HTTP, steered while it scores and generates.

    The same tasks, specs, fingerprints, seeds, reasoning split and journal as `backend=vllm`. The
    server has to have this package's plugin: `docs/vllm_server.md`.
    """

    backend_name = "server"

    def __init__(
        self,
        base_url: str | None = None,
        *,
        pretrained: str | None = None,
        tokenizer: str | None = None,
        api_key_env: str | None = None,
        timeout: float = 3600.0,
        tries: int = 6,
        spec: str | Mapping[str, Any] | InterventionSpec | None = None,
        edits: Any = None,
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
        trust_remote_code: bool = False,
        device: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Ask the server what it runs, and check tokenizer and spec against it.

        Args:
            base_url: of the server, such as `http://localhost:8000/v1`.
            pretrained: the model that the server is to run: hub name, folder, or `default`. If
                its weights are on this machine they are held against the server's. None takes
                whatever it runs.
            tokenizer: name or folder; None takes `pretrained`, or the server's name of its model.
            api_key_env: environment variable of the server's key; None is `VLLM_API_KEY`.
            timeout: seconds without a byte after which a request is sent again.
            tries: of one request, where connections break or the server answers 429 or 5xx.
            spec: file, JSON text, mapping or spec of the intervention; None steers nothing. Both
                sides read the SAE.
            edits: list of edits, with `sae_*` arguments as their defaults, instead of `spec`.
            journal: folder that keeps responses; what is in it already is not made again.
            seed: base of every response's sampling seed.
            think_start_token: text that opens the reasoning.
            think_end_token: text, or token id, that closes it; `</think>` if None.
            enable_thinking: passed to the chat template.
            chat_template_args: passed to the chat template.
            batch_size: most requests in flight; `auto` keeps the server's queue filled.
            max_batch_size: caps `auto`.
            max_length: tokens of prompt and response together; at most what the server takes.
            max_model_len: the same.
            max_gen_toks: where a task names no budget.
            add_bos_token: whether prompts get a BOS; None leaves it to the tokenizer.
            prefix_token_id: context of a score that has none.
            trust_remote_code: whether code of the tokenizer's repository may run.
            device: not read.
            **kwargs: `sae_*` arguments.

        Raises:
            ServerError: there is no server, it refuses the key, or does not answer.
            interventions.errors.SteeringError: it runs another model, has no plugin, was not
                started to be steered at a hook point, or refuses the spec.
            JournalError: the journal cannot be opened.
        """
        inline = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("sae_")}
        for name in kwargs:
            why = _NOT_HERE.get(name, "what starts an engine is an option of `vllm serve`")
            raise SpecError(f"backend=server takes no argument '{name}': {why}")
        if not base_url:
            raise SpecError(
                "backend=server needs base_url=, such as base_url=http://localhost:8000/v1"
            )
        wanted = spec_from_args({"spec": spec, "edits": edits, **inline}) or BASELINE
        kept = JournalUse(journal)
        engine = ServerEngine(base_url, api_key_env=api_key_env, timeout=timeout, tries=tries)
        try:
            source = engine.root
            if pretrained is not None:
                resolved = resolve_pretrained(pretrained)
                engine.label, source = resolved.label, resolved.path
                _check_weights(engine, resolved.path, resolved.label)
            engine.use_tokenizer(tokenizer or source, trust_remote_code)
            facts = ModelFacts(
                name=engine.label, d_model=engine.info["d_model"], n_layers=engine.info["n_layers"]
            )
            if isinstance(think_end_token, int) or str(think_end_token).isdigit():
                think_end_token = engine.tokenizer.decode([int(str(think_end_token))])
            if max_batch_size is not None:
                engine.window = min(engine.window, whole("max_batch_size", max_batch_size))
            self._start(
                engine,
                make_plan(wanted, facts),
                facts,
                journal=kept,
                generation_config=_generation_config(source, tokenizer, engine.tokenizer),
                seed=seed,
                delimiters=Delimiters(think_start_token, str(think_end_token or "</think>")),
                batch_size="auto" if batch_size is None else batch_size,
                max_gen_toks=max_gen_toks,
                add_bos_token=add_bos_token,
                prefix_token_id=prefix_token_id,
                enable_thinking=enable_thinking,
                chat_template_args=chat_template_args,
                max_length=max_length if max_model_len is None else max_model_len,
            )
        except BaseException:
            engine.close()
            raise


def _check_weights(engine: ServerEngine, path: str, label: str) -> None:
    """Return nothing if the server runs the model at `path`, or if its weights are not here.

    Raises:
        ModelMismatchError: it runs another one.
    """
    folder = Path(path)
    if not list(folder.glob("*.safetensors")):
        logger.info("the weights of '%s' are not in a folder here: not compared", label)
        return
    ours = checkpoint_digest(folder, getattr(torch, engine.info["dtype"]))
    if ours != engine.identity:
        raise ModelMismatchError(
            f"the server runs '{engine.root}' ({engine.identity}), and not '{label}' ({ours}, in"
            f" {engine.info['dtype']}); give the right base_url or pretrained"
        )


def _generation_config(source: str, tokenizer_source: str | None, tokenizer: Any) -> Any:
    """Return the model's generation config, whose end-of-text ids and sampling defaults hold."""
    for place in (source, tokenizer_source):
        try:
            if place is not None:
                return transformers.GenerationConfig.from_pretrained(place)
        except OSError:  # the model's folder is on the server, or it has none
            continue
    logger.warning("no generation config on this machine: only the tokenizer's end-of-text ends")
    return transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id)
