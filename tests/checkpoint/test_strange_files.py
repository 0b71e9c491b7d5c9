"""Whatever a checkpoint's files hold, `load` and first use answer, or raise an archport error that names the file."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest

from archport import engine
from archport.checkpoint import growth
from archport.contract import ArchportError, CheckpointError, PluginError, hookimpl
from archport.contract.plugins import Plugin, discover

from .damage import refusal

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "[U]": 1}, "unk_token": "[U]"}
DOUBLE = {"type": "Replace", "pattern": {"String": "h"}, "content": "hh"}
TABLE = base64.b64encode((4).to_bytes(4, "little") + b"\0" * 4 + b"x" * 5000 + b"\0").decode()
TOKENIZERS: dict[str, dict[str, Any]] = {
    "merge of no token": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}},
    "charsmap cut": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "charsmap of long texts": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": TABLE}},
    "unknown is none": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[U]"}},
    "id beyond int32": {"model": {**WORDS, "vocab": {"a": 0, "[U]": 2**32 - 1}}},
    "id beyond int32 around texts": {
        "post_processor": {"type": "RobertaProcessing", "sep": ["[SEP]", 2**32 - 1], "cls": ["[CLS]", 2]}
    },
    "chain of replacements": {"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 30}},
    "chain of insertions": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"Regex": "(?=.)"}, "content": "ab"}] * 20,
        }
    },
    "long replacement": {"normalizer": {"type": "Replace", "pattern": {"String": "h"}, "content": "x" * 10_000}},
    "chain behind added tokens": {
        "added_tokens": [{"id": 0, "content": "h" * 50, "normalized": True, "special": False, "single_word": False,
                          "lstrip": False, "rstrip": False}],
        "normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 40},
    },
    "bytes of bytes": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}]
            * 30,
        }
    },
    "many steps": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000}},
    "chain of decoders": {"decoder": {"type": "Sequence", "decoders": [DOUBLE] * 30}},
    "text repeated": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 1000,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {},
        }
    },
    "endless expression": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(l+)+$|(.|.)*X"},
                                             "behavior": "Isolated", "invert": False}},
    "long words": {"model": {"type": "WordPiece", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]",
                             "continuing_subword_prefix": "##", "max_input_chars_per_word": 10**9}},
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_corrupt_tokenizer_is_refused_by_name(damaged: Callable[..., Path], case: str):
    # Long enough for an expression that tries everything.
    assert "tokenizer.json" in refusal(damaged("tokenizer.json", **TOKENIZERS[case]), "hel" + "l" * 40 + "o")


def test_stored_padding_is_dropped_before_anything_is_encoded(damaged: Callable[..., Path]):
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "[PAD]"}
    folder = damaged("tokenizer.json", base="generates, untied", padding=padding)
    # A process of its own, because the tokenizer would end it.
    program = f"from archport import engine; print(engine.load({str(folder)!r}).embed('a').size > 0)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout == "True\n", ended.stderr[-2000:]


def test_a_tokenizer_that_panics_in_the_thread_ahead_is_refused_like_one_that_does_not(damaged: Callable[..., Path]):
    split = {"type": "Split", "pattern": {"Regex": "(l+)+$"}, "behavior": "Isolated", "invert": False}
    model = engine.load(damaged("tokenizer.json", pre_tokenizer=split))
    texts = ["hello"] * 700 + ["l" * 40 + "o"]
    with pytest.raises(CheckpointError, match=r"tokenizer.json \(.*retry-limit"):
        model.embed(texts)
    assert model.embed(texts[:3]).shape == (3, 64)


def test_a_chain_is_found_wherever_in_the_file_its_part_stands(intact: Callable[[str], Path]):
    stored = json.loads((intact("bert, learned") / "tokenizer.json").read_text())
    chain = {"type": "Sequence", "normalizers": [DOUBLE] * 30}
    behind = json.dumps({"model": stored.pop("model"), **stored, "normalizer": chain})
    twice = json.dumps({**stored, "normalizer": None})[:-1] + ', "model": {}, "normaliz\\u0065r": '
    twice += json.dumps(chain) + "}"
    for text in (behind, twice):
        with pytest.raises(CheckpointError, match="normalizer makes more than"):
            growth.check_growth("tokenizer.json", text)


def test_published_forms_of_steps_are_within_the_bound():
    steps = [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"},
        {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
        *({"type": kind} for kind in ("NFKD", "StripAccents", "Lowercase", "NFC")),
    ]
    split = [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁"}, {"type": "ByteLevel"}]
    sections = {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "decoder": {"type": "Sequence", "decoders": [steps[1], {"type": "ByteFallback"}, {"type": "Fuse"}]},
    }
    growth.check_growth("tokenizer.json", json.dumps(sections))


def test_an_intact_model_loads_without_another_process(intact: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess.Popen, "__init__", refused)
    monkeypatch.setattr(os, "fork", refused)
    assert engine.load(intact("bert, learned")).embed("hello").shape == (1, 64)


JSON_TEXTS: dict[str, Any] = {
    "5000 digits": (', "x": ' + "1" * 5000 + "}", "x is a number of more than 64 digits"),
    "100 digits": (', "hidden_size": 1' + "0" * 100 + "}", "hidden_size is a number"),
    "900 lists": (', "x": ' + "[" * 900 + "]" * 900 + "}", "x.*deep"),
    "100,000 lists": (', "x": ' + "[" * 100_000 + "}", "not valid JSON"),
    "half a pair": (', "x": {"y": "\\ud800"}}', "x.y holds half of a surrogate pair"),
    "half a pair in a key": (', "\\udfff": 1}', "udfff holds half"),
    "millions of lists": (', "x": [' + "[]," * 1_100_000 + "[]]}", "lists and objects"),
    "millions of numbers": (', "x": [' + "1," * 2_100_000 + "1]}", "2,100,.* entries; expected at most"),
    "millions of names": (', "x": {' + '"a":1,' * 1_100_000 + '"a":1}}', "1,100,.* names; expected at most"),
    "experts beyond the tensors": (', "num_experts": 1000000}', "num_experts=1,000,000"),
    "a number of architectures": (', "architectures": 5}', "architectures=5"),
    "layers as text": (', "num_hidden_layers": "2"}', "num_hidden_layers='2'"),
    "layers beyond all": (', "num_hidden_layers": 1000000000}', "num_hidden_layers"),
    "layers beyond the tensors": (', "num_hidden_layers": 50000}', "num_hidden_layers=50,000"),
    "one layer more": (', "num_hidden_layers": 3}', r"num_hidden_layers=3 \(2 are stored\)"),
    "words beyond all": (', "vocab_size": 1000000000}', "vocab_size=1,000,000,000"),
    "width": (', "intermediate_size": 97}', r"intermediate_size=97 \(96 is stored\)"),
    "a negative width": (', "hidden_size": -64}', "hidden_size=-64"),
    "no number": (', "layer_norm_eps": NaN}', "layer_norm_eps=nan"),
    "labels": (', "id2label": [1]}', r"id2label=\[1\]"),
    "a type as list": (', "model_type": [[1]], "architectures": null}', r"model_type=\[\[1\]\]"),
    "an act as list": (', "hidden_act": ["gelu"]}', "hidden_act="),
}


@pytest.mark.parametrize("case", JSON_TEXTS)
def test_a_strange_config_is_refused_with_its_file_and_key(damaged: Callable[..., Path], case: str):
    import re

    folder, (end, message) = damaged(), JSON_TEXTS[case]
    path = folder / "config.json"
    path.write_text(path.read_text().rstrip()[:-1] + end)
    said = refusal(folder)
    assert "config.json" in said or str(folder) in said
    assert re.search(message, said), said


@pytest.mark.parametrize(
    ("base", "key", "value"),
    [
        ("generates, second", "max_window_layers", "one"),
        ("generates, second", "sliding_window", {}),
        ("experts in the second", "num_experts", [6]),
        ("experts in the second", "mlp_only_layers", 0),
        ("modernbert, windows", "layer_types", [["full_attention"]] * 4),
        ("llama_bidirec, stretched", "rope_scaling", {"rope_type": "llama3", "factor": "8"}),
        ("generates, untied", "rope_parameters", {"rope_type": ["yarn"]}),
        ("dense, one tap", "text_config", 5),
        ("siglip, two", "vision_config", []),
    ],
)
def test_a_value_of_a_wrong_kind_names_its_key_in_every_family(
    damaged: Callable[..., Path], base: str, key: str, value: Any
):
    assert key in refusal(damaged(base=base, **{key: value}))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_another_encoding_is_named(damaged: Callable[..., Path], encoding: str):
    folder = damaged(x="é")
    path = folder / "config.json"
    path.write_bytes(json.dumps(json.loads(path.read_text()), ensure_ascii=False).encode(encoding))
    assert "config.json: can't be read as UTF-8" in refusal(folder)


def test_a_byte_order_mark_is_passed_over(damaged: Callable[..., Path]):
    folder = damaged()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert engine.load(folder).embed("hello").shape == (1, 64)


def test_a_header_in_utf_16_is_refused(damaged: Callable[..., Path]):
    folder = damaged()
    path = folder / "model.safetensors"
    stored = path.read_bytes()
    length = int.from_bytes(stored[:8], "little")
    header = stored[8 : 8 + length].decode().encode("utf-16")
    path.write_bytes(len(header).to_bytes(8, "little") + header + stored[8 + length :])
    assert "model.safetensors" in refusal(folder)


SPECIAL: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "itself": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
    "outside": lambda path: path.symlink_to(path.parents[1] / "outside.json"),
    "password file": lambda path: path.symlink_to("/etc/passwd"),
}
READ = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "modules.json",
        "special_tokens_map.json", "generation_config.json"]  # fmt: skip


@pytest.mark.parametrize("file", READ)
@pytest.mark.parametrize("kind", SPECIAL)
def test_no_file_but_a_regular_one_inside_the_folder_is_read(damaged: Callable[..., Path], kind: str, file: str):
    base = "generates, untied" if file == "generation_config.json" else "bert, learned"
    folder = damaged(base=base)
    (folder.parent / "outside.json").write_text("{}")
    (folder / file).unlink(missing_ok=True)
    SPECIAL[kind](folder / file)
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=file if "tokenizer.json" != file else "tokenizer"):
        engine.load(folder)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("file", ["preprocessor_config.json", "chat_template.json", "nobody_reads.json"])
def test_a_link_to_nowhere_that_nothing_needs_is_passed_over(damaged: Callable[..., Path], file: str):
    folder = damaged()
    (folder / file).symlink_to("gone.json")
    assert engine.load(folder).embed("hello").shape == (1, 64)


def test_a_socket_is_no_file(damaged: Callable[..., Path], tmp_path: Path):
    folder = damaged()
    (folder / "config.json").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        # The path of a socket has little room.
        os.chdir(folder)
        try:
            listening.bind("config.json")
        finally:
            os.chdir(before)
        assert "a socket" in refusal(folder)


def test_links_inside_a_folder_and_inside_a_hub_cache_are_followed(damaged: Callable[..., Path], tmp_path: Path):
    folder = damaged()
    (folder / "config.json").rename(folder / "real.json")
    (folder / "config.json").symlink_to("real.json")
    assert engine.load(folder).embed("hello").shape == (1, 64)
    repository = tmp_path / "models--some--model"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        shutil.copyfile(path, blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert engine.load(snapshot).embed("hello").shape == (1, 64)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "real.json")
    assert "outside the checkpoint" in refusal(snapshot)


def test_a_linked_folder_of_a_module_may_not_leave(damaged: Callable[..., Path], tmp_path: Path):
    modules = [{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]
    folder = damaged("modules.json", json.dumps(modules))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    (folder / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    assert "outside the checkpoint" in refusal(folder)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "a/../../b", "C:\\weights", "x" * 300])
def test_a_weight_map_that_leads_elsewhere_is_refused(damaged: Callable[..., Path], file: str):
    folder = damaged("model.safetensors.index.json", json.dumps({"weight_map": {"a": file}}))
    (folder / "model.safetensors").unlink()
    (folder / "other.safetensors").write_bytes(b"\0" * 16)
    assert "model.safetensors.index.json" in refusal(folder)


@pytest.mark.parametrize(
    ("modes", "widths", "named"),
    [
        (("mean_tokens", "cls_token"), [(64, 8)], r"2_Dense/config\.json: in_features=64, but .* 128 wide"),
        (("mean_tokens",), [(64, 32), (48, 8)], r"3_Dense/config\.json: in_features=48, but rows of 2_Dense are 32"),
        (("mean_tokens", "cls_token"), [(128, 32), (32, 8)], None),
    ],
)
def test_dense_modules_that_do_not_follow_each_other_are_named(damaged, modes, widths, named):
    folder = damaged()
    kinds = ["Transformer", "Pooling", *["Dense"] * len(widths)]
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds) if index)]
    for path, (into, out) in zip(paths[2:], widths, strict=True):
        (folder / path).mkdir()
        settings = {"in_features": into, "out_features": out, "activation_function": "torch.nn.modules.linear.Identity"}
        (folder / path / "config.json").write_text(json.dumps(settings))
        arrays = {"linear.weight": mx.ones((out, into)), "linear.bias": mx.ones((out,))}
        mx.save_safetensors(str(folder / path / "model.safetensors"), arrays)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True for mode in modes}))
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    if named is None:
        assert engine.load(folder).embed("hello").shape == (1, widths[-1][1])
        return
    with pytest.raises(CheckpointError, match=named):
        engine.load(folder)


def test_pickled_weights_are_never_opened(damaged: Callable[..., Path], tmp_path: Path):
    folder = damaged()
    (folder / "model.safetensors").unlink()
    # What torch writes begins so; unpickled it would make a folder.
    (folder / "pytorch_model.bin").write_bytes(b"cos\nmkdir\n(V" + str(tmp_path / "ran").encode() + b"\ntR.")
    assert "pytorch_model.bin" in refusal(folder)
    assert not (tmp_path / "ran").exists()


def test_code_of_a_repository_never_runs(damaged: Callable[..., Path], tmp_path: Path):
    code = {"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config", "AutoTokenizer": ["modeling.T", None]}
    folder = damaged(auto_map=code)
    for name in ("modeling.py", "config.py", "sitecustomize.py", "conftest.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "auto_map": code})
    )
    assert engine.load(folder).embed("hello").shape == (1, 64)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("file", "entries", "key"),
    [
        ("tokenizer_config.json", {"model_input_names": 5}, "model_input_names"),
        ("tokenizer_config.json", {"fast_tokenizer_files": 7}, "fast_tokenizer_files"),
        ("tokenizer_config.json", {"tokenizer_class": ["x"]}, "tokenizer_class"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": 3}}}, "token"),
    ],
)
def test_a_fault_of_another_file_names_that_file_and_its_key(
    damaged: Callable[..., Path], file: str, entries: dict[str, Any], key: str
):
    said = refusal(damaged(file, **entries))
    assert file in said
    assert key in said


def outside_plugin(claim: Callable[[Any], Any], build: Callable[[Any, Any], Any] | None = None) -> Plugin:
    """A plugin in front of the one for BERT, whose hooks may fail."""
    bert = next(plugin for plugin in discover() if plugin.name == "bidirectional").module
    assert bert is not None
    module: Any = ModuleType("archport_outside")

    def archport_claim(config: Any) -> Any:
        claim(config)
        return bert.archport_claim(config)

    def archport_build(spec: Any, config: Any) -> Any:
        return (build or bert.archport_build)(spec, config)

    def archport_examples() -> Any:
        return [each for each in bert.archport_examples() if each.name == "bert, learned positions"]

    for hook in (archport_claim, archport_build, archport_examples):
        setattr(module, hook.__name__, hookimpl(hook))
    return Plugin("outside", "acme", "3", "archport_outside", module)


def causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def test_a_plugin_that_always_fails_is_named(damaged: Callable[..., Path]):
    def fails(*_: Any) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ArchportError, match=r"outside \(acme 3\).*ZeroDivisionError: mine"):
        engine.load(damaged(), plugins=(outside_plugin(fails),))
    with pytest.raises(PluginError, match=r"outside \(acme 3\).*ZeroDivisionError: mine") as refused:
        engine.load(damaged(), plugins=(outside_plugin(lambda config: None, fails),))
    # Its own traceback leads to the line that failed.
    assert causes(refused.value)[-1].args == ("mine",)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"strange": "x"}, r"strange is 'x'"),
        ({"strange": {"deep": "x"}}, "strange.deep is 'x'"),
        ({}, "strange is missing"),
    ],
)
def test_a_file_that_a_sound_plugin_falls_over_is_named_and_not_the_plugin(
    damaged: Callable[..., Path], entry: dict[str, Any], message: str
):
    def claim(config: Any) -> None:
        value = config["strange"] if not entry else config.get("strange", 1)
        _ = 2 // (value.get("deep", 1) if isinstance(value, dict) else value)

    plugin = outside_plugin(claim)
    bert: Any = plugin.module
    stored = bert.archport_examples()[0]

    @hookimpl
    def archport_examples() -> Any:
        return [replace(stored, config={**stored.config, "strange": 2})]

    bert.archport_examples = archport_examples
    with pytest.raises(CheckpointError, match=f"config.json: {message}") as refused:
        engine.load(damaged(**entry), plugins=(plugin,))
    assert "acme" not in str(refused.value)
