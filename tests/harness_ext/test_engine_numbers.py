"""Numbers among the arguments of `backend=vllm` and `backend=server`."""

import pytest

from harness_ext.engine import whole
from harness_ext.model import SAESteeredLM
from interventions.errors import SpecError
from tests.steered_server import running


@pytest.mark.parametrize("value", ["7", 7, 7.0, " 7 "])
def test_whole_numbers(value):
    assert whole("n", value) == 7


@pytest.mark.parametrize("value", ["seven", "7.5", 7.5, "", True, float("inf"), float("nan"), 0])
def test_what_is_no_whole_number_is_named(value):
    with pytest.raises(SpecError, match=f"^n={value}: not a whole number of at least 1$"):
        whole("n", value)


def test_without_a_bound():
    assert whole("seed", -3, None) == -3
    with pytest.raises(SpecError, match=r"^seed=x: not a whole number$"):
        whole("seed", "x", None)


@pytest.mark.parametrize(
    "argument",
    [
        # No request would be in flight, and every response empty.
        {"batch_size": "0"},
        {"batch_size": "-4"},
        {"batch_size": 0},
        {"batch_size": "many"},
        {"max_batch_size": "-1"},
        {"max_gen_toks": "0"},
        {"max_length": "long"},
        {"max_model_len": "0"},
        {"seed": "x"},
        {"tries": 0},
        {"timeout": "soon"},
        {"timeout": "-1"},
        {"timeout": "nan"},
    ],
    ids=str,
)
def test_one_line_of_the_server_backend(model_folder, argument):
    with running(model_folder()) as server:
        arguments = {"backend": "server", "base_url": server.url, **argument}
        ((name, value),) = argument.items()
        name = "max_length" if name == "max_model_len" else name
        with pytest.raises(SpecError, match=f"^{name}={value}: not a ") as caught:
            SAESteeredLM.create_from_arg_obj(arguments, {})
    assert "\n" not in str(caught.value)


def test_batches_as_they_are_told(model_folder):
    with running(model_folder()) as server:
        for said, wanted in (("auto", "auto"), ("auto:4", "auto"), ("1", "auto"), ("3", 3)):
            arguments = {"backend": "server", "base_url": server.url}
            lm = SAESteeredLM.create_from_arg_obj(arguments, {"batch_size": said})
            assert lm.batch_size == wanted
            lm.close()
