"""A server that misbehaves as it is told, and the model on it."""

import pytest

from harness_ext.model import SAESteeredLM
from tests.harness_ext.server.asking import EDIT
from tests.steered_server import running


@pytest.fixture
def server(model_folder):
    with running(model_folder()) as made:
        yield made


@pytest.fixture
def load(server, sae_folder, monkeypatch):
    """Return a function that makes the model, steered unless told otherwise."""
    monkeypatch.setattr("harness_ext.server_http._LONGEST_WAIT", 0.05)
    made = []

    def make(**arguments):
        spec = {"norm_guard": None, "sae": {"path": sae_folder()}, "edits": [EDIT]}
        arguments = {"base_url": f"{server.url}/v1", "spec": spec, "timeout": 5} | arguments
        lm = SAESteeredLM.create_from_arg_obj({"backend": "server", **arguments}, {})
        made.append(lm)
        return lm

    yield make
    for lm in made:
        lm._engine.close()
