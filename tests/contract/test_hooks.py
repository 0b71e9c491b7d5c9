"""The facade: answers are checked, culprits are named, overrides come first and defaults last."""

import types

import pytest

from archport.contract import (
    ArchSpec,
    AttentionLayer,
    BatchShape,
    DeviceFacts,
    EmbeddingHead,
    Limits,
    MaskPolicy,
    PluginError,
    TextInputs,
    hookimpl,
    hookspecs,
)
from archport.contract.attention import AttentionCall
from archport.contract.hooks import Hooks, Speaker

LAYER = AttentionLayer("bidirectional", 4, 2, 32)
SPEC = ArchSpec(
    arch="toy",
    tasks=("embed",),
    layers=(LAYER,),
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    max_positions=512,
)
SHAPE = BatchShape(2, 10)
DEVICE = DeviceFacts("test", "cpu", "x86_64", 1 << 30)
CALL = AttentionCall(1, 4, 2, 8, 8, 32, 32, "float32")


def speaker(label, *functions):
    module = types.ModuleType(label.replace(" ", "_"))
    for function in functions:
        setattr(module, function.__name__, hookimpl(function))
    return Speaker(label, module)


def answer(name, value, parameters="spec"):
    """A hook function that returns `value`."""
    scope = {"value": value}
    exec(f"def {name}({parameters}):\n    return value", scope)
    return scope[name]


ASK = {
    "archport_models": lambda hooks: hooks.models(),
    "archport_claim": lambda hooks: hooks.claim({}),
    "archport_examples": lambda hooks: hooks.examples(),
    "archport_build": lambda hooks: hooks.build(SPEC, {}),
    "archport_mask_policy": lambda hooks: hooks.mask_policy(SPEC, LAYER, SHAPE),
    "archport_kv_allocation": lambda hooks: hooks.kv_allocation(SPEC, LAYER, SHAPE, Limits(512, 1 << 30)),
    "archport_prefill_chunk": lambda hooks: hooks.prefill_chunk(SPEC, SHAPE, DEVICE),
    "archport_sdpa_backend": lambda hooks: hooks.sdpa_backend(SPEC, LAYER, CALL, DEVICE),
    "archport_sdpa_backends": lambda hooks: hooks.sdpa_backends(),
    "archport_head": lambda hooks: hooks.head(SPEC, None),
    "archport_inputs": lambda hooks: hooks.inputs(SPEC, None),
}


def test_every_hook_of_the_contract_has_a_typed_method_and_a_full_docstring():
    specified = {name for name in vars(hookspecs) if name.startswith("archport_")}
    assert specified == set(ASK)
    assert all(len(getattr(hookspecs, name).__doc__ or "") > 60 for name in specified)


@pytest.mark.parametrize(
    ("hook", "wrong", "expected"),
    [
        ("archport_models", ["a"], "a mapping"),
        ("archport_models", {"a": 1}, "strings on both sides"),
        ("archport_claim", {"arch": "toy"}, "an ArchSpec or None"),
        ("archport_examples", 3, "a sequence of Example"),
        ("archport_examples", [{}], "a sequence of Example"),
        ("archport_build", object(), "an mlx.nn.Module"),
        ("archport_mask_policy", "none", "a MaskPolicy or None"),
        ("archport_kv_allocation", 4096, "a KVAllocation or None"),
        ("archport_prefill_chunk", 0, "an int >= 1"),
        ("archport_prefill_chunk", -5, "an int >= 1"),
        ("archport_prefill_chunk", True, "an int >= 1"),
        ("archport_prefill_chunk", 2.5, "an int >= 1"),
        ("archport_sdpa_backend", 1, "the name of a backend or None"),
        ("archport_sdpa_backends", [object()], "an object that has name, reasons_against, price, run"),
        ("archport_head", "mean", "one of EmbeddingHead or "),
        ("archport_inputs", {}, "a TextInputs or None"),
    ],
)
def test_a_wrong_answer_names_the_hook_the_plugin_and_what_was_expected(hook, wrong, expected):
    parameters = {"archport_claim": "config"}.get(hook, "spec")
    collecting = hook in ("archport_models", "archport_examples", "archport_sdpa_backends")
    hooks = Hooks([speaker("toy (archport-acme 0.3)", answer(hook, wrong, "" if collecting else parameters))])
    with pytest.raises(PluginError) as refused:
        ASK[hook](hooks)
    text = str(refused.value)
    assert text.startswith(f"toy (archport-acme 0.3): {hook} returned ")
    assert expected in text


def test_a_causal_pin_for_a_bidirectional_layer_is_an_error_naming_the_plugin():
    hooks = Hooks([speaker("toy (acme 1)", answer("archport_mask_policy", MaskPolicy("causal")))])
    with pytest.raises(PluginError, match=r"toy \(acme 1\).*pins 'causal' for a layer declared bidirectional"):
        hooks.mask_policy(SPEC, LAYER, SHAPE)


def test_an_exception_in_a_hook_names_the_hook_and_the_plugin():
    def archport_prefill_chunk(spec):
        raise ZeroDivisionError("by zero")

    with pytest.raises(PluginError, match=r"hook archport_prefill_chunk of plugin toy \(acme 1\) raised ZeroDivision"):
        Hooks([speaker("toy (acme 1)", archport_prefill_chunk)]).prefill_chunk(SPEC, SHAPE, DEVICE)


def test_an_override_is_asked_before_the_plugin_and_the_plugin_before_a_default():
    default = types.ModuleType("default")
    default.archport_inputs = hookimpl(trylast=True)(answer("archport_inputs", TextInputs(max_tokens=1)))
    plugin = speaker("plugin", answer("archport_inputs", TextInputs(max_tokens=2)))
    override = speaker("override", answer("archport_inputs", TextInputs(max_tokens=3)))
    base = Speaker("core defaults", default)
    assert Hooks([base]).inputs(SPEC, None).max_tokens == 1
    assert Hooks([base, plugin]).inputs(SPEC, None).max_tokens == 2
    assert Hooks([plugin, base]).inputs(SPEC, None).max_tokens == 2
    assert Hooks([base, plugin, override]).inputs(SPEC, None).max_tokens == 3


def test_none_passes_the_question_on():
    default = types.ModuleType("default")
    default.archport_head = hookimpl(trylast=True)(answer("archport_head", EmbeddingHead(("mean",))))
    plugin = speaker("plugin", answer("archport_head", None))
    assert Hooks([Speaker("core defaults", default), plugin]).head(SPEC, None).pooling == ("mean",)


def test_a_plugin_without_build_is_named():
    with pytest.raises(PluginError, match="toy claims 'toy' but does not implement archport_build"):
        Hooks([speaker("toy", answer("archport_models", {}, ""))]).build(SPEC, {})


def test_trace_prints_every_hook_call(monkeypatch, capsys):
    monkeypatch.setenv("ARCHPORT_TRACE", "1")
    Hooks([speaker("toy", answer("archport_prefill_chunk", 256))]).prefill_chunk(SPEC, SHAPE, DEVICE)
    assert "archport_prefill_chunk" in capsys.readouterr().err


def test_the_contract_imports_no_mlx():
    import subprocess
    import sys

    code = (
        "import archport.contract.plugins, sys; print([m for m in sys.modules if m.split('.')[0] in ('mlx', 'numpy')])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
