"""Record digests of the ids that transformers gives for tokenizer_texts.py, by the real Qwen3 and Gemma 3 tokenizers.

`make tokenizers` fetches their files, which are too large for this folder.
"""

import hashlib
import json
import tempfile
from pathlib import Path

from recording import HERE, versions, write_json
from tokenizer_texts import BLOCK, texts
from transformers import AutoTokenizer

FILES = HERE.parents[1] / "build" / "tokenizers"
MODELS = {"qwen3": "qwen3", "gemma3": "gemma3_text"}


def digests(rows: list[list[int]]) -> list[str]:
    """One digest per block of texts."""
    blocks = [rows[at : at + BLOCK] for at in range(0, len(rows), BLOCK)]
    return [hashlib.sha256(json.dumps(block).encode()).hexdigest()[:16] for block in blocks]


def record() -> None:
    """Write tokenizers.json."""
    found = {}
    for name, model_type in MODELS.items():
        with tempfile.TemporaryDirectory() as place:
            for path in (FILES / name).iterdir():
                (Path(place) / path.name).symlink_to(path)
            (Path(place) / "config.json").write_text(json.dumps({"model_type": model_type}))
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
            rows = tokenizer(texts())["input_ids"]
        sha = hashlib.sha256((FILES / name / "tokenizer.json").read_bytes()).hexdigest()
        found[name] = {"model_type": model_type, "class": type(tokenizer).__name__, "sha256": sha, "ids": digests(rows)}
        print(f"{name}: {type(tokenizer).__name__}, {sum(map(len, rows)):,} ids")
    write_json(HERE / "tokenizers.json", {"versions": versions(), "block": BLOCK, "models": found})


if __name__ == "__main__":
    record()
