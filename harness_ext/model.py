"""The lm-eval model `sae_steered`: picks the backend and hands it the arguments."""

import importlib
import logging
from collections.abc import Mapping
from typing import Any

from lm_eval.api.model import LM
from lm_eval.utils import simple_parse_args_string

from harness_ext.errors import HarnessError, for_command_line
from interventions.errors import SpecError, SteeringError

logger = logging.getLogger(__name__)

BACKENDS: Mapping[str, str] = {
    "hf": "harness_ext.model_hf:SteeredHF",
    "vllm": "harness_ext.model_vllm:SteeredVLLM",
    "server": "harness_ext.model_server:SteeredServer",
}
"""Where the class of each `backend=` lives; imported on first use."""


class SAESteeredLM(LM):
    """A language model whose residual stream is edited along SAE feature directions.

    `SAESteeredLM(backend="hf", pretrained=..., spec=...)` returns the backend's model. All other
    arguments are those of lm-eval's own model of that name.
    """

    def __new__(cls, backend: str = "hf", **kwargs: Any) -> LM:  # pyright: ignore[reportInconsistentConstructor]
        """Return the model of `backend`.

        Raises:
            SpecError: no such backend.
        """
        return _backend(backend)(**kwargs)

    @classmethod
    def create_from_arg_string(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> LM:
        """Return the model for `key=value,key=value` arguments."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> LM:
        """Return the model for a dictionary of arguments.

        Defaults are filled in place: lm-eval writes this very dictionary into its results.
        """
        arg_dict.setdefault("backend", "hf")
        if arg_dict["backend"] != "server":  # a server runs the model that it was started with
            arg_dict.setdefault("pretrained", "default")
        extra = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if str(extra.get("batch_size", 1)) == "1" and "batch_size" not in arg_dict:
            # lm-eval's command line cannot say "not given": its default is 1. One row at a time
            # is never what is wanted; max_batch_size=1 still asks for it.
            extra["batch_size"] = "auto"
            logger.info("batch_size 1 is taken as 'auto'; use max_batch_size=1 to force one row")
        try:
            return cls(**{**extra, **arg_dict})
        except (HarnessError, SteeringError) as error:
            raise for_command_line(error) from None

    def loglikelihood(self, requests: Any) -> Any:
        """Raise: an instance is always a backend's own class."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: Any) -> Any:
        """Raise: an instance is always a backend's own class."""
        raise NotImplementedError

    def generate_until(self, requests: Any) -> Any:
        """Raise: an instance is always a backend's own class."""
        raise NotImplementedError


def _backend(name: str) -> type[LM]:
    if name not in BACKENDS:
        raise SpecError(f"unknown backend '{name}'; use one of: {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
