import pytest

from harness_ext.errors import LLMConfigError
from harness_ext.llm.settings import read_settings

ROUTER = "https://openrouter.ai/api/v1"
KEY = "sk-or-0123456789abcdef"


def read(env=None, **kwargs):
    return read_settings(env=env or {}, **{"model": "m", **kwargs})


def test_the_seed_projects_variables_are_enough(tmp_path):
    env = {"OPENROUTER_API_KEY": KEY, "PROCESSOR": "meta-llama/llama-3.3-70b-instruct"}
    settings = read_settings(env=env, cache=tmp_path)
    assert settings.model == "meta-llama/llama-3.3-70b-instruct"
    assert settings.base_url == ROUTER
    assert settings.key_from == "OPENROUTER_API_KEY"
    assert settings.api_key.get_secret_value() == KEY


@pytest.mark.parametrize(
    ("env", "base_url", "url", "key_from"),
    [
        ({"OPENAI_API_KEY": KEY}, None, "https://api.openai.com/v1", "OPENAI_API_KEY"),
        ({"OPENAI_BASE_URL": "http://localhost:80/v1/"}, None, "http://localhost:80/v1", "none"),
        (
            {"OPENAI_BASE_URL": "https://h.io/v1", "OPENROUTER_API_KEY": KEY},
            None, "https://h.io/v1", "none",
        ),
        (
            {"OPENAI_BASE_URL": "https://h.io/v1", "OPENAI_API_KEY": KEY},
            "http://127.0.0.1:1/v1", "http://127.0.0.1:1/v1", "OPENAI_API_KEY",
        ),
        (
            {"OPENAI_API_KEY": KEY, "OPENROUTER_API_KEY": "sk-or-other-key"},
            ROUTER, ROUTER, "OPENROUTER_API_KEY",
        ),
        ({"OPENROUTER_API_KEY": KEY}, "https://h.io/v1", "https://h.io/v1", "none"),
    ],
)  # fmt: skip
def test_a_key_goes_to_the_endpoint_it_belongs_to_and_to_no_other(env, base_url, url, key_from):
    settings = read(env, base_url=base_url)
    assert (settings.base_url, settings.key_from) == (url, key_from)
    assert (settings.api_key.get_secret_value() == "EMPTY") == (key_from == "none")


@pytest.mark.parametrize(
    ("env", "kwargs", "message"),
    [
        ({}, {"model": None, "base_url": "http://localhost/v1"}, "no model.*set PROCESSOR"),
        ({}, {}, "no LLM endpoint; give a base URL"),
        ({}, {"base_url": ROUTER}, "set the environment variable OPENR"),
        ({"OPENROUTER_API_KEY": " "}, {"base_url": ROUTER}, "needs a key"),
        ({}, {"base_url": "https://h.io", "api_key_env": "MY_KEY"}, "environment variable MY_KEY"),
        ({}, {"base_url": f"https://u:{KEY}@h.io/v1"}, "has a user, password"),
        ({}, {"base_url": f"https://h.io/v1?key={KEY}"}, "query or fragment"),
        ({}, {"base_url": "h.io/v1"}, r"'h.io/v1'; give http\(s\)://HOST"),
        ({}, {"base_url": "http://h.io:99999999/v1"}, "cannot be read"),
        ({}, {"base_url": "file:///etc/passwd"}, "give http"),
        ({"OPENAI_API_KEY": KEY}, {"base_url": "http://h.io/v1"}, "unencrypted to h.io; use"),
        ({"OPENAI_API_KEY": KEY + "\nx"}, {"base_url": "https://h.io"}, "a character that no"),
        ({"OPENAI_API_KEY": KEY + "é"}, {"base_url": "https://h.io"}, "a character that no"),
        ({}, {"base_url": "http://localhost/v1", "concurrency": 0}, "concurrency: .*greater than"),
        ({}, {"base_url": "http://localhost/v1", "tries": 1000}, "tries: "),
        ({}, {"base_url": "http://localhost/v1", "timeout_s": -1}, "timeout_s: "),
        ({}, {"base_url": "http://localhost/v1", "max_chars": "many"}, "max_chars: "),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_line_without_the_key(env, kwargs, message):
    with pytest.raises(LLMConfigError, match=message) as caught:
        read(env, **kwargs)
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__context__ is None or KEY not in str(caught.value.__context__)


def test_a_named_key_goes_over_plain_http_too():
    settings = read({"MINE": KEY}, base_url="http://h.io/v1", api_key_env="MINE")
    assert (settings.key_from, settings.api_key.get_secret_value()) == ("MINE", KEY)


def test_a_short_placeholder_is_no_secret_and_breaks_no_text():
    settings = read({"OPENAI_API_KEY": "x"}, base_url="http://localhost/v1")
    assert settings.redact("max {'x': 1}") == "max {'x': 1}"
    assert read({"OPENAI_API_KEY": KEY}).redact(f"a {KEY} b") == "a *** b"
