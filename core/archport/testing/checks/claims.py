"""Contract tier: which configs the plugin claims, and what its policy hooks answer. Builds no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from archport.checkpoint import normalise_config
from archport.contract import (
    AttentionCall,
    AttentionLayer,
    BatchShape,
    KVAllocation,
    LayerSpec,
    Limits,
    MaskPolicy,
    SpecError,
)
from archport.contract.hooks import Hooks
from archport.contract.plugins import Plugin
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

    Claim on `architectures` and flags, and answer None to everything else, whatever keys it lacks. A plugin that states
    `ARCHPORT_STEPS_BACK = True` may claim what another one claims.
    """
    if s.is_guest:
        skip("it claims nothing: it is an override for models of other plugins")
    if not s.examples:
        fail("archport_examples names no example; expected one tiny config per architecture")
    for tiny in s.tinies:
        if s.hooks.claim(tiny.config) is None:
            fail(f"its own example {tiny.example.name!r} is not claimed")
        for other in s.others:
            if not _apart(s, other) and _claims(other.hooks(), tiny.config):
                fail(f"its example {tiny.example.name!r} is claimed by {other.label} too")
    foreign = 0
    for other in s.others:
        for example in other.hooks().examples():
            foreign += 1
            if s.hooks.claim(normalise_config(dict(example.config))) is not None and not _apart(s, other):
                fail(f"it claims the example {example.name!r} of {other.label}")
    for config in STRANGERS:
        if s.hooks.claim(normalise_config(dict(config))) is not None:
            fail(f"it claims the unknown config {config}")
    return f"{len(s.examples)} own, {foreign + len(STRANGERS)} foreign configs"


def _apart(s: Subject, other: Plugin) -> bool:
    """Whether one of two plugins steps back for the other, so that both may claim a config."""
    return s.plugin.steps_back != other.steps_back


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
        if all(config[key] == tiny.config[key] for key in ("causal", "causal_stated")):
            # An architecture whose name alone decides.
            continue
        asked += 1
        try:
            spec = s.hooks.claim(config)
        except SpecError:
            # Declined with a reason.
            continue
        if spec is not None and spec.semantics == tiny.spec.semantics:
            fail(f"{tiny.example.name}: with {flag} in its config it is still declared {spec.semantics}")
    if not asked:
        skip("no flag changes the meaning of these architectures")
    return f"{asked} of {len(s.tinies)} examples asked"


SHAPES = ((1, 1, 16, False), (1, 64, 0, False), (3, 24, 0, True), (2, 48, 48, False))
BACKENDS = ("fused", "composite", "tiled", "banded", "chunked", "documents")
# A prime number, so that answers that take turns do not come round to the first one.
AGAIN = 7


@check("contract", hook="archport_kv_allocation")
def policy_hooks_answer_legally(s: Subject) -> str:
    """Mask, KV, chunk and backend hooks answer what the declared layers allow, on any device.

    Return None unless the model needs the pin; the planner takes the cheapest legal choice.
    """
    answers = pins = 0
    for tiny in s.tinies:
        names = {*BACKENDS, *(backend.name for backend in tiny.hooks.sdpa_backends())}
        for shape, layer, hook, ask in _questions(tiny):
            answer = ask()
            answers += 1
            pins += answer is not None
            if isinstance(answer, KVAllocation) and layer is not None and (wrong := answer.problems_with(layer)):
                fail(f"{tiny.example.name}: for {shape} {hook} pins {answer}: {'; '.join(wrong)}")
            if hook == "archport_sdpa_backend" and answer is not None and answer not in names:
                fail(f"{tiny.example.name}: {hook} names {answer!r}; known: {', '.join(sorted(names))}")
    return f"{answers} answers, {pins} pins"


@check("contract", hook="archport_claim")
def hooks_answer_the_same_again(s: Subject) -> str:
    """Claims, examples, mask, KV, chunk and backend hooks give the same answer however often they are asked.

    Answer from the arguments alone: keep no counter, no clock and nothing of earlier questions.
    """
    asked = 0
    for tiny in s.tinies:
        claims = [] if s.is_guest else [("archport_claim", partial(s.hooks.claim, tiny.config))]
        for hook, ask in (*claims, *((hook, ask) for _, _, hook, ask in _questions(tiny))):
            first = ask()
            asked += 1
            for turn in range(2, AGAIN + 1):
                again = ask()
                if again != first:
                    fail(f"{tiny.example.name}: {hook} answers {first} at first and {again} at question {turn}")
    first = _named(s)
    for _ in range(AGAIN - 1):
        if _named(s) != first:
            fail("archport_examples or archport_models answers differently when asked again")
    return f"{asked} questions, {AGAIN} times each"


def _named(s: Subject) -> object:
    return [(each.name, each.config, each.seed) for each in s.hooks.examples()], s.hooks.models()


def _questions(tiny: Tiny) -> Iterator[tuple[BatchShape, LayerSpec | None, str, Callable[[], object]]]:
    """What the policy hooks are asked for an example: (shape, layer, hook, the question)."""
    hooks, spec = tiny.hooks, tiny.spec
    limits = Limits(max_context=spec.max_positions, budget=2**30)
    for B, L, S, ragged in SHAPES:
        shape = BatchShape(B=B, L=L, S=S, ragged=ragged)
        for device in (this_device(), profile("m2-ultra-128gb"), profile("h200")):
            yield shape, None, "archport_prefill_chunk", partial(hooks.prefill_chunk, spec, shape, device)
            for layer in dict.fromkeys(spec.layers):
                attends = isinstance(layer, AttentionLayer)
                if not attends or layer.keeps:
                    allocate = partial(hooks.kv_allocation, spec, layer, shape, limits)
                    yield shape, layer, "archport_kv_allocation", allocate
                if attends:
                    ask_policy = partial(hooks.mask_policy, spec, layer, shape)
                    yield shape, layer, "archport_mask_policy", ask_policy
                    policy = ask_policy() or MaskPolicy("none")
                    call = AttentionCall.of(layer, policy, device, B=B, q_len=L, kv_len=S + L, dtype="float32")
                    yield shape, layer, "archport_sdpa_backend", partial(hooks.sdpa_backend, spec, layer, call, device)
