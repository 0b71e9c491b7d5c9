"""What transformers computes from checkpoints, in float32 on a CPU: run by the user's own Python, which has torch.

`archport.testing.recording` hands this file's text to another interpreter. It imports nothing of archport, whose
environment it does not run in, and knows no format of a golden file: arrays and a report go into a folder.
"""

# The interpreter that reads this for errors is not the one that has these packages.
# pyright: basic, reportMissingImports=false
from __future__ import annotations

import importlib
import json
import os
import platform
import sys
from typing import Any

import numpy as np

SPEAKS = ("ForCausalLM", "ForConditionalGeneration")


class NoReferenceError(Exception):
    """There is no reference for a checkpoint; the message says why."""


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.300}"


def model_class(architectures: list[str], tasks: list[str]) -> tuple[Any, str]:
    """The class that computes what the tasks need, and which head it has: "words", "scores" or "" for none."""
    import transformers

    def own(*endings: str) -> Any:
        names = [name for name in architectures if name.endswith(endings)]
        return next((found for name in names if (found := getattr(transformers, name, None)) is not None), None)

    def named(*endings: str) -> bool:
        return any(name.endswith(endings) for name in architectures)

    if {"classify", "rerank"} & set(tasks) and named("ForSequenceClassification"):
        return own("ForSequenceClassification") or transformers.AutoModelForSequenceClassification, "scores"
    if "generate" in tasks or ("rerank" in tasks and named(*SPEAKS)):
        return own(*SPEAKS) or transformers.AutoModelForCausalLM, "words"
    if "fill_mask" in tasks and named("ForMaskedLM"):
        return own("ForMaskedLM") or transformers.AutoModelForMaskedLM, "words"
    return transformers.AutoModel, ""


def load(case: dict[str, Any]) -> tuple[Any, str]:
    """The model of a case in float32, and which head it has.

    Raises:
        NoReferenceError: transformers does not know the architecture, or the checkpoint leaves parameters unfilled.
    """
    import torch
    import transformers

    version = tuple(int(part) for part in transformers.__version__.split(".")[:2] if part.isdecimal())
    try:
        kind, head = model_class(case["architectures"], case["tasks"])
        model, told = kind.from_pretrained(
            case["body"],
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=case["trust_remote_code"],
            **{"dtype" if version >= (4, 56) else "torch_dtype": torch.float32},
        )
    except Exception as error:
        raise NoReferenceError(
            f"transformers {transformers.__version__} does not load it: {first_line(error)}"
        ) from error
    # A pooler makes no hidden states.
    needed = [name for name in told["missing_keys"] if head == "scores" or "pooler." not in name]
    if needed or told["mismatched_keys"]:
        wrong = sorted([*needed, *(str(each) for each in told["mismatched_keys"])])
        raise NoReferenceError(
            f"{len(wrong)} tensors that {type(model).__name__} needs are missing or of another shape, for example "
            f"{', '.join(wrong[:3])}; a reference would be of random numbers. Publish tensors under the names that "
            "transformers saves them by (`Example(publish=...)`)"
        )
    return model.float().eval(), head


def tokenised(tokenizer: Any, texts: list[str], limit: int) -> tuple[list[str], list[list[int]]]:
    """Texts, shortened to so many tokens, and their ids; without those that have no token."""
    kept: dict[str, list[int]] = {}
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        while len(ids) > limit and len(text) > 1:
            text = text[: min(len(text) - 1, max(1, len(text) * limit // len(ids)))]
            ids = list(tokenizer(text)["input_ids"])
        if 0 < len(ids) <= limit:
            kept[text] = ids
    return list(kept), list(kept.values())


def greedy(model: Any, ids: list[int], new: int) -> tuple[np.ndarray, list[int], list[float]]:
    """Logits (V,) at a prompt's end, the likeliest tokens that follow, and how far each is ahead of the second.

    The distance is a share of the largest logit. Final tokens end nothing.
    """
    import torch

    row, first, margins = list(ids), np.zeros(0), list[float]()
    for step in range(max(new, 1)):
        logits = model(input_ids=torch.tensor([row])).logits[0, -1].numpy()
        first = logits if step == 0 else first
        second, best = np.sort(logits)[-2:]
        margins.append(float((best - second) / max(np.abs(logits).max(), 1e-30)))
        row.append(int(logits.argmax()))
    return first, row[len(ids) :][:new], margins[:new]


def vectors(folder: str, texts: list[str], trust_remote_code: bool) -> np.ndarray | None:
    """What sentence-transformers embeds texts as, (N, D), with the pipeline's default prompt; None without pipeline."""
    if not os.path.exists(os.path.join(folder, "modules.json")):
        return None
    import torch
    from sentence_transformers import SentenceTransformer

    options = {"device": "cpu", "trust_remote_code": trust_remote_code, "local_files_only": True}
    model = SentenceTransformer(folder, model_kwargs={"torch_dtype": torch.float32}, **options)
    return np.asarray(model.float().encode(texts), dtype=np.float32)


def record(case: dict[str, Any], out: str) -> dict[str, Any]:
    """Write the arrays of one case to a file; returns what a reader should know of them."""
    import torch
    import transformers

    model, head = load(case)
    # An example's tokenizer is the kit's own. For some model types transformers makes their usual one out of its words,
    # whatever class the folder names.
    reader = transformers.PreTrainedTokenizerFast if case["example"] else transformers.AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(
            case["body"], local_files_only=True, trust_remote_code=case["trust_remote_code"]
        )
    except Exception as error:
        raise NoReferenceError(f"transformers finds no tokenizer: {first_line(error)}") from error
    new = case["new"] if head == "words" and "generate" in case["tasks"] else 0
    texts, rows = tokenised(tokenizer, case["texts"], case["limit"] - new)
    if not texts:
        raise NoReferenceError(f"none of {len(case['texts'])} texts has 1 to {case['limit'] - new} tokens")
    base = model.base_model if head else model
    arrays: dict[str, Any] = {}
    with torch.no_grad():
        hidden = [base(input_ids=torch.tensor([row])).last_hidden_state[0].numpy() for row in rows]
        if new:
            told = [greedy(model, row, new) for row in rows]
            arrays = {
                key: np.array([each[at] for each in told]) for at, key in enumerate(("logits", "greedy", "margins"))
            }
        elif head:
            found = [model(input_ids=torch.tensor([row])).logits[0] for row in rows]
            arrays = (
                {"scores": np.stack([each.numpy() for each in found])}
                if head == "scores"
                else {"logits": np.stack([each[-1].numpy() for each in found])}
            )
        made = vectors(case["folder"], texts, case["trust_remote_code"])
    arrays |= {} if made is None else {"vectors": made}
    np.savez(
        out,
        texts=np.array(texts),
        ids=np.concatenate([np.array(row, np.int32) for row in rows]),
        lengths=np.array([len(row) for row in rows], np.int32),
        hidden=np.concatenate(hidden).astype(np.float32),
        **arrays,
    )
    return {"class": type(model).__name__}


def versions() -> dict[str, str]:
    """Versions of what decides the numbers; raises ImportError without torch and transformers."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "torch", "transformers", "tokenizers", "sentence_transformers"):
        try:
            found[name] = str(importlib.import_module(name).__version__)
        except ImportError:
            if name in ("torch", "transformers"):
                raise
    return found


def main(request: str) -> None:
    """Record every case of a request (a JSON file); report.json in its folder says how each ended."""
    folder = os.path.dirname(request)
    with open(request, encoding="utf-8") as file:
        cases = json.load(file)
    report: dict[str, Any] = {"cases": []}
    try:
        report["versions"] = versions()
    except ImportError as error:
        report["error"] = f"has no {error.name or 'torch'} ({error})"
        cases = []
    for index, case in enumerate(cases):
        ended: dict[str, Any] = {}
        try:
            ended = record(case, os.path.join(folder, f"{index}.npz"))
        except NoReferenceError as reason:
            ended = {"error": str(reason)}
        except Exception as error:
            ended = {"error": first_line(error)}
        report["cases"].append(ended)
    with open(os.path.join(folder, "report.json"), "w", encoding="utf-8") as file:
        json.dump(report, file)


if __name__ == "__main__":
    main(sys.argv[1])
