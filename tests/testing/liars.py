"""Plugins that break one rule each: the toy plugin with one thing changed.

LIARS is the matrix: for every check the plugin that it must fail, and which other checks the same lie reaches, each
with its reason in one line.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from types import ModuleType

import imports_mlx
import mlx.core as mx
import mlx.nn as nn
import toy
from mlx.utils import tree_flatten
from toy_model import Toy

from archport.contract import EmbeddingHead, KVAllocation, TextInputs, hookimpl
from archport.contract.attention import Price

DECODER = toy.archport_examples()[0]
ENCODER = toy.archport_examples()[1]


@dataclass(frozen=True)
class Liar:
    """A plugin that breaks one rule.

    Args:
        breaks: the check that must fail.
        lie: what it does, in words.
        module: the plugin.
        says: what the failure's message must contain.
        also: other checks that fail, each with the reason why this lie reaches them.
        tier: the tier that is run; None for contract and tiny.
    """

    breaks: str
    lie: str
    module: ModuleType
    says: str
    also: dict[str, str] = field(default_factory=dict)
    tier: str | None = None


def plugin(name, *, trunk=None, examples=(DECODER,), **hooks):
    """The toy plugin as a module of its own, with another trunk or other hooks."""
    module = ModuleType(f"liar_{name}")
    chosen = {hook: getattr(toy, hook) for hook in ("archport_claim", "archport_build", "archport_examples")}

    def archport_examples():
        return list(examples)

    def archport_build(spec, config):
        return trunk(spec, config)

    chosen["archport_examples"] = archport_examples
    if trunk is not None:
        chosen["archport_build"] = archport_build
    for hook, function in {**chosen, **hooks}.items():
        setattr(module, hook, hookimpl(function))
    return module


def spec_with(change):
    """archport_claim of the toy, with its spec changed."""

    def archport_claim(config):
        spec = toy.archport_claim(config)
        return spec and change(spec)

    return archport_claim


def config_with(**more):
    return replace(DECODER, config={**DECODER.config, **more})


# Contract.


def archport_prefil_chunk(spec):
    return None


def more_heads(spec):
    return replace(spec, layers=tuple(replace(layer, n_kv_heads=layer.n_heads) for layer in spec.layers))


def claims_strangers(config):
    if "AcmeForCausalLM" in (config.get("architectures") or []):
        return toy.archport_claim({**DECODER.config, "causal": True})
    return toy.archport_claim(config)


def ignores_flags(config):
    return toy.archport_claim({**config, "causal": True}) if config.get("architectures") else None


def ring_for_all(layer, shape):
    return KVAllocation("ring", 256, 256) if shape.B == 3 and layer.reach[0] is None else None


# Loading.


class DoublesNorms(Toy):
    def sanitize(self, weights):
        published = any(name.startswith("toy.") for name in weights)
        weights = super().sanitize(weights)
        return {n: w * 2 if published and n.endswith("layernorm.weight") else w for n, w in weights.items()}


class AddsOneToNorms(Toy):
    def sanitize(self, weights):
        saved = not any(name.startswith("toy.") for name in weights)
        weights = super().sanitize(weights)
        return {n: w + 1 if saved and n.endswith("layernorm.weight") else w for n, w in weights.items()}


class SwapsIndices(Toy):
    def index(self, spec, index):
        return len(spec.layers) - 1 - index


class FillsIn(Toy):
    def sanitize(self, weights):
        empty = {name: mx.zeros(value.shape) for name, value in tree_flatten(self.parameters())}
        return {**empty, **super().sanitize(weights)} if not any(n.endswith("scales") for n in weights) else weights


class ReadsWeight(Toy):
    def enter(self, ids, ctx):
        return self.embed.weight[ids] + self.place(ctx.positions)


# What tokens see.


class LooksAhead(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x + 0.3 * mx.pad(x[:, 1:], [(0, 0), (0, 1), (0, 0)])


class Deaf(Toy):
    def blocks(self, x, ctx):
        for layer in self.layers:
            x = x + 0 * layer.self_attn(layer.input_layernorm(x), ctx)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return x


class Backend:
    """A backend of a plugin: plain attention over what `sees` says."""

    def __init__(self, name, seconds, reason, out):
        self.name, self._seconds, self._reason, self._out = name, seconds, reason, out

    def reasons_against(self, call, device):
        reason = self._reason(call)
        return [reason] if reason else []

    def price(self, call, device):
        scores = 8 * call.B * call.n_heads * call.q_len * call.kv_len
        return Price(scores, call.output_bytes, scores, 1.0, 1.0, seconds=self._seconds, dispatch_seconds=0.0)

    def run(self, call, price, q, k, v, *, scale, mask=None, sinks=None):
        return self._out(call, q, k, v, scale)


def no_window(call, q, k, v, scale):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")


def a_little_off(call, q, k, v, scale):
    return 1.001 * no_window(call, q, k, v, scale)


def no_lengths(call, q, k, v, scale):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)


BLIND = Backend("blind", 1e3, lambda call: "" if call.mask == "window" else "windows only", no_window)
SLOPPY = Backend("sloppy", 1e3, lambda call: "" if call.mask == "causal" else "causal only", a_little_off)
FORGETFUL = Backend("forgetful", 0.0, lambda call: "" if call.mask == "key_padding" else "padding only", no_lengths)


def pins_blind(layer, call):
    return "blind" if call.mask == "window" and call.q_len == call.kv_len == 24 else None


class CountsFromTheFirst(Toy):
    def positions(self, ids, ctx):
        return ctx.positions[:, :1] + mx.arange(ids.shape[1])


# Batches.


class MixesRows(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x - 0.2 * x.mean(axis=0, keepdims=True)


class KeepsPositions(Toy):
    def positions(self, ids, ctx):
        self._kept = ctx.positions
        return ctx.positions


class LooksAtFreeMemory(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x * 1.001 if mx.get_active_memory() > 64 << 20 else x


class ReadsValues(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x if x.max().item() < 1e9 else x * 0


# Steps and caches.


class CountsFromZero(Toy):
    def positions(self, ids, ctx):
        return mx.broadcast_to(mx.arange(ids.shape[1]), ids.shape)


class TreatsOneTokenApart(Toy):
    def blocks(self, x, ctx):
        return super().blocks(x * 2 if x.shape[1] == 1 else x, ctx)


class LeavesEarly(Toy):
    def blocks(self, x, ctx):
        for layer in self.layers[:1] if x.shape[1] <= 2 else self.layers:
            x = layer(x, ctx)
        return x


def rounds_when_it_grows(layer, shape, limits):
    return KVAllocation("growing", 256, limits.max_context, bits=4, group_size=32) if shape.L > 256 else None


def boundless(layer, limits):
    return KVAllocation("growing", 256, 10 * limits.max_context) if layer.reach[0] is None else None


def changing_wish():
    asked = Counter()

    def archport_prefill_chunk(shape):
        asked[shape] += 1
        return (256, 192, 128, 96, 64, 48, 32)[min(asked[shape], 7) - 1]

    return archport_prefill_chunk


# Numbers and memory.


class Overflows(Toy):
    def enter(self, ids, ctx):
        return super().enter(ids, ctx) * 1e6 / 1e6


class MakesAMask(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        a = x[..., :32].transpose(0, 2, 1)
        return x + 0 * (a[..., None] * a[:, :, None]).sum(axis=(1, 3))[..., None]


# Texts.


def always_the_mean(spec):
    return EmbeddingHead(pooling=("mean",), source="a guess")


def own_prompts(spec):
    return TextInputs(prompts={"query": "Q: "}, query_prompt="query")


class ShortTable(Toy):
    def enter(self, ids, ctx):
        if ids.shape[1] > 500:
            raise ValueError("position out of range")
        return super().enter(ids, ctx)


class SmallVocabulary(Toy):
    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.embed = nn.Embedding(spec.vocab_size - 7, spec.hidden_size)

    def enter(self, ids, ctx):
        return super().enter(mx.minimum(ids, self.embed.weight.shape[0] - 1), ctx)


# Real weights.


class Noisy(Toy):
    def enter(self, ids, ctx):
        x = super().enter(ids, ctx)
        return x + 1e-5 * mx.random.normal(x.shape)


class AnotherNorm(Toy):
    def __call__(self, ids, ctx):
        return super().__call__(ids, ctx) + 0.5


SAME_FILES = "packed conversions are saved under the module's own names too"

LIARS = [
    Liar(
        "hooks_match_the_contract",
        "a hook's name is misspelt",
        plugin("hook", archport_prefil_chunk=archport_prefil_chunk),
        "archport_prefil_chunk",
    ),
    Liar("import_is_cheap", "it imports MLX at the top of its module", imports_mlx, "loads mlx"),
    Liar(
        "spec_matches_config",
        "it declares, and builds, more KV heads than the config states",
        plugin("config", archport_claim=spec_with(more_heads)),
        "num_key_value_heads (layer 0)=2",
    ),
    Liar(
        "example_is_small",
        "its example has one layer, so nothing between layers is tested",
        plugin("small", examples=[config_with(num_hidden_layers=1, layer_types=["full_attention"])]),
        "1 layers (2 to 8)",
    ),
    Liar(
        "claims_its_own_and_no_other",
        "it claims an architecture that nobody knows",
        plugin("claims", archport_claim=claims_strangers),
        "AcmeForCausalLM",
    ),
    Liar(
        "flags_change_the_semantics",
        "it overlooks that a checkpoint is bidirectional",
        plugin("flags", archport_claim=ignores_flags),
        "still declared causal",
    ),
    Liar(
        "policy_hooks_answer_legally",
        "it pins a ring for a layer that sees all tokens",
        plugin("policy", archport_kv_allocation=ring_for_all),
        "a ring keeps only the last tokens",
    ),
    Liar(
        "published_checkpoint_loads",
        "sanitize doubles the norms of published checkpoints",
        plugin("published", trunk=DoublesNorms),
        "`sanitize` changes values",
    ),
    Liar(
        "spec_matches_weights",
        "its layers attend under each other's index",
        plugin("indices", trunk=SwapsIndices, examples=[config_with(layer_types=["full_attention"] * 2)]),
        "called for layers [1, 0]",
    ),
    Liar(
        "saved_model_loads_equal",
        "sanitize adds one to norms that are already its own",
        plugin("saved", trunk=AddsOneToNorms),
        "not idempotent",
        also={"quantised_round_trip": SAME_FILES},
    ),
    Liar(
        "damaged_checkpoint_is_refused",
        "sanitize fills missing tensors with zeros",
        plugin("damaged", trunk=FillsIn),
        "missing loads without an error",
    ),
    Liar(
        "quantised_round_trip",
        "it reads the embedding's weight instead of asking the embedding",
        plugin("packed", trunk=ReadsWeight),
        "8 bits, packed",
    ),
    Liar(
        "declared_mask_is_observed",
        "it is declared bidirectional, and drops what attention returns",
        plugin("deaf", trunk=Deaf, examples=[ENCODER]),
        "deaf to it",
    ),
    Liar(
        "declared_mask_is_observed",
        "it is declared causal, and adds the next token's embedding",
        plugin("ahead", trunk=LooksAhead),
        "moved output",
        also={
            "row_alone_equals_row_in_batch": "the last token of a row sees the padding behind it",
            "packed_documents_do_not_leak": "the last token of a document sees the next document",
            "chunked_prefill_equals_whole": "the last token of a chunk can't see the next chunk",
            "decode_equals_full_forward": "a decoded token has no next token",
            "growing_kv_keeps_its_contents": "it is run in chunks",
        },
    ),
    Liar(
        "each_layer_sees_its_reach",
        "it pins a backend that forgets the window",
        plugin("reach", archport_sdpa_backends=lambda: [BLIND], archport_sdpa_backend=pins_blind),
        "declared causal with reach (5, 0), but key",
        also={"backends_agree": "the same backend, asked without the pin"},
    ),
    Liar(
        "backends_agree",
        "it brings a backend that is a thousandth off",
        plugin("backends", archport_sdpa_backends=lambda: [SLOPPY]),
        "backend 'sloppy' differs by 0.001",
    ),
    Liar(
        "mask_policies_agree",
        "it brings a fast backend that ignores the lengths of rows",
        plugin("policies", archport_sdpa_backends=lambda: [FORGETFUL]),
        "policy 'key_padding' on backend 'forgetful'",
    ),
    Liar(
        "packed_documents_do_not_leak",
        "it counts positions from the first token of a row",
        plugin("counts", trunk=CountsFromTheFirst),
        "document 1",
    ),
    Liar(
        "row_alone_equals_row_in_batch",
        "it subtracts the mean over the batch",
        plugin("mixes", trunk=MixesRows),
        "in a batch of",
    ),
    Liar(
        "no_state_between_calls",
        "it keeps the positions of the last call on the module",
        plugin("state", trunk=KeepsPositions),
        "holds new arrays",
    ),
    Liar(
        "deterministic",
        "it computes something else when much memory is in use",
        plugin("memory", trunk=LooksAtFreeMemory),
        "MiB taken by others",
    ),
    Liar(
        "compile_safe",
        "it reads a value in the middle of a pass",
        plugin("item", trunk=ReadsValues),
        "compiling a pass",
    ),
    Liar(
        "chunked_prefill_equals_whole",
        "it counts positions from zero in every step",
        plugin("zero", trunk=CountsFromZero),
        "in chunks of 7",
        also={
            "decode_equals_full_forward": "a decoded token is a step behind position 0 as well",
            "growing_kv_keeps_its_contents": "it is run in chunks",
            "packed_documents_do_not_leak": "a packed document starts behind the row's position 0",
        },
    ),
    Liar(
        "decode_equals_full_forward",
        "it takes a single token for something special",
        plugin("one", trunk=TreatsOneTokenApart),
        "decoded behind",
        also={"row_alone_equals_row_in_batch": "a row of one token looks like a decoded one"},
    ),
    Liar(
        "kv_allocated_equals_kv_planned",
        "it leaves after the first layer when a step is short",
        plugin("early", trunk=LeavesEarly),
        "bytes of KV, planned were",
        also={
            "decode_equals_full_forward": "a decoded token is a short step",
            "row_alone_equals_row_in_batch": "a row of one token is short alone and long in a batch",
        },
    ),
    Liar(
        "growing_kv_keeps_its_contents",
        "it packs caches to 4 bits once they grow",
        plugin("grows", archport_kv_allocation=rounds_when_it_grows),
        "grown from 256 differ",
    ),
    Liar(
        "ceiling_refuses_before_allocation",
        "it pins a ceiling of ten times the context",
        plugin("ceiling", archport_kv_allocation=boundless),
        "caches admit 513 tokens",
    ),
    Liar(
        "chunk_wish_is_an_upper_bound",
        "its wish for a chunk shrinks whenever it is asked",
        plugin("wish", archport_prefill_chunk=changing_wish()),
        "the hook answers",
        also={
            "policy_hooks_answer_legally": "the same hook answers differently when asked again",
            "deterministic": "the same request is planned with another wish",
        },
    ),
    Liar(
        "half_precision_is_finite",
        "its embeddings overflow in float16",
        plugin("overflow", trunk=Overflows),
        "float16: row 0",
    ),
    Liar(
        "peak_is_predicted",
        "it makes an array of every token against every token",
        plugin("mask", trunk=MakesAMask),
        "the plan predicts",
    ),
    Liar(
        "pooling_is_as_declared",
        "its head is the mean, whatever is stored with the weights",
        plugin("pooling", archport_head=always_the_mean),
        "the checkpoint stores cls pooling",
    ),
    Liar(
        "prompts_are_as_declared",
        "its prompts hide those that are stored with the weights",
        plugin("prompts", archport_inputs=own_prompts),
        "the checkpoint stores the prompt query='find: '",
    ),
    Liar(
        "over_long_input_is_refused",
        "its table ends before the declared positions do",
        plugin("long", trunk=ShortTable),
        "position out of range",
    ),
    Liar(
        "malformed_input_is_refused",
        "its embedding has fewer rows than the declared vocabulary",
        plugin("vocabulary", trunk=SmallVocabulary),
        "the largest embedding has 192 rows",
        also={"spec_matches_weights": "the same table, compared with the spec"},
    ),
    Liar(
        "golden_vectors_repeat", "it adds noise", plugin("noise", trunk=Noisy), "embedded again differ", tier="golden"
    ),
    Liar(
        "golden_batch_invariance",
        "it subtracts the mean over the batch",
        plugin("mixes_golden", trunk=MixesRows),
        "in a batch of 4",
        also={"golden_vectors_match": "stored vectors came from a batch"},
        tier="golden",
    ),
    Liar(
        "golden_vectors_match",
        "it adds a constant behind the final norm",
        plugin("norm", trunk=AnotherNorm),
        "with its stored vector",
        tier="golden",
    ),
]
