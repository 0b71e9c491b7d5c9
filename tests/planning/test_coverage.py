"""A plan runs every token of every row once, in order; a batch that does not can't be made."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace
from types import ModuleType

import pytest

from archport.attention import Chooser, builtin_backends
from archport.contract import AdmissionRefused, ArchportError, ArchSpec, AttentionPath
from archport.device.profiles import profile
from archport.planning import BatchPlan, Plan
from archport.testing.plans import plan_of


def uncovered(plan: Plan, lengths: tuple[int, ...]) -> str:
    """What a plan leaves out, runs twice or runs in too large a step; "" when nothing."""
    rows = [row for batch in plan.batches for row in batch.rows]
    if sorted(rows) != list(range(len(lengths))):
        return f"rows {rows}"
    for batch in plan.batches:
        if batch.lengths != tuple(lengths[row] for row in batch.rows):
            return f"lengths {batch.lengths}"
        tokens = [at for step in batch.steps for at in range(step.start, step.start + step.tokens)]
        if tokens != list(range(batch.shape.L)):
            return f"steps {[(step.start, step.tokens) for step in batch.steps]} of {batch.shape.L}"
        real = sum(batch.lengths) if batch.packed else max(batch.lengths)
        if real > len(tokens) or any(step.tokens > batch.chunk for step in batch.steps):
            return f"{real} tokens in {len(tokens)}, chunks of {batch.chunk}"
        for step in batch.steps:
            for path in step.paths:
                if isinstance(path, AttentionPath) and path.call.q_len != step.tokens:
                    return f"a path of {path.call.q_len} queries in a step of {step.tokens}"
    return ""


def cover(drawn: ModuleType, specs: dict[str, ArchSpec], count: int, seed: int, longest: int) -> Counter[str]:
    """Plans so many requests, half of them in a budget that hardly admits them; counts those with three steps."""
    stepped: Counter[str] = Counter()
    rng, choose, device = random.Random(seed), Chooser(builtin_backends()), ""
    for index, request in enumerate(drawn.requests(specs, count, seed, longest)):
        if request.device != device:
            choose, device = Chooser(builtin_backends()), request.device
        # Mostly at the border: further from it, rows of large models run whole.
        share = rng.random() ** 3
        # Families take turns within each cycle; what is tight changes from one cycle to the next.
        hardly = index // len(specs) % 2
        plan = drawn.tight(request, choose, share) if hardly else request.plan(choose, budget=2**50)
        problem = uncovered(plan, request.lengths)
        assert not problem, f"{request} at {plan.budget:,}: {problem}"
        assert plan.peak <= plan.budget
        stepped[request.name] += any(len(batch.steps) >= 3 for batch in plan.batches)
    return stepped


@pytest.fixture(scope="session")
def specs(drawn: ModuleType, models: dict[str, ArchSpec]) -> dict[str, ArchSpec]:
    return drawn.families(models)


def test_every_plan_covers_every_token(drawn: ModuleType, specs: dict[str, ArchSpec]):
    stepped = cover(drawn, specs, 500, 0, 400)
    assert all(stepped[name] for name, spec in specs.items() if spec.semantics == "causal")


@pytest.mark.truth
def test_five_thousand_plans_cover_every_token(drawn: ModuleType, specs: dict[str, ArchSpec]):
    stepped = cover(drawn, specs, 5000, 1, drawn.LONGEST)
    few = {name: stepped[name] for name, spec in specs.items() if spec.semantics == "causal" and stepped[name] < 100}
    assert not few, "too few plans of three steps or more"


def _broken(batch: BatchPlan) -> dict[str, dict]:
    """Changes to a batch of several steps, each of which leaves something out, or runs it twice."""
    steps, decode = batch.steps, batch.decode
    assert decode is not None
    wrong = replace(steps[1], paths=steps[-1].paths)
    return {
        "a gap": {"steps": (steps[0], *steps[2:])},
        "no first step": {"steps": steps[1:]},
        "no last step": {"steps": steps[:-1]},
        "a step twice": {"steps": (steps[0], *steps)},
        "another order": {"steps": (steps[1], steps[0], *steps[2:])},
        "a larger step": {"chunk": batch.chunk - 1},
        "no step": {"steps": ()},
        "paths of another step": {"steps": (steps[0], wrong, *steps[2:])},
        "no path": {"steps": (replace(steps[0], paths=()), *steps[1:])},
        "a longer row": {"lengths": (batch.shape.L + 1,)},
        "a row twice": {"rows": (0, 0), "lengths": (5, 5)},
        "an empty row": {"lengths": (0,)},
        "a later decoded token": {"decode": replace(decode, start=decode.start + 1)},
        "two decoded tokens": {"decode": replace(decode, tokens=2)},
        "a picture twice": {"vision": 2 * batch.quote.vision},
    }


def _can_be_made(batch: BatchPlan, change: dict) -> bool:
    try:
        own = {name: change.pop(name) for name in ("rows", "decode") if name in change}
        if "lengths" in change:
            own["batch"] = replace(batch.batch, lengths=change.pop("lengths"))
        if "chunk" in change:
            change["schedule"] = replace(batch.schedule, chunk=change.pop("chunk"))
        replace(batch, quote=replace(batch.quote, **change), **own)
    except ArchportError as error:
        return not any(words in str(error) for words in ("can't be planned so", "leaves tokens out"))
    return True


@pytest.fixture
def stepped(drawn: ModuleType, specs: dict[str, ArchSpec]) -> BatchPlan:
    spec = specs["qwen3_vl: dense, one tap"]
    plan = plan_of(
        spec,
        [1000],
        device=profile("cpu"),
        choose=Chooser(builtin_backends()),
        chunk=192,
        new_tokens=9,
        images=[[400]],
    )
    return plan.batches[0]


def test_a_batch_that_leaves_a_token_out_can_not_be_made(stepped: BatchPlan):
    assert replace(stepped) == stepped
    assert len(stepped.steps) == 6
    assert stepped.quote.vision
    made = [what for what, change in _broken(stepped).items() if _can_be_made(stepped, change)]
    assert not made


def test_a_plan_that_leaves_a_row_out_can_not_be_made(qwen3_06b: ArchSpec, real_choose: Chooser):
    plan = plan_of(qwen3_06b, [9000, 50, 4000], device=profile("h200"), choose=real_choose)
    assert len(plan.batches) > 1
    for batches in (plan.batches[1:], plan.batches * 2):
        with pytest.raises(ArchportError, match="each row of the request once"):
            replace(plan, batches=batches)


def borders(drawn: ModuleType, specs: dict[str, ArchSpec], count: int, seed: int) -> int:
    """Plans so many requests around the smallest budget that admits them; counts those that name what would fit."""
    named, choose, device = 0, Chooser(builtin_backends()), ""
    for request in drawn.requests(specs, count, seed, 2000):
        if request.device != device:
            choose, device = Chooser(builtin_backends()), request.device
        least = request.plan(choose, budget=2**50).minimum
        for budget in (least, least + 1, int(1.01 * least), int(1.03 * least), int(1.1 * least), 2 * least):
            assert request.plan(choose, budget=budget).minimum == least, f"{request} at {budget:,}"
        with pytest.raises(AdmissionRefused) as refused:
            request.plan(choose, budget=least - 1)
        tokens = refused.value.max_tokens_that_fit
        if request.arguments.keys() & {"images", "visible"} or not tokens:
            continue
        named += 1
        fitting = replace(request, lengths=tuple(min(length, tokens) for length in request.lengths))
        fitting.plan(choose, budget=least - 1)
        more = replace(request, lengths=tuple(min(length, tokens + 1) for length in request.lengths))
        if request.arguments["mode"] == "embed":
            more = replace(request, lengths=(tokens + 1,) * len(request.lengths))
        with pytest.raises(AdmissionRefused):
            more.plan(choose, budget=least - 1)
    return named


def test_the_stated_minimum_is_the_border_of_what_fits(drawn: ModuleType, specs: dict[str, ArchSpec]):
    assert borders(drawn, specs, 8, 0) >= 3


@pytest.mark.truth
def test_the_stated_minimum_is_the_border_of_what_fits_100_times(drawn: ModuleType, specs: dict[str, ArchSpec]):
    assert borders(drawn, specs, 100, 1) >= 40


def monotone(drawn: ModuleType, specs: dict[str, ArchSpec], count: int, seed: int) -> None:
    """Plans so many requests in 20 budgets from below the smallest to more than enough."""
    choose, device = Chooser(builtin_backends()), ""
    for request in drawn.requests(specs, count, seed, 8000):
        if request.device != device:
            choose, device = Chooser(builtin_backends()), request.device
        roomy = request.plan(choose, budget=2**50)
        least, steps = roomy.minimum, math.inf
        for step in range(20):
            budget = int(0.95 * least * (2.2 * max(roomy.peak, least) / least) ** (step / 19))
            try:
                plan = request.plan(choose, budget=budget)
            except AdmissionRefused:
                assert budget < least, f"{request}: refused at {budget:,}"
                continue
            assert budget >= least, f"{request}: admitted at {budget:,}"
            # Not tokens of a step: rows that are packed together in little room may run apart in more.
            most = max(len(batch.steps) for batch in plan.batches)
            assert most <= steps, f"{request}: {most} steps after {steps} at {budget:,}"
            steps = most


def test_more_budget_never_refuses_nor_splits_more(drawn: ModuleType, specs: dict[str, ArchSpec]):
    monotone(drawn, specs, 3, 0)


@pytest.mark.truth
def test_more_budget_never_refuses_nor_splits_more_40_times(drawn: ModuleType, specs: dict[str, ArchSpec]):
    monotone(drawn, specs, 40, 1)
