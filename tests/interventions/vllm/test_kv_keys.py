"""Two requests share a block if, and only if, all tokens up to its end are edited alike."""

import itertools
from types import SimpleNamespace

import pytest

from interventions.backends.vllm import kv_keys
from interventions.backends.vllm.compiled import compile_plan
from interventions.backends.vllm.config import KEY
from interventions.receipt import TokenFacts
from tests.vllm_plans import POINT, plan_of

N = 6
POSITIONS = ("all", "prompt", "generated", "last_prompt", "thinking")
FACTS = TokenFacts(bos=0, think_start=1, think_end=2)
# Every token sequence of the alphabet BOS, open, close, plain that matters here.
STREAMS = [(0, 3, 3, 3, 3, 3), (3, 1, 3, 3, 2, 3), (0, 1, 3, 2, 1, 3)]


def spec_of(kinds, sae, value=1.0):
    edits = [
        {"op": "add", "feature": number, "value": value, "positions": kind}
        for number, kind in enumerate(kinds)
    ]
    return {"sae": {"path": sae}, "edits": edits, "norm_guard": None, "hook_point": str(POINT)}


@pytest.fixture(scope="module")
def combinations(saes):
    """Packed interventions of every set of positions, twice with other values."""
    found = []
    for size in (1, 2, 3):
        for kinds in itertools.combinations(POSITIONS, size):
            for value in (1.0, 2.0):
                plan = plan_of(spec_of(kinds, saes["relu"], value))
                found.append((kinds, compile_plan(plan, [POINT], 8, FACTS).pack()))
    assert len({packed["fp"] for _, packed in found}) == len(found)
    return found


def edited(kinds, fingerprint, stream, prompt_len, end):
    """Return what is done to each token before `end`: the definition."""
    inside, done = False, []
    for position, token in enumerate(stream[:end]):
        inside = token == 1 or (inside and token != 2)
        names = {
            "all": True,
            "prompt": position < prompt_len,
            "generated": position >= prompt_len,
            "last_prompt": position == prompt_len - 1,
            "thinking": inside and token != 1,
        }
        touched = frozenset(kind for kind in kinds if names[kind])
        done.append((fingerprint, touched) if touched else None)
    return done


def key(packed, prompt_len, end, override=None):
    entry = {"compiled": packed}
    if override is not None:
        entry["prompt_len"] = override
    return kv_keys.block_key({KEY: entry}, prompt_len, end)


def chain(packed, prompt_len, end, size):
    """Return the keys of a block and of all before it, as vLLM chains them."""
    return [key(packed, prompt_len, e) for e in range(size, end + 1, size)]


def test_a_shared_block_is_edited_alike(combinations):
    """Sound in every small case: any two interventions, prompts, block sizes, reasoning spans."""
    shared = 0
    unsteered = ((), {"fp": "", "keyed": False, "boundary": None})
    cases = [unsteered, *combinations]
    for (kinds, a), (others, b) in itertools.combinations_with_replacement(cases, 2):
        for p, q, size in itertools.product(range(1, N), range(1, N), (1, 2, 3)):
            for end in range(size, N + 1, size):
                if chain(a, p, end, size) != chain(b, q, end, size):
                    continue
                shared += 1
                for stream in STREAMS:
                    first = edited(kinds, a["fp"], stream, p, end)
                    assert first == edited(others, b["fp"], stream, q, end), (kinds, others, p, q)
    assert shared > 1000


def test_what_is_edited_alike_is_shared(combinations):
    """Nothing is computed twice for want of a key, within one intervention and with nobody's.

    Edits on the reasoning span are left out: their blocks are kept apart as a whole.
    """
    refused = 0
    for kinds, packed in combinations:
        if "thinking" in kinds:
            continue
        stream = STREAMS[0]
        for p, q, end in itertools.product(range(1, N), range(1, N), range(1, N + 1)):
            same = edited(kinds, "f", stream, p, end) == edited(kinds, "f", stream, q, end)
            assert (chain(packed, p, end, 1) == chain(packed, q, end, 1)) == same
            refused += not same
            alone = not any(edited(kinds, "f", stream, p, end))
            assert (chain(packed, p, end, 1) == [None] * end) == alone
    assert refused > 100


def test_prompts_of_generation_only_specs_stay_shared(combinations):
    (packed,) = [p for kinds, p in combinations[:10] if kinds == ("generated",)][:1]
    assert [key(packed, 4, end) for end in (2, 4)] == [None, None]
    assert key(packed, 4, 5) == (KEY, f"{packed['fp']}:4")


def test_the_prompt_may_end_earlier_than_vllm_says(combinations):
    (packed,) = [p for kinds, p in combinations[:10] if kinds == ("generated",)][:1]
    assert key(packed, 6, 3, override=2) == key(packed, 2, 3) == (KEY, f"{packed['fp']}:2")
    assert key(packed, 6, 2, override=2) is None


@pytest.mark.parametrize("extra", [None, {}, {"other": 1}, {KEY: None}, {KEY: {}}])
def test_requests_without_an_intervention_have_no_key(extra):
    assert kv_keys.block_key(extra, 4, 16) is None


def test_the_keys_of_vllm_are_kept(combinations):
    """The wrapped function passes arguments on and adds one key of the form (name, value)."""
    seen = []

    def original(request, start, end, mm, *rest):
        seen.append((start, end, mm, rest))
        return (("lora", "a"),) if mm else None, mm + 1

    wrapped = kv_keys.extend(original)
    packed = combinations[0][1]
    params = SimpleNamespace(extra_args={KEY: {"compiled": packed}})
    steered = SimpleNamespace(sampling_params=params, num_prompt_tokens=3)
    plain = SimpleNamespace(sampling_params=SimpleNamespace(extra_args=None), num_prompt_tokens=3)
    pooling = SimpleNamespace(sampling_params=None, num_prompt_tokens=3)
    ours = (KEY, packed["fp"])
    assert wrapped(steered, 0, 2, 0) == ((ours,), 1)
    assert wrapped(steered, 0, 2, 4, "later") == ((("lora", "a"), ours), 5)
    assert wrapped(plain, 0, 2, 0) == (None, 1)
    assert wrapped(pooling, 0, 2, 4) == ((("lora", "a"),), 5)
    assert seen[1] == (0, 2, 4, ("later",))
