"""On two GPUs of one host: a corpus on both against one, and one model split over both against one, in one lease.

    python benchmarks/two_gpus.py [--seconds 200] [--only split,corpus,kill] [--tiny]

Split: Qwen3 at the 14B shape in bfloat16, random weights made on the GPU by their names, so that one device and both
ranks have the same; hidden states, prefill of 8 x 2,048 tokens, decoding of 8 rows, where a step's time goes, peaks
against plans. Corpus: `archport batch`'s own job at the shape of Qwen3-Embedding-0.6B, a process a device, each warmed
before all begin. Kill: one process of `archport batch --devices 2` is killed, and the job resumed. A JSON line per
figure, raw seconds among them; what no time is left for is said to be skipped. With --tiny two CPU processes and the
ring backend stand in. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import archport

# isort: split
import argparse
import importlib.metadata
import json
import logging
import os
import platform
import random
import runpy
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from archport import engine, loading
from archport.bulk import Job, read, run
from archport.bulk.devices import DEVICE, this_one
from archport.bulk.inputs import Inputs
from archport.checkpoint import normalise_config
from archport.checkpoint.cutting import cut_array, cut_of
from archport.contract.plugins import claim, discover
from archport.device.ranks import Ranks, joined
from archport.generating import decode

HERE = Path(__file__).resolve()
BARS = {"corpus": 1.9, "cosine": 0.9999, "prefill": 1.6, "decode": 1.3}
ROWS, LENGTH, STEPS = 8, 2048, 64
SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 5120,
    "num_hidden_layers": 40,
    "intermediate_size": 17408,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}
TINY = {"hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 256, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 1000, "torch_dtype": "float32"}  # fmt: skip


def tell(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def write_shape(folder: Path, config: Mapping[str, Any]) -> None:
    """A checkpoint whose file has every tensor in its header, and holes where they would lie."""
    folder.mkdir()
    size = 4 if config["torch_dtype"] == "float32" else 2
    trunk = built(config)
    header: dict[str, Any] = {}
    at = 0
    for name, array in parameters_of(trunk):
        kind = "F32" if size == 4 else "BF16"
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.size * size]}
        at += array.size * size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    runpy.run_path(str(HERE.with_name("pool_gpu.py")))["write_tokenizer"](folder, dict(config))
    # A generator, not an embedding pipeline.
    (folder / "modules.json").unlink()


def built(config: Mapping[str, Any]) -> Any:
    """The trunk of a config, whose tensors are not made yet."""
    normal = normalise_config(dict(config))
    plugin, spec = claim(normal, discover())
    assert plugin.module is not None
    return plugin.module.archport_build(spec, normal)


def parameters_of(module: Any) -> list[tuple[str, mx.array]]:
    return cast("list[tuple[str, mx.array]]", tree_flatten(module.parameters()))


def fill(checkpoint: Any, module: Any, *, cuts: Any = None, dtype: str, **_: Any) -> None:
    """Stands in for `load_weights`: every tensor from the normal distribution, by its name, and cut as it would be."""
    layers = checkpoint.config["num_hidden_layers"]
    kind = getattr(mx, "bfloat16" if dtype == "checkpoint" else dtype)
    for name, array in parameters_of(module):
        # Rows that end in a sum are smaller, as trained models begin, or forty layers would drown the first.
        scale = 0.02 / (2 * layers) ** 0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
        key = mx.random.key(zlib.crc32(name.encode()))
        whole = (
            mx.ones(array.shape, kind) if array.ndim == 1 else (mx.random.normal(array.shape, kind, key=key) * scale)
        )
        cut = cut_of(name, cuts) if cuts else None
        kept = whole if cut is None else cut_array(whole, name, cut, checkpoint.folder, None)
        mx.eval(kept)
        module.load_weights([(name, kept)], strict=False)
        del whole, kept
    mx.clear_cache()
    module.eval()


class Peaks(logging.Handler):
    """Collects what batches took beside what their plans said."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        reading = getattr(record, "reading", None)
        if reading is not None:
            self.found.append({"stage": reading.stage, "measured": reading.measured, "planned": reading.planned})


def timed(call: Callable[[], Any], runs: int) -> list[float]:
    found: list[float] = []
    for _ in range(runs):
        mx.synchronize()
        begin = time.perf_counter()
        call()
        mx.synchronize()
        found.append(round(time.perf_counter() - begin, 5))
    return found


def split_worker(folder: Path, out: Path, *, alone: bool, length: int) -> None:
    """One device, or one rank: the same calls, its figures into a file, hidden states from the device alone."""
    loading.load_weights = fill
    begin = time.perf_counter()
    model = engine.load(folder, tensor_parallel=not alone, prefix_cache=0)
    ranks = joined()
    rank = 0 if ranks is None else ranks.rank.number
    who = "alone" if ranks is None else f"rank{rank}"
    figures: dict[str, Any] = {"load_s": round(time.perf_counter() - begin, 2), "device": model.device.name}
    figures["weights"] = model.plan([length]).bytes["weights"]
    draw = np.random.default_rng(0)
    rows = draw.integers(2, model.spec.vocab_size, (ROWS, length))

    def generate(tokens: int) -> Any:
        return model.generate([row.tolist() for row in rows], max_tokens=tokens, min_tokens=tokens)

    hidden = np.array(model.forward(rows[:, : length // 2]).astype(mx.float32))
    if alone:
        np.save(out / "hidden.npy", hidden[:, ::7])
    elif rank == 0 and (out / "hidden.npy").exists():
        one, two = np.load(out / "hidden.npy"), hidden[:, ::7]
        cosines = (one * two).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(two, axis=-1)
        figures["cosine_least"], figures["cosine_median"] = float(cosines.min()), float(np.median(cosines))
        figures["cosine_last_tokens"] = cosines[:, -1].tolist()
    del hidden
    generate(2)
    figures["prefill_s"] = timed(lambda: generate(1), 4)
    for name, compiles in (("compiled", decode.compiles), ("plain", lambda kind: False)):
        decode.compiles = compiles
        try:
            generate(24)
            figures[f"decode_{name}_s"] = timed(lambda: generate(1 + STEPS), 2)
        # What MLX can't compile with collectives inside is part of the answer.
        except Exception as error:
            figures[f"decode_{name}_error"] = f"{type(error).__name__}: {error}"[:300]
            if ranks is not None:
                break
    (out / f"{who}.json").write_text(json.dumps(figures))
    if ranks is not None:
        figures |= step_parts(model, ranks, rows)
        (out / f"{who}.json").write_text(json.dumps(figures))
    figures["peaks"] = peaks_of(generate)
    (out / f"{who}.json").write_text(json.dumps(figures))


def step_parts(model: engine.Model, ranks: Ranks, rows: np.ndarray) -> dict[str, Any]:
    """Where a step of decoding spends its time: collectives alone, and a step without any."""
    layers, D = len(model.spec.layers), model.spec.hidden_size
    x = mx.zeros((ROWS, 1, D), mx.bfloat16 if model.device.kind == "cuda" else mx.float32)

    def sums() -> None:
        y = x
        for _ in range(2 * layers + 1):
            y = ranks.sum(y)
        mx.eval(y)

    def gather() -> None:
        mx.eval(ranks.gather(mx.zeros((ROWS, 1, model.spec.vocab_size // ranks.rank.count), x.dtype)))

    found: dict[str, Any] = {"sums_of_a_step_s": timed(sums, 6), "gather_of_a_step_s": timed(gather, 6)}
    whole = Ranks.sum
    # Wrong answers, at the time that a rank's own work takes.
    Ranks.sum = lambda self, x: x
    try:
        model.generate([row.tolist() for row in rows], max_tokens=24, min_tokens=24)
        short = [row[:64].tolist() for row in rows]
        read_s, all_s = (
            min(timed(lambda n=n: model.generate(short, max_tokens=n, min_tokens=n), 2)) for n in (1, 1 + STEPS)
        )
        found["step_without_sums_s"] = round((all_s - read_s) / STEPS, 6)
    finally:
        Ranks.sum = whole
    return found


def peaks_of(generate: Callable[[int], Any]) -> list[dict[str, Any]]:
    """Measured and planned bytes of a prefill and a few steps."""
    peaks = Peaks()
    logging.getLogger("archport").addHandler(peaks)
    os.environ["ARCHPORT_VERIFY_MEMORY"] = "1"
    generate(16)
    os.environ.pop("ARCHPORT_VERIFY_MEMORY")
    return peaks.found


def corpus_worker(folder: Path, out: Path, source: Path, dtype: str) -> None:
    """One process of a job: loads, warms up, waits for the others, and makes its parts."""
    model = engine.load(folder, dtype=dtype)
    texts = [json.loads(line)["text"] for line in source.open()][: 16_384 if dtype != "float32" else 20]
    model.embed(texts)
    index, count = this_one()
    (out.parent / f"{out.name}.ready{index}").touch()
    while len(list(out.parent.glob(f"{out.name}.ready*"))) < count:
        time.sleep(0.01)
    begin = time.time()
    job = Job(out=out, output_format="npy", part_rows=4096 if dtype != "float32" else 20, device=(index, count))
    run(model, Inputs([str(source)]), job)
    (out.parent / f"{out.name}.time{index}").write_text(json.dumps([begin, time.time()]))


def rank_environments(tiny: bool) -> list[dict[str, str]]:
    """Of two ranks: NCCL, a GPU each; or two processes with the ring backend."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    if tiny:
        hosts = Path(tempfile.mkdtemp()) / "hosts.json"
        hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in ports]))
        return [{"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts)} for rank in range(2)]
    common = {"NCCL_HOST_IP": "127.0.0.1", "NCCL_PORT": str(ports[0]), "MLX_WORLD_SIZE": "2", "NCCL_NVLS_ENABLE": "0"}
    return [{**common, "MLX_RANK": str(rank), "CUDA_VISIBLE_DEVICES": str(rank)} for rank in range(2)]


def workers(environments: Sequence[Mapping[str, str]], arguments: Sequence[str], seconds: float) -> str:
    """Run this script in several processes at once; "" or how they ended."""
    logs = [Path(tempfile.mkstemp(suffix=".log")[1]) for _ in environments]
    command = [sys.executable, str(HERE), *arguments]
    processes = [
        subprocess.Popen(command, env={**os.environ, **each}, stdout=log.open("wb"), stderr=subprocess.STDOUT)
        for each, log in zip(environments, logs, strict=True)
    ]
    end, problem = time.monotonic() + seconds, ""
    while any(process.poll() is None for process in processes):
        time.sleep(0.05)
        if time.monotonic() > end or any(process.poll() not in (None, 0) for process in processes):
            problem = "out of time" if time.monotonic() > end else "failed"
            time.sleep(1.0)
            for process in processes:
                process.kill()
            break
    for process, log in zip(processes, logs, strict=True):
        process.wait()
        if problem:
            problem += f"; {process.returncode}: " + log.read_text(errors="replace").strip()[-1500:]
    return problem


class Clock:
    """The time that is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()


def split(home: Path, clock: Clock, tiny: bool, missed: list[str]) -> None:
    config, length = ({**SHAPE, **TINY}, 64) if tiny else (SHAPE, LENGTH)
    write_shape(home / "split", config)
    out = home / "split-out"
    out.mkdir()
    for who, environments in (
        ("alone", [{} if tiny else {"CUDA_VISIBLE_DEVICES": "0"}]),
        ("ranks", rank_environments(tiny)),
    ):
        begin = time.monotonic()
        problem = workers(environments, ["--worker", who, str(home / "split"), str(out), str(length)], clock.left)
        tell(part="split", who=who, wall_s=round(time.monotonic() - begin, 1), problem=problem)
        if problem:
            missed.append(f"split, {who}")
    found = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    for who, figures in found.items():
        tell(part="split", who=who, **figures)
        for peak in figures.get("peaks", ()):
            if peak["measured"] > peak["planned"]:
                missed.append(f"peak of {who}, {peak['stage']}")
    if not {"alone", "rank0"} <= set(found):
        return
    one, two = found["alone"], found["rank0"]
    prefill = min(one["prefill_s"]) / min(two["prefill_s"])
    steps = {who: step for who, step in (("alone", step_of(one)), ("ranks", step_of(two))) if step is not None}
    decoding = steps["alone"] / steps["ranks"] if len(steps) == 2 else None
    cosine = two.get("cosine_least")
    tell(part="split", ratio_prefill=prefill, ratio_decode=decoding, step_s=steps, cosine_least=cosine, bars=BARS)
    for name, value in (("prefill", prefill), ("decode", decoding), ("cosine", cosine)):
        if not tiny and (value is None or value < BARS[name]):
            missed.append(f"{name} {value}")


def step_of(figures: Mapping[str, Any]) -> float | None:
    """Seconds of a decoded step, in the faster of the two ways; None where none ran."""
    ways = [min(figures[name]) for name in ("decode_compiled_s", "decode_plain_s") if name in figures]
    return (min(ways) - min(figures["prefill_s"])) / STEPS if ways else None


def corpus(home: Path, clock: Clock, tiny: bool, missed: list[str]) -> None:
    folder, source, dtype = corpus_files(home, 80 if tiny else 120_000, tiny)
    rates: dict[int, float] = {}
    tokens = sum(json.loads(line)["text"].count(" ") + 1 for line in source.open())
    for count in (1, 2):
        out = home / f"corpus{count}"
        environments = [
            {DEVICE: f"{at}/{count}", **({} if tiny else {"CUDA_VISIBLE_DEVICES": str(at)})} for at in range(count)
        ]
        arguments = ["--worker", "corpus", str(folder), str(out), str(source), dtype]
        begin = time.monotonic()
        problem = workers(environments, arguments, clock.left)
        times = [json.loads(path.read_text()) for path in sorted(home.glob(f"corpus{count}.time*"))]
        if problem or len(times) < count:
            tell(part="corpus", devices=count, problem=problem)
            missed.append(f"corpus on {count}")
            return
        seconds = max(end for _, end in times) - min(start for start, _ in times)
        rates[count] = tokens / seconds
        own = [round(end - start, 3) for start, end in times]
        tell(part="corpus", devices=count, tokens=tokens, seconds=round(seconds, 3), own_seconds=own,
             tokens_per_s=round(rates[count]), wall_s=round(time.monotonic() - begin, 1))  # fmt: skip
    tell(part="corpus", ratio=rates[2] / rates[1], bar=BARS["corpus"])
    if not tiny and rates[2] / rates[1] < BARS["corpus"]:
        missed.append(f"corpus {rates[2] / rates[1]:.2f}")


def corpus_files(home: Path, rows: int, tiny: bool) -> tuple[Path, Path, str]:
    """(model, rows, dtype) of the corpus, made once for each number of rows."""
    shape = runpy.run_path(str(HERE.with_name("pool_gpu.py")))
    folder, source = home / "model", home / f"rows{rows}.jsonl"
    if not folder.exists():
        folder.mkdir()
        shape["write_checkpoint"](folder, {**shape["SHAPE"], **(shape["TINY"] if tiny else {})})
        mx.clear_cache()
    draw, words = random.Random(1), [f"w{at}" for at in range(2, 500)]
    with source.open("w") as file:
        for at in range(rows):
            length = min(400, max(10, round(draw.lognormvariate(4.3, 0.7))))
            file.write(json.dumps({"id": at, "text": " ".join(draw.choices(words, k=length))}) + "\n")
    return folder, source, "float32" if tiny else "bfloat16"


def kill(home: Path, clock: Clock, tiny: bool, missed: list[str]) -> None:
    rows = 200 if tiny else 40_000
    folder, source, dtype = corpus_files(home, rows, tiny)
    out = home / "killed"
    command = [
        sys.executable,
        "-c",
        "from archport.cli import main; main()",
        "batch",
        str(source),
        "-o",
        str(out),
        "-m",
    ]
    command += [str(folder), "--output-format", "npy", "--part-rows", "20" if tiny else "2048", "--dtype", dtype]
    command += ["--devices", "2", "--quiet"]
    begin = time.monotonic()
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not len(list(out.glob("*.npy"))) > 2 and parent.poll() is None and clock.left > 0:
        time.sleep(0.02)
    victim = next(children(parent.pid), None)
    if victim is not None:
        os.kill(victim, signal.SIGKILL)
    said = (parent.communicate(timeout=max(1.0, clock.left))[1] or "").strip()[-300:]
    before = sum(len(stored.ids) for stored in read(out))
    tell(part="kill", killed=victim is not None, code=parent.returncode, rows_then=before, said=said,
         wall_s=round(time.monotonic() - begin, 1))  # fmt: skip
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=max(1.0, clock.left))
    ids = [id for stored in read(out) for id in stored.ids]
    tell(part="kill", resumed=done.returncode, rows=len(ids), in_order=ids == list(range(rows)),
         wall_s=round(time.monotonic() - begin, 1))  # fmt: skip
    if ids != list(range(rows)) or before >= rows or done.returncode:
        missed.append("kill")


def children(pid: int) -> Iterator[int]:
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, each.read_text().split())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--only", default="split,corpus,kill")
    parser.add_argument("--tiny", action="store_true", help="two processes of a CPU, to try the script out")
    given = parser.parse_args()
    clock, missed, home = Clock(given.seconds), list[str](), Path(tempfile.mkdtemp(prefix="archport-two-"))
    tell(
        platform=platform.platform(),
        python=platform.python_version(),
        mlx=importlib.metadata.version("mlx"),
        archport=archport.__version__,
    )
    for name, part, least in (("split", split, 60), ("corpus", corpus, 40), ("kill", kill, 25)):
        if name not in given.only.split(","):
            continue
        if not given.tiny and clock.left < least:
            tell(part=name, skipped=f"{clock.left:.0f} s are left")
            missed.append(f"{name} was skipped")
            continue
        try:
            part(home, clock, given.tiny, missed)
        # The other parts have figures of their own.
        except Exception as error:
            tell(part=name, problem=f"{type(error).__name__}: {error}"[:500])
            missed.append(name)
    tell(missed=missed, seconds_left=round(clock.left, 1))
    sys.exit(bool(missed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        kind, *rest = sys.argv[2:]
        if kind == "corpus":
            corpus_worker(Path(rest[0]), Path(rest[1]), Path(rest[2]), rest[3])
        else:
            split_worker(Path(rest[0]), Path(rest[1]), alone=kind == "alone", length=int(rest[2]))
    else:
        main()
