"""Median norms of an engine's model."""

import asyncio

import pytest

from interventions.backends.hf import CALIBRATION_TEXT
from interventions.backends.vllm.calibrate import measure_median_norms
from interventions.errors import SpecError
from interventions.hook_points import HookPoint
from tests.tiny_models import make_tokenizer


def test_an_engine_that_does_not_take_the_text():
    """A shorter text would give another norm, and another fingerprint, than `backend=hf`."""

    async def never(*args):
        raise AssertionError(args)

    tokenizer = make_tokenizer()
    n = len(tokenizer(CALIBRATION_TEXT).input_ids)
    points = [HookPoint(1)]
    measured = measure_median_norms(never, never, tokenizer, points, points, max_length=n)
    with pytest.raises(SpecError, match=rf"{n} tokens.*max_model_len is {n}; raise it"):
        asyncio.run(measured)
