"""Which endpoint, model and key the LLM verifier and judge use; the key never leaves here in text.

Keys are read from the environment only. An argument of a command stands in the shell's history
and in the process list, and lm-eval writes model arguments and metadata into its results.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from harness_ext.errors import LLMConfigError
from interventions.cache import cache_dir

OPENROUTER_URL = "https://openrouter.ai/api/v1"
OPENAI_URL = "https://api.openai.com/v1"
MODEL_ENV, OPENROUTER_ENV, OPENAI_ENV, URL_ENV = (
    "PROCESSOR",
    "OPENROUTER_API_KEY",
    "OPENAI_API_KEY",
    "OPENAI_BASE_URL",
)
# What a server that asks for no key gets: the client insists on sending one.
NO_KEY = "EMPTY"
_SHORTEST_SECRET = 8
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class LLMSettings(BaseModel):
    """A checked endpoint and the limits under which it is asked.

    Attributes:
        model: name of the model at the endpoint.
        base_url: its OpenAI-compatible base URL, without credentials.
        api_key: hidden in repr, dumps and errors.
        key_from: environment variable of the key, `none` where there is none.
        concurrency: requests in flight at once.
        timeout_s: seconds for one try, from connecting to the last byte.
        tries: tries of one request, the first included.
        max_wait_s: longest single wait between tries, in seconds; an endpoint that asks for a
            longer one ends the run.
        max_tokens: tokens of a reply; raise it for models that reason before they answer.
        max_chars: characters of a response that are shown.
        cache: folder of the replies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    model: str = Field(min_length=1)
    base_url: str
    api_key: SecretStr = SecretStr(NO_KEY)
    key_from: str = "none"
    concurrency: int = Field(default=8, ge=1, le=256)
    timeout_s: float = Field(default=60.0, gt=0)
    tries: int = Field(default=5, ge=1, le=20)
    max_wait_s: float = Field(default=60.0, ge=0)
    max_tokens: int = Field(default=512, ge=16)
    max_chars: int = Field(default=6000, ge=200)
    cache: Path

    def redact(self, text: str) -> str:
        """Return a text without the key, in any spelling in which a server may echo it."""
        key = self.api_key.get_secret_value()
        if len(key) < _SHORTEST_SECRET:  # "x" for a local server; it would break every text
            return text
        for spelling in (key, quote(key, safe=""), repr(key)[1:-1]):
            text = text.replace(spelling, "***")
        return text

    @property
    def name(self) -> str:
        """Return model and endpoint, as messages name them."""
        return f"{self.model} at {self.base_url}"


def read_settings(
    *,
    model: str | None = None,
    base_url: str | None = None,
    api_key_env: str | None = None,
    cache: Path | None = None,
    env: Mapping[str, str] | None = None,
    **limits: Any,
) -> LLMSettings:
    """Return the settings of an endpoint from arguments, then from the environment.

    The model is `model`, else `PROCESSOR`. The URL is `base_url`, else `OPENAI_BASE_URL`, else
    OpenRouter's if there is an `OPENROUTER_API_KEY`, else OpenAI's if there is an
    `OPENAI_API_KEY`. A key goes to the endpoint it belongs to: OpenRouter gets only
    `OPENROUTER_API_KEY`, every other gets only `OPENAI_API_KEY`, or none.

    Args:
        model: name of the model.
        base_url: OpenAI-compatible base URL.
        api_key_env: name of the environment variable that holds the key, if it is another; a
            key that is named so is sent over plain http too.
        cache: folder of the replies, by default one below the cache folder.
        env: the environment, by default the process's own.
        limits: fields of `LLMSettings`.

    Raises:
        LLMConfigError: There is no model, no endpoint or no key, or a value is out of range.
    """
    env = os.environ if env is None else env
    model = model or env.get(MODEL_ENV)
    if not model:
        raise LLMConfigError(f"no model for the LLM endpoint; name one, or set {MODEL_ENV}")
    url = _check_url(base_url or env.get(URL_ENV) or _default_url(env))
    key, key_from = _key(url, api_key_env, env)
    try:
        return LLMSettings(
            model=model,
            base_url=url,
            api_key=SecretStr(key),
            key_from=key_from,
            cache=cache or cache_dir("llm"),
            **{name: value for name, value in limits.items() if value is not None},
        )
    except ValidationError as err:
        first = err.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LLMConfigError(f"LLM endpoint: {where}: {first['msg']}") from None


def _default_url(env: Mapping[str, str]) -> str:
    if env.get(OPENROUTER_ENV):
        return OPENROUTER_URL
    if env.get(OPENAI_ENV):
        return OPENAI_URL
    raise LLMConfigError(
        f"no LLM endpoint; give a base URL (such as http://localhost:8000/v1), or set "
        f"{URL_ENV}, {OPENROUTER_ENV} or {OPENAI_ENV}"
    )


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url.strip())
        port = parts.port  # read here: it raises for a port that is no number
    except ValueError:
        raise LLMConfigError("the LLM base URL cannot be read; give https://HOST/v1") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        # Not quoted: it may hold a key.
        raise LLMConfigError(
            "the LLM base URL has a user, password, query or fragment; give https://HOST/v1 "
            f"alone and put the key into {OPENAI_ENV}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise LLMConfigError(f"the LLM base URL is {url!r}; give http(s)://HOST[:PORT]/v1")
    return url.strip().rstrip("/")


def _host(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()


def _key(url: str, named: str | None, env: Mapping[str, str]) -> tuple[str, str]:
    host = _host(url)
    own = {_host(OPENROUTER_URL): OPENROUTER_ENV, _host(OPENAI_URL): OPENAI_ENV}
    name = named or own.get(host, OPENAI_ENV)
    key = env.get(name, "").strip()
    if not key:
        if named or host in own:
            raise LLMConfigError(f"{url} needs a key; set the environment variable {name}")
        return NO_KEY, "none"
    if not (key.isascii() and key.isprintable()) or " " in key:
        # The HTTP library would quote the key in its own error.
        raise LLMConfigError(f"{name} holds a character that no key has; set it again")
    if urlsplit(url).scheme == "http" and host not in _LOCAL and not named:
        raise LLMConfigError(
            f"the key of {name} would go unencrypted to {host}; use https, or unset {name} where "
            "the server asks for no key, or name the variable (--api-key-env, llm_api_key_env)"
        )
    return key, name
