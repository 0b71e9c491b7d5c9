"""A converted checkpoint: what it holds, who reads it, what it refuses, and how it goes on after an interrupt."""

from __future__ import annotations

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from archport.contract import InputError
from archport.contract.errors import CheckpointError
from archport.conversion import convert, measure_loss, settings_of, writing
from archport.device.mlx_lm import reused

GOLDENS = Path(__file__).parents[1] / "goldens"
KINDS: dict[str, dict[str, Any]] = {
    **{f"affine{bits}": {"bits": bits, "group_size": 32} for bits in (4, 6, 8)},
    **{mode: {"mode": mode} for mode in ("mxfp4", "mxfp8", "nvfp4")},
}


def tensors(folder: Path) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        found |= mx.load(str(path))  # pyright: ignore[reportOperatorIssue]
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(one: mx.array, other: mx.array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(mx.array_equal(one, other))


@pytest.mark.parametrize("kind", KINDS)
def test_every_matrix_is_what_mlx_quantises_it_to(kind: str, tmp_path: Path):
    source, out = GOLDENS / "qwen3-tied", tmp_path / "out"
    settings = settings_of(**KINDS[kind])
    assert settings.quantization is not None
    made = convert(source, out, settings)
    before, after = tensors(source), tensors(out)
    checked = 0
    for name, dense in before.items():
        path = name.removesuffix(".weight")
        if f"{path}.scales" not in after:
            assert same(after[name], dense), name
            continue
        packing = settings.quantization
        pieces = mx.quantize(dense, group_size=packing.group_size, bits=packing.bits, mode=packing.mode)
        names = [name, f"{path}.scales", f"{path}.biases"][: len(pieces)]
        assert all(same(after[key], piece) for key, piece in zip(names, pieces, strict=True)), name
        checked += 1
    assert checked == made.quantised > 10


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_lm_gives_the_logits_of_its_own_conversion(kind: str, tmp_path: Path):
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    convert(GOLDENS / "qwen3-tied", out, settings_of(**KINDS[kind]))
    load, quantize = reused("utils.load_model"), reused("utils.quantize_model")
    model, config = load(GOLDENS / "qwen3-tied")
    own = {"bits": None, "group_size": None, "mode": "affine"} | KINDS[kind]
    model, config = quantize(model, config, **own)
    theirs.mkdir()
    reused("utils.save_model")(theirs, model, donate_model=True)
    (theirs / "config.json").write_text(json.dumps(config))
    ids = mx.array([[3, 8, 21, 5, 40, 2]])
    assert same(load(out)[0](ids), load(theirs)[0](ids))


def test_a_trunk_without_its_prefix_is_read_by_mlx_lm(tmp_path: Path):
    convert(GOLDENS / "qwen3-embed", tmp_path / "out", settings_of(bits=8, group_size=32))
    reused("utils.load_model")(tmp_path / "out")


@pytest.mark.parametrize("name", ["qwen3-embed", "qwen3-causal-sharded"])
def test_the_output_answers_nearly_as_its_source(name: str, tmp_path: Path):
    convert(GOLDENS / name, tmp_path / "out", settings_of(bits=8, group_size=32))
    loss = measure_loss(GOLDENS / name, tmp_path / "out")
    assert loss.least > 0.999 if loss.kind == "cosine" else abs(loss.after / loss.before - 1) < 0.02


def test_every_file_of_the_pipeline_comes_along(tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(GOLDENS / "qwen3-embed", source)
    more = {
        "2_Dense/model.safetensors": b"weights of a module",
        "prompts/extra.json": b"{}",
        "README.md": b"# a card",
        "chat_template.jinja": b"{{ messages }}",
    }
    for name, content in more.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    convert(source, out, settings_of(bits=4, group_size=32))
    before, after = files(source), files(out)
    kept = {name for name in before if not name.startswith(("model", "pytorch_model")) and name != "config.json"}
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    assert not any(name.endswith((".bin", ".part")) or "archport-convert" in name for name in after)


def test_dtype_casts_what_stays_dense_and_the_config_says_so(tmp_path: Path):
    out = tmp_path / "out"
    convert(GOLDENS / "qwen3-tied", out, settings_of(dtype="bfloat16"))
    before = tensors(GOLDENS / "qwen3-tied")
    assert all(same(array, before[name].astype(mx.bfloat16)) for name, array in tensors(out).items())
    config = json.loads((out / "config.json").read_text())
    assert "bfloat16" in (config.get("dtype"), config.get("torch_dtype"))


def test_what_keep_names_stays_dense(tmp_path: Path):
    out = tmp_path / "out"
    convert(GOLDENS / "qwen3-tied", out, settings_of(bits=4, group_size=32, keep=["*embed_tokens*"]))
    names = set(tensors(out))
    assert "model.embed_tokens.scales" not in names
    assert "model.layers.0.mlp.up_proj.scales" in names


def test_experts_are_stacked_as_mlx_lm_reads_them(tmp_path: Path):
    out = tmp_path / "out"
    convert(GOLDENS / "qwen3-moe", out, settings_of(bits=8, group_size=32, keep=["*down_proj*"]))
    reused("utils.load_model")(out)
    loss = measure_loss(GOLDENS / "qwen3-moe", out)
    assert abs(loss.after / loss.before - 1) < 0.05


def test_widths_that_no_group_divides_are_refused_by_name(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"24 columns are no multiple of 32.*keep="):
        convert(GOLDENS / "qwen3-moe", tmp_path / "out", settings_of(bits=4, group_size=32))
    assert not (tmp_path / "out").exists()


def test_a_matrix_that_mlx_can_not_read_back_is_refused_by_name(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"\(3, 48\) \(its scales are no multiple of 4"):
        convert(GOLDENS / "bert-classify", tmp_path / "out", settings_of(mode="nvfp4"))


def test_a_quantised_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="quantised already"):
        convert(GOLDENS / "qwen3-4bit", tmp_path / "out", settings_of(bits=4))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "nothing to convert"),
        ({"bits": 5}, "expected one of 4, 6, 8"),
        ({"bits": 4, "group_size": 48}, "does not exist in MLX"),
        ({"mode": "mxfp4", "bits": 4}, "fixes bits"),
        ({"mode": "int4"}, "expected one of mxfp4"),
        ({"group_size": 64}, "need bits"),
        ({"dtype": "int8"}, "expected one of"),
        ({"dtype": "float32", "keep": ("*",)}, "nothing is"),
    ],
)
def test_settings_that_mean_nothing_are_refused(asked: dict[str, Any], says: str):
    with pytest.raises(InputError, match=says):
        settings_of(**asked)


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"keep='\*router\*' matches none"):
        convert(GOLDENS / "qwen3-tied", tmp_path / "out", settings_of(bits=4, group_size=32, keep=["*router*"]))


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        convert(GOLDENS / "qwen3-tied", tmp_path, settings_of(bits=4, group_size=32))
    assert files(tmp_path) == {"notes.txt": b"mine"}


def test_an_output_inside_its_source_is_refused(tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(GOLDENS / "qwen3-tied", source)
    for place, where in ((source, "the checkpoint itself"), (source / "deep" / "out", "inside the checkpoint")):
        with pytest.raises(InputError, match=where):
            convert(source, place, settings_of(bits=4, group_size=32))
    assert not (source / "deep").exists()


@pytest.mark.parametrize("stop", [1, 9, 20])
@pytest.mark.parametrize("name", ["qwen3-tied", "qwen3-causal-sharded"])
def test_a_conversion_goes_on_to_the_same_bytes(name: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings, whole, out = settings_of(bits=4, group_size=32), tmp_path / "whole", tmp_path / "out"
    convert(GOLDENS / name, whole, settings)
    monkeypatch.setattr(writing, "_NOTED", 1)

    class Stopped(Exception):
        pass

    def stopping(written: int, _: int) -> None:
        if written >= stop:
            raise Stopped

    with pytest.raises(Stopped):
        convert(GOLDENS / name, out, settings, progress=stopping)
    assert not (out / "config.json").exists()
    with pytest.raises(InputError, match="another conversion"):
        convert(GOLDENS / name, out, settings_of(bits=8, group_size=32))
    assert convert(GOLDENS / name, out, settings).resumed >= stop
    assert files(out) == files(whole)


def made(folder: Path, *, hidden: int, layers: int, vocabulary: int, shards: int = 1) -> Path:
    """A random Qwen3 checkpoint in bfloat16, written tensor by tensor."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        from convert_memory import write_checkpoint
    finally:
        sys.path.pop(0)
    write_checkpoint(folder, hidden=hidden, layers=layers, vocabulary=vocabulary, shards=shards)
    return folder


COMMAND = "from archport.cli import main; main()"


def begun(source: Path, out: Path) -> subprocess.Popen[bytes]:
    asked = [sys.executable, "-c", COMMAND, "convert", "-m", str(source), "-o", str(out), "--bits", "4", "--no-measure"]
    return subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_a_killed_process_is_gone_on_from(tmp_path: Path):
    source = made(tmp_path / "source", hidden=512, layers=2, vocabulary=60_000, shards=3)
    settings, out = settings_of(bits=4), tmp_path / "out"
    convert(source, tmp_path / "whole", settings)
    process = begun(source, out)
    while process.poll() is None and not list(out.glob("model*")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    convert(source, out, settings)
    assert files(out) == files(tmp_path / "whole")


def test_a_full_disk_is_told_with_the_file_and_gone_on_from(tmp_path: Path):
    source, settings, out = GOLDENS / "qwen3-causal-sharded", settings_of(bits=4, group_size=32), tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(OSError, match="File too large") as full:
            convert(source, out, settings)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.value.filename == str(out / "model-00001-of-00003.safetensors.part")
    convert(source, out, settings)
    convert(source, tmp_path / "whole", settings)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
@pytest.mark.parametrize("shards", [1, pytest.param(4, marks=pytest.mark.truth)])
def test_memory_does_not_grow_with_the_largest_tensor(shards: int, tmp_path: Path):
    source = made(tmp_path / "source", hidden=512, layers=1, vocabulary=151_936, shards=shards)
    process, peak = begun(source, tmp_path / "out"), 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        if found := re.search(r"RssAnon:\s+(\d+) kB", status):
            peak = max(peak, int(found[1]) << 10)
        time.sleep(0.005)
    assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
    assert 0 < peak < 250 << 20, f"{peak / 2**20:.0f} MiB for a tensor of 156 MB"


def test_the_command_prints_what_it_wrote_and_what_it_cost(tmp_path: Path):
    texts = tmp_path / "texts.txt"
    texts.write_text("one text\nand another one\n")
    asked = ["convert", "-m", str(GOLDENS / "qwen3-embed"), "-o", str(tmp_path / "out"), "--bits", "8"]
    asked += ["--group-size", "32", "--texts", str(texts), "--json"]
    run = subprocess.run([sys.executable, "-c", COMMAND, *asked], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    assert told["quantised"] > 10
    assert told["loss"]["texts"] == 2
    assert 0.999 < told["loss"]["least"] <= told["loss"]["mean"] <= 1.0 + 1e-6
