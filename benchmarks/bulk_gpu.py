"""On a GPU: a job against `embed` on the same texts, and the same job killed at three random moments and resumed.

    python benchmarks/bulk_gpu.py [--rows 200000] [--write] [--tiny]

Random weights in the shape of Qwen3-Embedding-0.6B, bfloat16, and a tokenizer of whole words; passages of 10 to 400
tokens. `embed` and the job run in one process, in turns; the bar is 0.9 of embed's rate. Vectors go into .npy files,
which need no other library. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import archport  # noqa: F401

# isort: split
import argparse
import json
import platform
import random
import runpy
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from archport import engine
from archport.bulk import Job, read, run
from archport.bulk.inputs import Inputs

shape: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("pool_gpu.py")))
kills: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("bulk_cpu.py")))
RATE, HELD = 0.9, 1.05


def passages(count: int) -> list[str]:
    """Texts of 10 to 400 words, most of them short, as paragraphs are."""
    draw = random.Random(1)
    return [shape["text"](draw, min(400, max(10, round(draw.lognormvariate(4.3, 0.7))))) for _ in range(count)]


def vectors_of(out: Path, count: int) -> np.ndarray:
    """Every vector by its row; a row that is lost stays NaN, and one that comes twice is an error."""
    found: np.ndarray | None = None
    for stored in read(out):
        rows = np.array(stored.ids)
        if found is None:
            found = np.full((count, stored.vectors.shape[1]), np.nan, np.float32)
        assert np.isnan(found[rows, 0]).all(), "a row came twice"
        found[rows] = stored.vectors
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script out")
    given = parser.parse_args()
    folder, missed = Path(tempfile.mkdtemp(prefix="archport-bulk-")), list[str]()
    (folder / "model").mkdir()
    part_rows = max(1, given.rows // 10) if given.tiny else 16_384
    shape["write_checkpoint"](folder / "model", {**shape["SHAPE"], **(shape["TINY"] if given.tiny else {})})
    texts = passages(given.rows)
    tokens = sum(text.count(" ") + 1 for text in texts)
    source = folder / "rows.jsonl"
    with source.open("w") as file:
        for at, text in enumerate(texts):
            file.write(json.dumps({"id": at, "text": text}) + "\n")
    # On a CPU products of 16 bits are slow.
    dtype = "float32" if given.tiny else "bfloat16"
    model = engine.load(folder / "model", dtype=dtype)
    lines = [
        f"{platform.platform()}, Python {platform.python_version()}, mlx {mx.__version__}",
        f"{model.device.name}; {given.rows:,} passages of {tokens:,} tokens, parts of {part_rows:,}",
    ]
    print("\n".join(lines), flush=True)

    def told(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    # Shapes that are new take a while on CUDA, so each has seen a part before it is timed.
    model.embed(texts[:part_rows])
    seconds: dict[str, float] = {}
    expected: np.ndarray | None = None
    for name in ("embed", "job"):
        mx.synchronize()
        begin = time.perf_counter()
        if name == "embed":
            expected = model.embed(texts)
        else:
            run(model, Inputs([str(source)]), Job(out=folder / "whole", output_format="npy", part_rows=part_rows))
        seconds[name] = time.perf_counter() - begin
        told(f"{name}: {seconds[name]:.1f} s, {tokens / seconds[name]:,.0f} tokens/s")
    rate = seconds["embed"] / seconds["job"]
    told(f"the job's rate is {rate:.3f} of embed's; the bar is {RATE}")
    if rate < RATE:
        missed.append(f"rate {rate:.3f}")
    del model
    line = kills["command"](source, folder / "out", str(folder / "model"), part_rows, "--output-format", "npy")
    line += ["--dtype", dtype]
    ended, samples = kills["killed_and_resumed"](line, folder / "out", given.rows, random.Random(0), longest=2.0)
    for each in ended:
        told(str(each))
    told(
        "resident while each part was made, MB: " + " ".join(f"{each / 1e6:,.0f}" for each in kills["by_part"](samples))
    )
    first, last = kills["tenths"](samples)
    told(
        f"resident: first tenth {first / 1e6:,.0f} MB, last tenth {last / 1e6:,.0f} MB, {last / first:.3f}; bar {HELD}"
    )
    if last / first > HELD:
        missed.append(f"resident {last / first:.3f}")
    found = vectors_of(folder / "out", given.rows)
    lost = int(np.isnan(found[:, 0]).sum())
    cosine = float((found * expected).sum(axis=1).min())
    names = sorted(path.name for path in (folder / "whole").glob("part-*.npy"))
    same = sum((folder / "whole" / name).read_bytes() == (folder / "out" / name).read_bytes() for name in names)
    told(f"rows lost {lost}, doubled 0; lowest cosine with embed {cosine:.6f}")
    told(f"of {len(names)} parts {same} have the bytes of the job that was not killed")
    if lost or not cosine > 0.999:
        missed.append(f"{lost} rows lost, cosine {cosine}")
    if given.write:
        Path(__file__).with_name("results").joinpath("bulk_gpu.txt").write_text("\n".join(lines) + "\n")
    shutil.rmtree(folder)
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
