"""all-mpnet-base-v2, real weights, paragraphs of mixed length on a CPU: archport and sentence-transformers in turns.

Each library runs in its own process, in the environment that holds it; the turns alternate, so that both meet the same
load of the machine. Both get all texts in one call, at their own defaults, with as many threads as the process may use.

    python benchmarks/mpnet_cpu.py --reference .venv-goldens/bin/python      # writes results/mpnet_cpu.txt
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARAGRAPHS = HERE.parent / "tests" / "goldens" / "minilm" / "paragraphs.json"
RESULT = HERE / "results" / "mpnet_cpu.txt"
OURS = """
import archport, json, sys, time
import mlx.core as mx
import numpy as np
from archport import engine
folder, texts, target = sys.argv[1:]
model, texts = engine.load(folder), json.load(open(texts))
model.embed(texts[:8], overflow="truncate")
start = time.perf_counter()
vectors = model.embed(texts, overflow="truncate")
seconds = time.perf_counter() - start
np.save(target, vectors)
print(json.dumps({"seconds": seconds, "versions": f"archport, mlx {mx.__version__}"}))
"""
THEIRS = """
import json, sys, time
import numpy as np, sentence_transformers, torch
folder, texts, target = sys.argv[1:]
model, texts = sentence_transformers.SentenceTransformer(folder, device="cpu"), json.load(open(texts))
model.encode(texts[:8])
start = time.perf_counter()
vectors = model.encode(texts)
seconds = time.perf_counter() - start
np.save(target, vectors)
versions = f"sentence-transformers {sentence_transformers.__version__}, torch {torch.__version__}"
print(json.dumps({"seconds": seconds, "versions": versions, "threads": torch.get_num_threads()}))
"""


def run(python: str, code: str, *arguments: str, own: bool) -> dict[str, object]:
    """What one process of a library reports."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    if not own:
        environment.pop("PYTHONPATH", None)
    command = [python, "-c", code, *arguments]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", default=".venv-goldens/bin/python", help="a Python with sentence-transformers")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tests"))
    from real import packages

    folder, lines = str(packages.mpnet()), list[str]()
    texts = json.loads(PARAGRAPHS.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as work:
        chosen = Path(work) / "texts.json"
        chosen.write_text(json.dumps(texts))
        seconds: dict[str, list[float]] = {"archport": [], "sentence-transformers": []}
        versions: dict[str, object] = {}
        for turn in range(asked.turns):
            for name, python, code in (
                ("archport", sys.executable, OURS),
                ("sentence-transformers", asked.reference, THEIRS),
            ):
                target = str(Path(work) / f"{name}.npy")
                report = run(python, code, folder, str(chosen), target, own=name == "archport")
                seconds[name].append(float(str(report["seconds"])))
                versions[name] = report["versions"]
                lines.append(f"turn {turn + 1}  {name:22}  {len(texts) / seconds[name][-1]:6.2f} texts/s")
                print(lines[-1], flush=True)
        import numpy as np

        ours, theirs = (np.load(Path(work) / f"{name}.npy") for name in seconds)
    cosine = float((ours * theirs).sum(axis=1).min())
    ratio = statistics.median(theirs_s / ours_s for ours_s, theirs_s in zip(*seconds.values(), strict=True))
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    facts = [
        f"{platform.platform()}, {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {load}",
        f"all-mpnet-base-v2, float32, {len(texts)} paragraphs of tests/goldens/minilm, at most 384 tokens each",
        *(f"{name}: {stated}" for name, stated in versions.items()),
        "",
        *lines,
        "",
        f"archport / sentence-transformers, median of the turns: {ratio:.2f}; least cosine {cosine:.7f}",
    ]
    RESULT.write_text("\n".join(facts) + "\n")
    print(facts[-1])


if __name__ == "__main__":
    main()
