"""Contract tier: which configs the plugin claims, and what its policy hooks answer. Builds no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.checkpoint import normalise_config
from archport.contract import AttentionCall, AttentionLayer, BatchShape, Limits, MaskPolicy
from archport.contract.hooks import Hooks
from archport.device.facts import this_device
from archport.device.profiles import profile
from archport.testing.check import check, fail, skip
from archport.testing.subject import Subject, Tiny

# Configs that every plugin sees whenever any model is loaded, and that are nobody's.
STRANGERS: tuple[dict[str, Any], ...] = (
    {},
    {"model_type": "acme", "architectures": ["AcmeForCausalLM"]},
    {"architectures": None, "hidden_size": 8},
    {"architectures": [], "model_type": ""},
)


@check("contract", hook="archport_claim")
def claims_its_own_and_no_other(s: Subject) -> str:
    """The plugin claims each of its examples, alone, and no example of another plugin and no unknown config.

    Claim on `architectures` and flags, and answer None to everything else, whatever keys it lacks.
    """
    if s.is_guest:
        skip("it claims nothing: it is an override for models of other plugins")
    if not s.examples:
        fail("archport_examples names no example; expected one tiny config per architecture")
    for tiny in s.tinies:
        if s.hooks.claim(tiny.config) is None:
            fail(f"its own example {tiny.example.name!r} is not claimed")
        for other in s.others:
            if _claims(other.hooks(), tiny.config):
                fail(f"its example {tiny.example.name!r} is claimed by {other.label} too")
    foreign = 0
    for other in s.others:
        for example in other.hooks().examples():
            foreign += 1
            if s.hooks.claim(normalise_config(dict(example.config))) is not None:
                fail(f"it claims the example {example.name!r} of {other.label}")
    for config in STRANGERS:
        if s.hooks.claim(normalise_config(dict(config))) is not None:
            fail(f"it claims the unknown config {config}")
    return f"{len(s.examples)} own, {foreign + len(STRANGERS)} foreign configs"


def _claims(hooks: Hooks, config: Mapping[str, Any]) -> bool:
    try:
        return hooks.claim(config) is not None
    # Another plugin's fault is not this one's.
    except Exception:
        return False


@check("contract", hook="archport_claim")
def flags_change_the_semantics(s: Subject) -> str:
    """A config that says otherwise (bidirectional, or a decoder) is declined or declared so, never run as the default.

    Read the normalised key `causal`: checkpoints of one architecture are published with either meaning.
    """
    if s.is_guest:
        skip("it claims nothing: it is an override for models of other plugins")
    asked = 0
    for tiny in s.tinies:
        flag = {"is_causal": False} if tiny.spec.semantics == "causal" else {"is_decoder": True}
        config = normalise_config({**tiny.example.config, **flag})
        if config["causal"] == tiny.config["causal"]:
            # An architecture whose name alone decides.
            continue
        asked += 1
        spec = s.hooks.claim(config)
        if spec is not None and spec.semantics == tiny.spec.semantics:
            fail(f"{tiny.example.name}: with {flag} in its config it is still declared {spec.semantics}")
    if not asked:
        skip("no flag changes the meaning of these architectures")
    return f"{asked} of {len(s.tinies)} examples asked"


@check("contract", hook="archport_kv_allocation")
def policy_hooks_answer_legally(s: Subject) -> str:
    """Mask, KV, chunk and backend hooks answer what the declared layers allow, on any device, twice the same.

    Return None unless the model needs the pin; the planner takes the cheapest legal choice.
    """
    answers = pins = 0
    devices = (this_device(), profile("m2-ultra-128gb"), profile("h200"))
    for tiny in s.tinies:
        for B, L, S, ragged in ((1, 1, 16, False), (1, 64, 0, False), (3, 24, 0, True), (2, 48, 48, False)):
            shape = BatchShape(B=B, L=L, S=S, ragged=ragged)
            for device in devices:
                answer = _answers(tiny, shape, device)
                answers += len(answer)
                pins += sum(value is not None for value in answer)
                if _answers(tiny, shape, device) != answer:
                    fail(f"{tiny.example.name}: for {shape} the same hook answers differently when asked again")
    return f"{answers} answers, {pins} pins"


def _answers(tiny: Tiny, shape: BatchShape, device: Any) -> list[object]:
    hooks, spec = tiny.hooks, tiny.spec
    limits = Limits(max_context=spec.max_positions, budget=2**30)
    found: list[object] = [hooks.prefill_chunk(spec, shape, device)]
    names = {"fused", "composite", "tiled", "banded", "chunked", "segments"}
    names |= {backend.name for backend in hooks.sdpa_backends()}
    for layer in dict.fromkeys(spec.layers):
        if not isinstance(layer, AttentionLayer) or layer.keeps:
            kept = hooks.kv_allocation(spec, layer, shape, limits)
            if kept is not None:
                problems = kept.problems_with(layer)
                if problems:
                    fail(f"{tiny.example.name}: for {shape} archport_kv_allocation pins {kept}: {'; '.join(problems)}")
            found.append(kept)
        if isinstance(layer, AttentionLayer):
            policy = hooks.mask_policy(spec, layer, shape)
            call = AttentionCall.of(
                layer, policy or MaskPolicy("none"), device, B=shape.B, q_len=shape.L, kv_len=shape.S + shape.L,
                dtype="float32",
            )  # fmt: skip
            backend = hooks.sdpa_backend(spec, layer, call, device)
            if backend is not None and backend not in names:
                fail(f"{tiny.example.name}: archport_sdpa_backend names {backend!r}; known: {', '.join(sorted(names))}")
            found += [policy, backend]
    return found
