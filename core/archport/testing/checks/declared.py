"""Contract tier: the module itself, and the spec it declares against the config and the module that it is built as."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from archport.checkpoint import normalise_config
from archport.contract import ArchSpec, AttentionCall, AttentionLayer, RecurrentLayer
from archport.contract.deprecation import ContractDeprecation
from archport.contract.plugins import find_fault
from archport.device.facts import this_device
from archport.testing.check import check, fail, skip, warn
from archport.testing.subject import Subject, Tiny
from archport.testing.weights import shown_by

REQUIRED = ("archport_claim", "archport_build", "archport_examples")
HEAVY = ("mlx", "mlx_lm", "torch", "transformers", "huggingface_hub", "safetensors", "requests", "httpx")

# A call as backends are asked about it, of two documents in one row.
PACKED = AttentionCall(1, 4, 2, 24, 24, 64, 64, "float32", "documents", lengths=(16, 8))

# Imports a module with an audit hook that notes what it loads, opens and connects to, archport itself left out.
_WATCH = """
import json, sys, sysconfig
import archport, archport.contract
heavy, name, file, path = json.loads(sys.argv[1])
sys.path[:0] = path
before = set(sys.modules)
noted = {"files": [], "sockets": []}
code = tuple(filter(None, {*sys.path, *sysconfig.get_paths().values()}))
def watch(event, arguments):
    if event == "open":
        target = arguments[0]
        if isinstance(target, (str, bytes)) and not str(target).endswith((".py", ".pyc", ".so", ".pyd")):
            noted["files"].append(str(target))
    elif event.startswith("socket.") and event != "socket.gethostname":
        noted["sockets"].append(event)
sys.addaudithook(watch)
import time
start = time.perf_counter()
if file:
    import importlib.util
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
else:
    __import__(name)
seconds = time.perf_counter() - start
loaded = sorted({m.partition(".")[0] for m in set(sys.modules) - before} & set(heavy))
print(json.dumps({"seconds": seconds, "loaded": loaded, "files": noted["files"][:3], "sockets": noted["sockets"][:3]}))
"""


@check("contract", hook="archport_claim")
def hooks_match_the_contract(s: Subject) -> str:
    """Every hook has a name and arguments of the contract, and a plugin can claim, build and show examples.

    Rename the function or its arguments to what `archport.contract.hookspecs` says; hooks take no defaults.
    """
    fault = find_fault(s.module)
    if fault:
        fail(fault)
    names = s.plugin.hook_names
    if s.is_guest:
        return f"{len(names)} hooks, for models that other plugins claim"
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        fail(f"{len(names)} hooks, but {', '.join(missing)} is not among them")
    return f"{len(names)} hooks"


@check("contract", hook="archport_build")
def import_is_cheap(s: Subject) -> str:
    """Importing the plugin loads no MLX, no hub client and no transformers, and opens no file or socket.

    Move the import into the hook that needs it: every `archport` command imports every installed plugin.
    """
    file = getattr(s.module, "__file__", None)
    if not file:
        skip("the module was made in memory and has no file to import")
    # An importable name is imported as it is installed; a lone file as a file.
    path = Path(str(file))
    named = s.plugin.target.partition(":")[0]
    alone = path.name != "__init__.py"
    arguments = json.dumps([HEAVY, named if not alone else path.stem, str(path) if alone else "", sys.path])
    done = subprocess.run([sys.executable, "-c", _WATCH, arguments], capture_output=True, text=True, timeout=60)
    if done.returncode:
        fail(f"importing it in a fresh process failed: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    for what, verb in (("loaded", "loads"), ("files", "opens"), ("sockets", "uses")):
        if found[what]:
            fail(f"importing it {verb} {', '.join(found[what])} ({found['seconds'] * 1e3:.0f} ms); expected none")
    return f"{found['seconds'] * 1e3:.0f} ms"


@check("contract", hook="archport_claim")
def nothing_deprecated_is_used(s: Subject) -> str:
    """The plugin uses nothing that is leaving the contract. A warning and no failure: it works until a later release.

    Write what the message says instead; docs/contract-promise.md lists what leaves, and when.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        # Registering a module is when pluggy tells of hooks and arguments that leave.
        hooks = s.plugin.hooks()
        hooks.models()
        for example in () if s.is_guest else hooks.examples():
            config = normalise_config(dict(example.config))
            spec = hooks.claim(config)
            if spec is not None:
                _quietly(partial(hooks.build, spec, config))
        for backend in hooks.sdpa_backends():
            _quietly(partial(backend.reasons_against, PACKED, this_device()))
        for tiny in s.tinies:
            _quietly(lambda tiny=tiny: tiny.hidden(tiny.tokens(tiny.length(8))))
    found: dict[str, str] = {}
    for each in told:
        if issubclass(each.category, ContractDeprecation):
            found.setdefault(str(each.message), f"{Path(each.filename).name}:{each.lineno}")
    if found:
        warn("; ".join(f"{place}: {text}" for text, place in found.items()))
    return f"{len(s.examples) if not s.is_guest else 0} examples claimed, built and run, 0 warnings"


def _quietly(ask: Callable[[], object]) -> None:
    try:
        ask()
    # What a module raises is told by the check of loading it, and what a backend does by those that run it.
    except Exception:
        return


def body(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a normalised config that describes the trunk of text."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


@check("contract", hook="archport_claim")
def spec_matches_config(s: Subject) -> str:
    """The declared layers, heads, widths, reaches and positions are those that the config states and the module has.

    Derive the spec from the config in `archport_claim`; the message names the key and both values. Where a config's
    inner width or head_dim means something else in this architecture, the built module decides.
    """
    compared = sum(_compare(tiny, body(tiny.config)) for tiny in s.tinies)
    return f"{compared} values of {len(s.tinies)} examples"


def _compare(tiny: Tiny, config: Mapping[str, Any]) -> int:
    name, spec, root = tiny.example.name, tiny.spec, tiny.config
    heads = config.get("num_attention_heads")
    pairs: list[tuple[str, object, object]] = [
        ("num_hidden_layers", config.get("num_hidden_layers"), len(spec.layers)),
        ("vocab_size", config.get("vocab_size"), spec.vocab_size),
        ("hidden_size", config.get("hidden_size"), spec.hidden_size),
        ("num_experts", config.get("num_experts") or None, spec.experts.count if spec.experts else 0),
        ("num_experts_per_tok", config.get("num_experts_per_tok"), spec.experts.per_token if spec.experts else None),
        ("causal", root.get("causal") if root.get("causal_stated") else None, spec.semantics == "causal"),
    ]
    pairs = [pair for pair in pairs if pair[0] != "num_experts_per_tok" or spec.experts]
    for index, layer in enumerate(spec.layers):
        if isinstance(layer, AttentionLayer):
            pairs.append((f"num_attention_heads (layer {index})", heads, layer.n_heads))
        if isinstance(layer, AttentionLayer) and layer.kv != "latent":
            # What is compressed serves all heads, however many they are once it is unfolded.
            pairs.append((f"num_key_value_heads (layer {index})", config.get("num_key_value_heads"), layer.n_kv_heads))
    # A list says a number per layer, in a family's own way.
    pairs = [pair for pair in pairs if isinstance(pair[1], int)]
    for key, stated, declared in pairs:
        if stated != declared:
            fail(f"{name}: the config states {key}={stated!r}, the spec declares {declared!r}")
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and spec.max_positions > positions:
        fail(f"{name}: the config has max_position_embeddings={positions}, the spec declares {spec.max_positions}")
    return len(pairs) + isinstance(positions, int) + _compare_widths(tiny, config) + _compare_kinds(name, spec, config)


def _compare_widths(tiny: Tiny, config: Mapping[str, Any]) -> int:
    """Compare the inner width and head_dim with the config, and with the built module, which has the last word."""
    name, spec, heads = tiny.example.name, tiny.spec, config.get("num_attention_heads")
    try:
        # Runs a row, which the engine refuses where heads are not as declared.
        shown, runs = shown_by(tiny), True
    # Whatever a module raises is told by the check of building it.
    except Exception:
        shown, runs = None, False
    inner = shown.inner if shown is not None else {}
    if inner and spec.intermediate_size not in inner:
        built = ", ".join(map(str, inner))
        fail(
            f"{name}: the spec declares intermediate_size={spec.intermediate_size}, the MLP of layer {shown.layer} is "  # pyright: ignore[reportOptionalMemberAccess]
            f"built {built} wide"
        )
    stated = config.get("intermediate_size")
    if isinstance(stated, int) and stated != spec.intermediate_size and not inner:
        fail(f"{name}: the config states intermediate_size={stated}, the spec declares {spec.intermediate_size}")
    widths = {value for key, value in config.items() if "head_dim" in key and isinstance(value, int)}
    if not widths and isinstance(heads, int) and config.get("hidden_size"):
        widths = {config["hidden_size"] // heads}
    for layer in spec.attention_layers:
        if widths and layer.head_dim not in widths and not runs:
            fail(f"{name}: the config states head_dim {sorted(widths)}, the spec declares {layer.head_dim}")
    return isinstance(stated, int) + len(spec.attention_layers)


def _compare_kinds(name: str, spec: ArchSpec, config: Mapping[str, Any]) -> int:
    """Compare each layer's kind and window with `layer_types` and `sliding_window`."""
    kinds, window = config.get("layer_types"), config.get("sliding_window")
    if not isinstance(kinds, list) or len(kinds) != len(spec.layers):
        return 0
    for index, (kind, layer) in enumerate(zip(kinds, spec.layers, strict=True)):
        recurrent = isinstance(layer, RecurrentLayer)
        if recurrent != ("linear" in str(kind) or "recurrent" in str(kind) or "conv" in str(kind)):
            fail(f"{name}: layer_types[{index}] is {kind!r}, the spec declares a {type(layer).__name__}")
        if not isinstance(layer, AttentionLayer):
            continue
        if kind == "full_attention" and layer.is_windowed and layer.semantics == "causal":
            fail(f"{name}: layer_types[{index}] is {kind!r}, the spec declares reach {layer.reach}")
        if kind == "sliding_attention" and isinstance(window, int):
            if not layer.is_windowed:
                fail(f"{name}: layer_types[{index}] is {kind!r} of {window} tokens, the spec declares no window")
            if layer.semantics == "causal" and layer.reach[0] != window - 1:
                fail(
                    f"{name}: layer_types[{index}] slides over {window} tokens, that is a reach of {window - 1}, the "
                    f"spec declares {layer.reach[0]}"
                )
    return len(kinds)


@check("tiny", hook="archport_examples")
def example_is_small(t: Tiny) -> str:
    """An example has two to eight layers and fewer than two million parameters, so that a whole run takes seconds.

    Shrink the example's config; what matters is its structure, not its size.
    """
    count = sum(array.size for array in t.weights.values())
    layers = len(t.spec.layers)
    if not 2 <= layers <= 8 or count > 2_000_000:
        fail(f"{layers} layers (2 to 8), {count:,} parameters (limit 2,000,000)")
    return f"{layers} layers, {count:,} parameters"
