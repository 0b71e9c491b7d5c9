"""What a plan says of itself: one price per path, the time of decoding, why the chunk has its size."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from types import ModuleType

import pytest

from archport.attention import Chooser, builtin_backends
from archport.contract import ArchSpec, AttentionLayer, AttentionPath, InputError
from archport.device.profiles import profile
from archport.planning import NoPins
from archport.planning.report import duration, explain_in_full
from archport.testing.plans import plan_of

M2, M4, H200 = profile("m2-ultra-128gb"), profile("m4-pro-24gb"), profile("h200")
BLOCK = re.compile(r"  (?:path|first|decode) +[\d,]+ x [\d,]+: (.*), ([^,\n]+)\n((?:           not .*\n)*)")
AGAINST = re.compile(r"about ([\d.e+]+) ms against ([\d.e+]+) ms( here)?")


def texts(seed: int, count: int) -> list[int]:
    generator = random.Random(seed)
    return [min(512, max(8, int(generator.lognormvariate(5.0, 0.9)))) for _ in range(count)]


def packed_spec(*reach: tuple[int | None, int | None]) -> ArchSpec:
    layers = tuple(AttentionLayer("bidirectional", 12, 12, 64, reach=each) for each in reach)
    return ArchSpec(
        arch="trunk",
        tasks=("embed",),
        layers=layers * 6,
        vocab_size=30000,
        hidden_size=768,
        intermediate_size=3072,
        max_positions=8192,
        dtype="bfloat16",
    )


def prices(text: str) -> list[tuple[str, str]]:
    """Of every reason that compares times: the time of the path that it is a reason for, and the one that it names."""
    found = []
    for _, shown, reasons in BLOCK.findall(text):
        for other, own, here in AGAINST.findall(reasons):
            found.append((shown, f"{own} ms"))
            assert here or float(other) >= float(own)
    return found


def test_a_packed_path_has_one_time_in_all_that_is_said_of_it(real_choose: Chooser):
    compared = 0
    for seed in range(4):
        plan = plan_of(
            packed_spec((None, None), (64, 64)), texts(seed, 200), device=H200, choose=real_choose, pack=True
        )
        assert plan.largest.packed
        for batch in plan.batches:
            for path in batch.steps[0].paths:
                assert isinstance(path, AttentionPath)
                assert path.price == path.backend.price(path.call, H200)
        found = prices(plan.explain(verbose=True) + "\n")
        assert all(shown == named for shown, named in found), found
        compared += len(found)
    assert compared


def test_reasons_hold_for_the_documents_that_run_and_not_for_those_that_stood_for_them(real_choose: Chooser):
    plan = plan_of(packed_spec((None, None)), texts(3, 150), device=H200, choose=real_choose, pack=True)
    (path,) = plan.largest.steps[0].paths
    assert isinstance(path, AttentionPath)
    said = dict(plan.against(path))
    assert said.keys() == {backend.name for backend in builtin_backends()} - {path.backend.name}
    for backend in builtin_backends():
        if backend.name == path.backend.name:
            continue
        try:
            price = real_choose(path.call, H200, backend.name).price
        except InputError:
            assert "; ".join(backend.reasons_against(path.call, H200)) == said[backend.name]
            continue
        assert said[backend.name].startswith(
            f"about {price.seconds * 1e3:.3g} ms against {path.price.seconds * 1e3:.3g}"
        )


def one_price(drawn: ModuleType, specs: dict[str, ArchSpec], count: int, seed: int) -> int:
    """Explains so many plans; counts the comparisons of time in them."""
    compared, choose, device = 0, Chooser(builtin_backends()), ""
    for request in drawn.requests(specs, count, seed, 2000):
        if request.device != device:
            choose, device = Chooser(builtin_backends()), request.device
        found = prices(request.plan(choose, budget=2**45).explain(verbose=True) + "\n")
        assert all(shown == named for shown, named in found), f"{request}: {found}"
        compared += len(found)
    return compared


def test_every_path_has_one_time(drawn: ModuleType, models: dict[str, ArchSpec]):
    assert one_price(drawn, drawn.families(models), 25, 0) > 10


@pytest.mark.truth
def test_every_path_has_one_time_in_200_plans(drawn: ModuleType, models: dict[str, ArchSpec]):
    assert one_price(drawn, drawn.families(models), 200, 1) > 100


@pytest.mark.parametrize("name", ["qwen3_06b", "hybrid_27b", "hybrid_122b", "windowed"])
@pytest.mark.parametrize("device", ["m1-16gb", "m2-ultra-128gb", "h200"])
def test_decoding_takes_its_weights_and_its_cache_over_the_bandwidth(name, device, models, real_choose: Chooser):
    where, spec = profile(device), models[name]
    plans = {
        new: plan_of(spec, [1000], device=where, choose=real_choose, new_tokens=new, budget=2**40, max_context=9999)
        for new in (1, 1024, 8192)
    }
    assert plans[1].decode_seconds == 0
    assert plans[1].seconds == plans[1].prefill_seconds
    for new in (1024, 8192):
        plan = plans[new]
        assert plan.seconds == plan.prefill_seconds + plan.decode_seconds
        # Some weights, of experts and of the embedding, are not read for a token.
        whole = (new - 1) * plan.bytes["weights"] / where.bandwidth
        assert plan.decode_seconds >= (0.05 if spec.experts else 0.75) * whole
        host = (new - 1) * len(spec.layers) * 0.17e-3
        assert plan.decode_seconds <= 1.05 * (max(whole, host) + (new - 1) * plan.bytes["kv"] / where.bandwidth + host)
        decoding = plan.batches[0].decoding
        assert decoding is not None
        assert decoding.steps == new - 1
        assert decoding.first <= decoding.last
        assert decoding.steps * decoding.first <= 1.0001 * decoding.seconds <= 1.0002 * decoding.steps * decoding.last
    assert plans[8192].decode_seconds > 7.9 * plans[1024].decode_seconds


def test_a_longer_cache_takes_longer_to_read(qwen3_06b: ArchSpec, real_choose: Chooser):
    def last(cached: int) -> float:
        plan = plan_of(qwen3_06b, [8], device=M4, choose=real_choose, cached=cached, new_tokens=2)
        assert plan.batches[0].decoding is not None
        return plan.batches[0].decoding.last

    read = 20_000 * 28 * 8 * (128 + 128) * 2 / M4.bandwidth
    assert last(30_000) - last(10_000) == pytest.approx(read, rel=1e-6)


def test_windows_read_no_more_than_they_see(windowed: ArchSpec, real_choose: Chooser):
    near = replace(windowed, layers=windowed.layers[:5])
    seconds = [
        plan_of(near, [8], device=M4, choose=real_choose, cached=cached, new_tokens=2).batches[0].decoding.last
        for cached in (600, 60_000)
    ]
    assert seconds[0] == pytest.approx(seconds[1])


def test_prefill_and_decoding_are_told_apart(qwen3_06b: ArchSpec, real_choose: Chooser):
    plan = plan_of(qwen3_06b, [5000], device=M4, choose=real_choose, new_tokens=256)
    text, read = plan.explain(verbose=True), plan.to_dict()
    assert f"estimated time: {duration(plan.seconds)}\n" in text
    assert f"prefill  {duration(plan.prefill_seconds)}, " in text
    assert f"decoding {duration(plan.decode_seconds)}: 255 passes" in text
    assert read["seconds"] == pytest.approx(read["prefill_seconds"] + read["decode_seconds"], rel=1e-3)
    assert read["batches"][0]["decoding"]["steps"] == 255
    unknown = plan_of(qwen3_06b, [5000], device=M4, choose=real_choose, new_tokens=None)
    assert unknown.decode_seconds == 0
    assert "each further token takes about" in unknown.explain(verbose=True)
    embedded = plan_of(qwen3_06b, [5000], device=M4, choose=real_choose)
    assert "decoding" not in embedded.explain(verbose=True)


class Chunked(NoPins):
    def prefill_chunk(self, spec, shape, device):
        return 700


def slow(spec: ArchSpec, choose: Chooser):
    """A device on which two layers' work is all that its watchdog bears."""
    return plan_of(
        spec, [20_000], device=replace(M4, flops={"bfloat16": 4e10}), choose=choose, mode="generate", budget=2**40
    )


@pytest.mark.parametrize(
    ("bound", "make", "words"),
    [
        ("row", lambda spec, choose: plan_of(spec, [2000], device=M2, choose=choose), "the whole row"),
        ("device", lambda spec, choose: plan_of(spec, [9000], device=M2, choose=choose, mode="generate"), "gains"),
        ("caller", lambda spec, choose: plan_of(spec, [9000], device=M2, choose=choose, chunk=100), "at most 100"),
        (
            "hook",
            lambda spec, choose: plan_of(spec, [9000], device=M2, choose=choose, pins=Chunked(), plugin="acme"),
            "archport_prefill_chunk of acme wishes for at most 700",
        ),
        (
            "memory",
            lambda spec, choose: plan_of(
                spec, [9000], device=M2, choose=choose, new_tokens=9, budget=int(2.32e9), dtype="bfloat16"
            ),
            "the budget is 2,320,000,000",
        ),
        ("work", slow, "the bound is 0.50 s"),
    ],
)
def test_a_plan_says_why_its_chunk_is_no_larger(bound, make, words, qwen3_06b: ArchSpec, real_choose: Chooser):
    plan = make(qwen3_06b, real_choose)
    batch = plan.largest
    assert batch.schedule.bound == bound, plan.explain(verbose=True)
    (line,) = [line for line in explain_in_full(plan).splitlines() if line.startswith("prefill chunk: ")]
    assert words in line
    assert batch.schedule.bound == "row" or f"{batch.chunk:,} tokens" in line
    assert plan.to_dict()["batches"][0]["chunk_bound"] == bound


def test_a_chunk_bound_by_memory_grows_with_it(qwen3_06b: ArchSpec, real_choose: Chooser):
    """What is said to bind, binds: a budget of what the next larger chunk needs gives that."""
    plan = plan_of(qwen3_06b, [9000], device=M2, choose=real_choose, new_tokens=9, budget=int(2.32e9))
    assert plan.largest.schedule.bound == "memory"
    needed = re.search(r"needs ([\d,]+) bytes", plan.largest.schedule.why)
    assert needed
    more = plan_of(
        qwen3_06b,
        [9000],
        device=M2,
        choose=real_choose,
        new_tokens=9,
        budget=int(1.002 * int(needed[1].replace(",", ""))),
    )
    assert more.chunk > plan.chunk


def test_a_batch_that_memory_keeps_small_names_the_rows_that_did_not_fit(qwen3_06b: ArchSpec, real_choose: Chooser):
    least = plan_of(qwen3_06b, [2000], device=profile("m1-16gb"), choose=real_choose).minimum
    budget = int(1.3 * least)
    plan = plan_of(qwen3_06b, [2000] * 8, device=profile("m1-16gb"), choose=real_choose, budget=budget)
    (problem,) = {batch.why for batch in plan.batches[:-1]}
    assert re.search(r"rows of [\d,]+ tokens would not do: a batch needs [\d,]+ bytes, the budget is", problem)
    assert f"rows: {problem}" in plan.explain()


def test_equal_batches_are_explained_once_and_paths_with_the_next_best(qwen3_06b: ArchSpec, real_choose: Chooser):
    plan = plan_of(qwen3_06b, [3000] * 40, device=profile("m1-16gb"), choose=real_choose)
    lines = plan.explain().splitlines()
    assert len(plan.batches) > 5
    assert sum(line.startswith("batch") for line in lines) == 2
    (path,) = [line for line in lines if line.startswith("    path: ")]
    (best,) = plan.largest.steps[-1].paths
    name, reason = plan.against(best)[0]
    assert path.endswith(f"; not {name}: {reason}")


def test_a_schedule_that_memory_makes_tight_says_what_fewer_evaluations_would_need(
    qwen3_06b: ArchSpec, real_choose: Chooser
):
    least = plan_of(qwen3_06b, [20_000], device=profile("m1-16gb"), choose=real_choose).minimum
    plan = plan_of(qwen3_06b, [20_000], device=profile("m1-16gb"), choose=real_choose, budget=least)
    assert plan.largest.schedule.split
    assert "between evaluations would not do: it needs" in plan.explain()
