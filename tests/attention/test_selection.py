"""Which path is taken, for machines nobody here owns: by price, within limits, with reasons, the same every time."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from archport.attention import Chooser, builtin_backends, choose
from archport.contract import AttentionCall, AttentionLimits, InputError, MaskPolicy, Price
from archport.contract.spec import AttentionLayer

LENGTHS = ((2048, 16_384), (2048, 65_536), (2048, 131_072), (1, 131_072))


@pytest.mark.parametrize("device", ["m1", "m2-ultra", "m5-max", "h200", "cpu"])
@pytest.mark.parametrize("D", [192, 256, 512])
@pytest.mark.parametrize(("L", "S"), LENGTHS)
def test_large_head_dims_stay_within_scratch_and_watchdog_on_every_profile(device, D, L, S, devices, path_of):
    path = path_of(
        device=device, n_heads=16, n_kv_heads=4, q_len=L, kv_len=S, head_dim=D, dtype="bfloat16", mask="causal"
    )
    limit = path.call.limits.transient_on(devices[device])
    assert not path.excess
    assert path.price.transient <= limit
    assert path.backend.name != "chunked"
    # Whatever is materialised is a tile of the scores, or scores that fit.
    assert path.price.largest_buffer <= max(limit, path.call.output_bytes)
    if devices[device].watchdog_seconds:
        assert path.price.dispatch_seconds <= 0.5


@pytest.mark.parametrize(
    ("device", "D", "L", "S", "mask", "expected"),
    [
        ("m2-ultra", 128, 2048, 131_072, "causal", ("fused", "fused")),
        ("m2-ultra", 192, 512, 8192, "causal", ("composite", "composite")),
        ("m2-ultra", 256, 2048, 2048, "causal", ("fused", "fused")),
        ("m2-ultra", 256, 2048, 131_072, "causal", ("tiled", "composite")),
        ("m5-max", 256, 2048, 131_072, "causal", ("fused", "fused")),
        ("m5-max", 192, 2048, 131_072, "causal", ("fused", "forced")),
        ("m2-ultra", 48, 2048, 4096, "causal", ("fused", "fused")),
        ("h200", 128, 2048, 131_072, "causal", ("fused", "fused")),
        ("h200", 256, 2048, 131_072, "causal", ("flash", "wgmma")),
        ("h200", 192, 4096, 4096, "none", ("flash", "wgmma")),
        ("h200", 48, 2048, 4096, "none", ("fused", "fused")),
        ("cpu", 128, 4096, 4096, "causal", ("tiled", "composite")),
        ("cpu", 128, 32, 32, "none", ("composite", "composite")),
    ],
)
def test_the_route_of_a_head_dim_is_the_one_its_device_is_fastest_at(device, D, L, S, mask, expected, path_of):
    path = path_of(device=device, n_heads=16, n_kv_heads=4, q_len=L, kv_len=S, head_dim=D, dtype="float16", mask=mask)
    assert (path.backend.name, path.price.route) == expected


def test_a_small_budget_turns_a_head_dim_256_composite_into_the_forced_kernel(path_of):
    fields = {"device": "m2-ultra", "n_heads": 16, "q_len": 2048, "kv_len": 8192, "head_dim": 256,
              "dtype": "float16", "mask": "causal"}  # fmt: skip
    assert path_of(**fields).price.route == "composite"
    tight = path_of(**fields, limits=AttentionLimits(transient_bytes=2 * 2**20))
    assert (tight.price.route, tight.excess) == ("forced", "")


@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.5])
def test_a_dispatch_is_cut_to_the_watchdog_bound(seconds, path_of):
    path = path_of(
        device="m1", n_heads=32, n_kv_heads=8, q_len=4096, kv_len=131_072, head_dim=128, dtype="float16",
        mask="causal", limits=AttentionLimits(dispatch_seconds=seconds),
    )  # fmt: skip
    assert not path.excess
    assert path.price.dispatch_seconds <= seconds
    assert path.backend.name == "tiled"
    assert "the watchdog bound is" in dict(path.against)["fused"]


def test_a_padding_mask_on_cuda_costs_next_to_nothing_above_the_unmasked_call(devices, backends):
    layer = AttentionLayer("bidirectional", 16, 16, 64)
    padded = AttentionCall.of(
        layer, MaskPolicy("key_padding"), devices["h200"], B=32, q_len=512, kv_len=512, dtype="bfloat16",
        lengths=tuple(range(481, 513)),
    )  # fmt: skip
    plain = replace(padded, mask="none", lengths=())
    held = [sum((p.transient, p.output)) for p in (choose(c, devices["h200"], backends).price for c in (padded, plain))]
    assert held[0] <= 1.1 * held[1]
    as_bool = choose(replace(padded, additive=False), devices["h200"], backends).price
    assert as_bool.transient > 400_000_000


def test_chunked_is_taken_only_where_nothing_else_fits(path_of):
    fields = {"n_heads": 32, "n_kv_heads": 1, "q_len": 64, "kv_len": 262_144, "head_dim": 64, "mask": "causal"}
    # One tile of 16 rows over all keys needs 537 MB.
    assert path_of(**fields, limits=AttentionLimits(transient_bytes=600_000_000)).backend.name == "tiled"
    tight = path_of(**fields, limits=AttentionLimits(transient_bytes=100_000_000))
    assert (tight.backend.name, tight.excess, tight.price.k_chunk) == ("chunked", "", 32_768)
    assert "bytes of scratch, 100,000,000 allowed" in dict(tight.against)["tiled"]


@pytest.mark.parametrize(("S", "name"), [(65_535, "composite"), (65_536, "chunked")])
def test_forced_chunks_start_at_the_threshold(S, name, path_of):
    path = path_of(q_len=1, kv_len=S, head_dim=64, limits=AttentionLimits(force_chunk=True))
    assert path.backend.name == name


@pytest.mark.parametrize("L", [1, 4, 8])
@pytest.mark.parametrize("device", ["m1", "m2-ultra", "m5-max", "h200", "cpu"])
def test_decode_is_never_chunked_by_default(L, device, path_of):
    path = path_of(
        device=device, n_heads=64, n_kv_heads=8, q_len=L, kv_len=262_144, head_dim=128, dtype="float16", mask="causal"
    )
    assert (path.backend.name != "chunked", path.excess) == (True, "")


def test_a_wide_batch_is_cut_by_rows_and_heads_before_tiles_get_thin(path_of):
    path = path_of(B=8, n_heads=16, n_kv_heads=4, q_len=2048, kv_len=32_768, head_dim=128, mask="causal")
    assert (path.excess, path.price.lanes > 0, path.price.q_tile >= 16) == ("", True, True)


@pytest.mark.parametrize("device", ["m2-ultra", "h200", "cpu"])
@pytest.mark.parametrize("D", [128, 256])
def test_more_scratch_never_makes_a_path_slower(device, D, path_of):
    fields = {"device": device, "n_heads": 16, "q_len": 2048, "kv_len": 65_536, "head_dim": D, "dtype": "bfloat16",
              "mask": "causal"}  # fmt: skip
    times = []
    for budget in (2**n for n in range(24, 38)):
        path = path_of(**fields, limits=AttentionLimits(transient_bytes=budget))
        # Chunked is what is left when nothing else fits; how fast it is plays no part.
        if not path.excess and path.backend.name != "chunked":
            times.append(path.price.seconds)
    assert len(times) > 3
    assert times == sorted(times, reverse=True)


def test_the_same_call_takes_the_same_path_whatever_was_asked_before(devices):
    chooser = Chooser(builtin_backends())
    calls = [AttentionCall(1, 8, 2, L, S, D, D, "float16", "causal") for D in (64, 256) for L, S in LENGTHS]
    first = [chooser(call, devices["m2-ultra"]) for call in calls]
    other = Chooser(builtin_backends())
    assert [other(call, devices["m2-ultra"]) for call in reversed(calls)] == first[::-1]


def test_calibrations_that_jitter_choose_the_same_path(devices, backends):
    call = AttentionCall(1, 16, 4, 2048, 65_536, 256, 256, "float16", "causal")
    facts = devices["m2-ultra"]
    base = choose(call, facts, backends)
    for factor in (0.97, 1.03):
        jittered = replace(
            facts, flops={d: f * factor for d, f in facts.flops.items()}, bandwidth=facts.bandwidth * factor
        )
        assert choose(call, jittered, backends).price == base.price


def test_every_other_backend_has_a_reason_against_it(backends, devices):
    for device in devices.values():
        for L, S in LENGTHS:
            path = choose(AttentionCall(1, 8, 2, L, S, 256, 256, "float16", "causal"), device, backends)
            assert {name for name, _ in path.against} == {b.name for b in backends} - {path.backend.name}
            assert all(why for _, why in path.against)


def test_what_fits_nowhere_is_returned_with_the_numbers_that_break(path_of):
    path = path_of(q_len=64, kv_len=4096, head_dim=64, limits=AttentionLimits(transient_bytes=1000))
    assert "bytes of scratch, 1,000 allowed" in path.excess


def test_a_pinned_backend_is_taken_and_a_refusing_one_gives_its_reasons(path_of):
    assert path_of(q_len=64, kv_len=64, head_dim=64, pin="tiled").backend.name == "tiled"
    with pytest.raises(InputError, match=r"'banded' refuses .* no window limits the reach"):
        path_of(q_len=64, kv_len=64, head_dim=64, pin="banded")
    with pytest.raises(InputError, match="'nope' does not exist"):
        path_of(q_len=64, kv_len=64, head_dim=64, pin="nope")


class Foreign:
    """A backend that a plugin could bring."""

    name = "foreign"

    def reasons_against(self, call, device):
        return [] if call.head_dim == 256 and call.mask != "documents" else ["takes whole calls of head_dim 256 only"]

    def price(self, call, device):
        return Price(0, call.output_bytes, call.output_bytes, 0.0, 0.0, seconds=1e-9)

    def run(self, call, price, q, k, v, *, scale, mask=None, sinks=None):
        return q * 0 + 7


def test_a_plugins_backend_takes_part_also_per_document(devices, inputs):
    from archport.attention import attend

    backends = builtin_backends(extra=(Foreign(),))
    assert choose(AttentionCall(1, 2, 1, 8, 8, 64, 64, "float32"), devices["cpu"], backends).backend.name == "composite"
    call = AttentionCall(1, 2, 1, 8, 8, 256, 256, "float32", "documents", lengths=(5, 3))
    path = choose(call, devices["cpu"], backends)
    assert [part.backend.name for part in path.price.parts] == ["foreign", "foreign"]
    q, k, v = inputs(1, 2, 1, 8, 8, 256)
    assert (attend(path, q, k, v, scale=1.0) == 7).all()


def test_a_thousand_calls_of_a_plan_are_chosen_in_20_ms(devices):
    chooser = Chooser(builtin_backends())
    calls = [AttentionCall(1, 8, 2, L, S, 256, 256, "float16", "causal") for L, S in LENGTHS]
    for call in calls:
        chooser(call, devices["m2-ultra"])
    taken: list[float] = []
    for _ in range(5):
        start = time.thread_time()
        for n in range(1000):
            chooser(calls[n % len(calls)], devices["m2-ultra"])
        taken.append(time.thread_time() - start)
    assert min(taken) < 0.02


@pytest.mark.parametrize("name", ["chunk_threshold", "chunk_size"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5])
def test_limits_without_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        AttentionLimits(**{name: value})
