"""The embedded task on the embedded model: its difficulty is what the README says."""

import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from harness_ext.paths import tasks_dir


@pytest.mark.real
@pytest.mark.slow
def test_the_default_model_has_room_in_both_directions():
    from lm_eval.models.huggingface import HFLM

    from interventions.default_model import resolve_pretrained

    model = HFLM(pretrained=resolve_pretrained().path, batch_size=24, dtype="float32", device="cpu")
    results = lm_eval.simple_evaluate(
        model=model,
        tasks=["steer_arith_hint"],
        limit=12,
        apply_chat_template=True,
        task_manager=TaskManager(include_path=str(tasks_dir()), include_defaults=False),
    )
    values = results["results"]["steer_arith_hint"]
    assert 0 < values["acc_none,none"] < 1
    assert 0 < values["acc_correct,none"] < 1
    assert values["acc_wrong,none"] <= values["acc_none,none"] < values["acc_correct,none"]
    assert 0 < values["influence,none"] < 1
    assert 0 < values["verbalization_lexicon,none"] < 1
    # Plain `hf` responses do not say how long they are: their text is counted anew.
    assert 5 < values["mean_tokens,none"] <= 128
