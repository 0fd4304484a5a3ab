"""A worker over hundreds of random steps: every output, and every count of every request."""

import random
from types import SimpleNamespace

import pytest
import torch

from interventions.backends.vllm.compiled import compile_norms, compile_plan
from interventions.backends.vllm.config import KEY, MAX_SLOTS, parse_config
from interventions.backends.vllm.worker import StepRequest, WorkerSteering
from interventions.errors import HookPointError, ReceiptError, SpecError
from interventions.hook_points import HookPoint
from interventions.receipt import expected_tokens
from tests.tiny_models import D_MODEL, N_LAYERS
from tests.vllm_plans import TOKENS, plan_of, random_spec
from tests.vllm_toy import VOCABULARY, Toy, oracle

POINTS = (HookPoint(1), HookPoint(3))


def worker(toy, max_requests=4, max_rows=64, points=POINTS):
    return WorkerSteering(
        toy,
        parse_config([str(point) for point in points]),
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        max_requests=max_requests,
        max_rows=max_rows,
        device=torch.device("cpu"),
        name="toy",
    )


def random_plan(rng, saes):
    spec = random_spec(rng, saes, rng.randint(1, 6))
    for edit in spec["edits"]:
        edit["hook_point"] = str(rng.choice(POINTS))
    return plan_of(spec)


class Live:
    """A request, its tokens known in advance: the toy's outputs are only looked at."""

    def __init__(self, name, rng, plan, tag=None):
        self.name, self.plan, self.tag = name, plan, tag
        self.tokens = [rng.randrange(VOCABULARY) for _ in range(rng.randint(2, 40))]
        if rng.random() < 0.6:
            self.tokens[0] = TOKENS.bos
        self.prompt = self.tokens[: rng.randint(1, len(self.tokens))]
        scored = plan is not None and rng.random() < 0.3
        self.override = rng.randint(1, len(self.prompt)) if scored else None
        self.position, self.ran = 0, []

    @property
    def prompt_len(self):
        return self.override or len(self.prompt)

    def new(self):
        extra = {"other": 1}
        if self.plan is not None:
            entry = {"compiled": compile_plan(self.plan, POINTS, 8, TOKENS).pack()}
            extra[KEY] = entry | ({"tag": self.tag} if self.tag else {})
            if self.override is not None:
                extra[KEY]["prompt_len"] = self.override
        return request(self.name, extra, self.prompt)


def request(name, extra, prompt):
    return SimpleNamespace(
        req_id=name, sampling_params=SimpleNamespace(extra_args=extra), prompt_token_ids=prompt
    )


def step(toy, steering, batch):
    """Run a forward pass of `(request, length)`s, with rows of padding, and check every output."""
    ids = [t for one, n in batch for t in one.tokens[one.position : one.position + n]]
    tokens = torch.tensor(ids, dtype=torch.int32)
    steering.fill(
        [StepRequest(o.name, o.position, n, lambda o=o: o.tokens) for o, n in batch], tokens
    )
    with torch.no_grad():
        output = toy(torch.cat([tokens, tokens.new_zeros(3)]))
    row = 0
    for one, length in batch:
        ran = range(one.position, one.position + length)
        wanted, _, _ = oracle(toy, one.plan, one.tokens, one.prompt_len, ran)
        got = output[row : row + length]
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        one.ran += ran
        one.position += length
        row += length
    padding, _, _ = oracle(toy, None, [0], 1, [0])
    torch.testing.assert_close(output[row:], padding.expand(3, -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_churn_with_fewer_slots_than_interventions(saes, seed):
    rng, toy = random.Random(seed), Toy(seed=seed)
    steering = worker(toy)
    plans = [None, None, *(random_plan(rng, saes) for _ in range(10))]
    todo = [Live(f"r{i % 50}", rng, rng.choice(plans), f"t{i}") for i in range(60)]
    everything, running, ended, new = list(todo), [], [], []
    receipts, preempted, aborted = {}, 0, 0
    while todo or running:
        names = {one.name for one in running}
        while todo and len(running) < 6 and todo[0].name not in names and rng.random() < 0.7:
            one = todo.pop(0)
            running.append(one)
            names.add(one.name)
            new.append(one)
        for one in running:
            if one.position and rng.random() < 0.08:
                # Back to the start, or to what is still cached; V2 announces it once more.
                one.position = rng.choice([0, rng.randrange(one.position)])
                preempted += 1
                if rng.random() < 0.5:
                    new.append(one)
        steering.update([one.name for one in ended], [one.new() for one in new])
        ended, new = [], []
        batch = rng.sample(running, min(len(running), rng.randint(0, 4)))
        if batch:
            step(
                toy,
                steering,
                [(o, rng.randint(1, min(9, len(o.tokens) - o.position))) for o in batch],
            )
        if rng.random() < 0.1:
            steering.clear()
            toy(torch.zeros(9, dtype=torch.int64))  # a dummy run is not counted for anybody
        for one in list(running):
            abort = one.ran and rng.random() < 0.02
            aborted += bool(abort)
            if one.position == len(one.tokens) or abort:
                running.remove(one)
                ended.append(one)
        if rng.random() < 0.1:
            tags = [one.tag for one in everything if one.tag not in receipts and one in ended]
            steering.update([one.name for one in ended], [])
            ended = []
            take(steering, tags, receipts)
    steering.update([one.name for one in ended], [])
    take(steering, [one.tag for one in everything if one.tag not in receipts], receipts)
    assert preempted > 5
    steered = [one for one in everything if one.plan is not None]
    exact = 0
    for one in steered:
        (facts,) = receipts[one.tag]
        assert facts["fingerprint"] == one.plan.fingerprint
        assert facts["prompt_len"] == one.prompt_len
        assert sorted(p for s, e in facts["spans"] for p in range(s, e)) == sorted(one.ran)
        _, counts, _ = oracle(toy, one.plan, one.tokens, one.prompt_len, one.ran)
        seen = {POINTS[index]: rows for index, rows in facts["counts"].items()}
        wanted = {
            p: [[c.selected, c.guarded, c.fired or 0] for c in of] for p, of in counts.items()
        }
        assert seen == wanted
        if one.ran == list(range(len(one.tokens))):
            exact += 1
            prompt, rest = one.tokens[: one.prompt_len], one.tokens[one.prompt_len :]
            for layer in one.plan.layers:
                demanded = [expected_tokens(s, prompt, rest, TOKENS) for s in layer.selectors]
                assert [row[0] for row in seen[layer.hook_point]] == demanded
    assert exact > 10
    assert all(receipts[one.tag] == [] for one in everything if one.plan is None)


def take(steering, tags, receipts):
    answer = steering.take_receipt(tags)
    assert answer["hook_points"] == [0, 1]
    assert answer["failures"] == []
    receipts.update(answer["requests"])


def one_request(saes, toy, **edit):
    edits = [{"feature": 3, "op": "add", "value": 2.0, "hook_point": str(POINTS[0]), **edit}]
    plan = plan_of({"sae": {"path": saes["relu"]}, "edits": edits, "norm_guard": None})
    one = Live("r", random.Random(0), plan, "t")
    one.override = None
    return one


def test_a_step_that_ran_without_the_operator_fails_the_receipt(saes):
    toy = Toy()
    steering, one = worker(toy), one_request(saes, toy)
    steering.update([], [one.new()])
    steering.fill([StepRequest("r", 0, 2, lambda: one.tokens)], torch.tensor(one.tokens[:2]))
    steering.update(["r"], [])
    answer = steering.take_receipt(["t"])
    (message,) = answer["failures"]
    assert "edited 0 rows where 2 ran" in message
    assert steering.take_receipt(["t"])["failures"] == []


def test_a_step_without_steered_requests_need_not_be_listed(saes):
    toy = Toy()
    steering, one = worker(toy), one_request(saes, toy)
    assert steering.idle
    steering.update([], [request("other", None, [1, 2]), one.new()])
    assert not steering.idle
    step(toy, steering, [(one, 2)])
    steering.update(["r"], [])
    assert steering.idle
    steering.fill((), torch.tensor([3, 4]))
    assert not steering._tokens.any(), "rows of the step before are still steered"


def test_the_self_check_sees_an_operator_that_does_not_run():
    toy = Toy()
    steering = worker(toy)
    steering.self_check(lambda rows: toy(torch.zeros(rows, dtype=torch.int64)))
    with pytest.raises(ReceiptError, match=r"blocks\.1\.hook_resid_post did not run"):
        steering.self_check(lambda rows: None)
    steering.self_check(lambda rows: toy(torch.zeros(rows, dtype=torch.int64)))
    assert steering.take_receipt([])["failures"] == []


def test_a_self_check_leaves_nothing_behind(saes):
    toy, plain = Toy(), Toy()
    steering = worker(toy)
    steering.self_check(lambda rows: toy(torch.zeros(rows, dtype=torch.int64)))
    ids = torch.arange(9)
    assert torch.equal(toy(ids), plain(ids))
    one = one_request(saes, toy)
    steering.update([], [one.new()])
    step(toy, steering, [(one, 2)])
    counts = steering.take_receipt(["t"])["requests"]["t"][0]["counts"]
    assert counts == {0: [[2, 0, 0]]}


def test_a_receipt_may_be_read_while_a_request_runs(saes):
    toy = Toy()
    steering, one = worker(toy), one_request(saes, toy)
    one.tokens, one.prompt = [1, 2, 3, 4, 7], [1, 2]
    steering.update([], [one.new()])
    step(toy, steering, [(one, 2)])
    steering.update(["r"], [])
    (facts,) = steering.take_receipt(["t"])["requests"]["t"]
    assert facts["spans"] == [[0, 2]]
    assert steering.take_receipt(["t"])["requests"] == {"t": []}


def test_lengths_of_the_stream_are_kept_for_who_asks():
    toy = Toy()
    steering = worker(toy)
    entry = {"compiled": compile_norms(POINTS, POINTS, D_MODEL).pack(), "tag": "n", "norms": True}
    steering.update([], [request("a", {KEY: entry}, [1, 2, 3, 4]), request("b", {}, [4])])
    one, other = Live("a", random.Random(1), None), Live("b", random.Random(2), None)
    one.tokens, other.tokens = [1, 2, 3, 4], [4]
    step(toy, steering, [(other, 1), (one, 3)])
    steering.read_norms()
    step(toy, steering, [(one, 1)])
    steering.read_norms()
    _, _, wanted = oracle(toy, None, one.tokens, 4, range(4))
    norms = steering.take_norms("n")
    for index, point in enumerate(POINTS):
        torch.testing.assert_close(torch.tensor(norms[index]), wanted[point])
    assert steering.take_norms("n") == {}


def test_requests_that_no_frontend_compiled_are_not_run():
    steering = worker(Toy())
    with pytest.raises(SpecError, match="no frontend compiled"):
        steering.update([], [request("r", {KEY: {"spec": {"edits": []}}}, [1])])
    with pytest.raises(SpecError, match="no frontend compiled"):
        steering.update([], [request("r", {KEY: '{"spec": {}}'}, [1])])


def test_limits_of_an_engine():
    with pytest.raises(SpecError, match=f"more than {MAX_SLOTS} slots"):
        worker(Toy(), max_requests=MAX_SLOTS)
    with pytest.raises(HookPointError, match="layer 9 is outside"):
        worker(Toy(), points=(HookPoint(9),))
