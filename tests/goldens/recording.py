"""What every golden shares: seeded weights, texts of an exact token length, and the files a golden is stored in.

Knows no architecture. Imports torch and tokenizers, so only the generator scripts use it, never a test.
"""

import gzip
import json
import platform
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import tokenizers
import torch
import transformers

HERE = Path(__file__).parent
RELATIVE_ERROR = "max|x - ref| / max|ref|, over all elements of one array"
LENGTHS = (1, 2, 31, 32, 100, 128, 255, 256, 300, 512)
SHORT_LENGTHS = (1, 2, 31, 32, 100, 128)


def read_corpus() -> list[str]:
    """Return the 1,000 paragraphs of The Jargon File."""
    return json.loads(gzip.decompress((HERE / "minilm" / "corpus.json.gz").read_bytes()))


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return max|found - expected| / max|expected|."""
    return float(np.abs(found.astype(np.float64) - expected).max() / np.abs(expected).max())


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int, gains: dict[str, float] | None = None) -> None:
    """Fill every parameter from a seed so that no part of the network is close to trivial.

    Matrices are N(0, gain/sqrt(fan_in)), embedding tables N(0, 1), 1-D weights 1 + 0.3 N, biases 0.3 N. `gains` maps a
    substring of a parameter name to its gain (1 otherwise).
    """
    dice = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=dice)
        gain = next((value for part, value in (gains or {}).items() if part in name), 1.0)
        if parameter.ndim == 1:
            parameter.copy_(0.3 * noise + (0.0 if name.endswith("bias") else gain))
        elif "embed" in name:
            parameter.copy_(gain * noise)
        else:
            parameter.copy_(gain * noise / parameter.shape[-1] ** 0.5)


def text_of_length(encode: Callable[[str], list[int]], corpus: Sequence[str], length: int, seed: int) -> str:
    """Return a piece of the corpus that encodes to exactly `length` ids, special tokens included.

    Raises ValueError when no piece was found, for example a length below the number of special tokens.
    """
    if len(encode("")) == length:
        return ""
    dice = random.Random(seed)
    for _ in range(200):
        start = dice.randrange(len(corpus))
        text = " ".join(corpus[start : start + 12]) + " " + " ".join(corpus[:12])
        low, high = 1, len(text)
        while low < high:  # the token count grows with the cut, nearly monotonically
            middle = (low + high) // 2
            low, high = (middle + 1, high) if len(encode(text[:middle])) < length else (low, middle)
        for cut in range(low, low + 8):
            if text[:cut] == text[:cut].strip() and len(encode(text[:cut])) == length:
                return text[:cut]
    raise ValueError(f"no piece of the corpus encodes to {length} ids")


def write_golden(
    folder: Path, rows: list[dict[str, Any]], arrays: dict[str, np.ndarray], notes: dict[str, Any]
) -> None:
    """Write golden.npz (`ids_<i>` and the given arrays), texts.json (one row per i) and golden.json (how made)."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = {f"ids_{i}": np.asarray(row["ids"], np.int32) for i, row in enumerate(rows)} | arrays
    np.savez_compressed(folder / "golden.npz", **stored)
    write_json(folder / "texts.json", [{key: row[key] for key in row if key != "ids"} for row in rows])
    write_json(folder / "golden.json", notes | {"relative_error": RELATIVE_ERROR, "versions": versions()})


def versions() -> dict[str, str]:
    """Return the versions that decided the numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": np.__version__,
    }
