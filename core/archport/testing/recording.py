"""Make a golden file: have another Python, which has torch, compute a reference from checkpoints. Runs no model itself.

`reference` is what that Python runs; the two share no package. See `recorded` for what a file holds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import archport
from archport.contract import ArchSpec, InputError, SpecError
from archport.contract.plugins import Plugin
from archport.loading import context_ceiling, describe, narrowed
from archport.testing.finding import find, subject_of
from archport.testing.recorded import GoldenFile, Recorded, read_golden

# One character, words, letters of several scripts with white space that tokenizers treat apart, and a long one.
TEXTS = (
    "a",
    "Memory is planned before it is allocated.",
    " Two  spaces, a tab\tand\na line; then 3.14 and snake_case!",
    "Grüße aus Zürich, 世界, naïve café and a \N{OWL}",
    "A long text that fills windows and caches, so that what only a later token meets is met, 0123456789. " * 3,
)
NEW_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint that a reference is computed from.

    Args:
        folder, body: of the repository, and of the transformer inside.
        spec: what the plugin declares for it.
        architectures: those of its config.
        limit: tokens that a text may have by default.
        name, fingerprint: of the example, "" for a checkpoint.
    """

    folder: Path
    body: Path
    spec: ArchSpec
    architectures: tuple[str, ...]
    limit: int
    name: str = ""
    fingerprint: str = ""


def record(
    plugin: str | ModuleType | Plugin | None = None,
    *,
    model: str | Path | None = None,
    python: str = sys.executable,
    texts: Sequence[str] = TEXTS,
    new_tokens: int = NEW_TOKENS,
    trust_remote_code: bool = False,
    command: str = "",
) -> GoldenFile:
    """What transformers computes from a checkpoint, or from each of a plugin's tiny examples, for the declared tasks.

    Args:
        plugin: an entry-point name or a module; may be left out where a model is named.
        model: a checkpoint: a folder, hub id or alias. Left out: the plugin's examples.
        python: an interpreter that has torch and transformers (and sentence-transformers, for pipelines).
        texts: what is tokenised; those with more tokens than a checkpoint has positions are shortened.
        new_tokens: tokens to decode after each text, of models that generate.
        trust_remote_code: run the code that the checkpoint brings.
        command: kept with the numbers.

    Raises:
        InputError: no such interpreter, no torch in it, or a checkpoint that the reference fails on.
    """
    if plugin is None and model is None:
        raise InputError("nothing to record: name a plugin, for its examples, or a model (`-m MODEL`)")
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise InputError(f"{texts=}; expected strings that are not empty")
    if not 0 < new_tokens <= 1024:
        raise InputError(f"{new_tokens=}; expected 1 to 1,024")
    row = None if plugin is None else find(plugin)
    if row is not None and row.module is None:
        raise InputError(f"{row.label} did not load: {row.error}")
    sources = _of_examples(row) if model is None and row is not None else [_of_model(str(model), row)]
    asked = {"texts": list(texts), "new": new_tokens, "trust_remote_code": trust_remote_code}
    with tempfile.TemporaryDirectory(prefix="archport-record-") as home:
        report = _computed(Path(home), [{**_case(source), **asked} for source in sources], python)
        ended = list(zip(sources, report["cases"], strict=True))
        # One example that the reference fails on hides no other; of a checkpoint there is one case.
        left_out = {source.name: str(each["error"]) for source, each in ended if "error" in each}
        if len(left_out) == len(sources):
            raise InputError(f"there is no reference: {'; '.join(dict.fromkeys(left_out.values()))}")
        cases = [
            _labelled(read_golden(Path(home) / f"{index}.npz").cases[0], source)
            for index, (source, each) in enumerate(ended)
            if "error" not in each
        ]
    provenance = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "of": row.label if row is not None and model is None else str(model),
        "archport": archport.__version__,
        "dtype": "float32 on a CPU",
        "versions": report["versions"],
        "classes": sorted({each["class"] for _, each in ended if "class" in each}),
    }
    return GoldenFile(tuple(cases), provenance, left_out, of_examples=model is None)


def _of_examples(plugin: Plugin) -> list[Source]:
    subject = subject_of(plugin)
    if subject.is_guest or not subject.tinies:
        raise InputError(f"{plugin.label} names no example to record from; name a checkpoint (`-m MODEL`)")
    return [
        Source(
            tiny.folder,
            tiny.folder,
            tiny.spec,
            _architectures(tiny.config),
            min(tiny.spec.max_positions, tiny.model.max_tokens),
            tiny.example.name,
            tiny.fingerprint,
        )
        for tiny in subject.tinies
    ]


def _of_model(model: str, plugin: Plugin | None) -> Source:
    about = describe(model, plugins=None if plugin is None else (plugin,), weights=True)
    checkpoint, inputs = about.checkpoint, about.hooks.inputs(about.spec, about.checkpoint)
    spec = narrowed(about, about.hooks.head(about.spec, checkpoint)).spec
    limit, _ = context_ceiling(about.checkpoint.name, about.spec, inputs, None)
    return Source(checkpoint.folder, checkpoint.body_path, spec, _architectures(checkpoint.config), limit)


def _architectures(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(name) for name in config.get("architectures") or ())


def _case(source: Source) -> dict[str, Any]:
    return {
        "folder": str(source.folder.resolve()),
        "body": str(source.body.resolve()),
        "tasks": list(source.spec.tasks),
        "architectures": list(source.architectures),
        "limit": source.limit,
        "example": bool(source.name),
    }


def _labelled(case: Recorded, source: Source) -> Recorded:
    vocabulary = source.spec.vocab_size
    assert case.ids is not None
    if max(int(row.max()) for row in case.ids) >= vocabulary:
        raise SpecError(f"the reference's tokenizer gives ids beyond the {vocabulary} that the spec declares")
    return replace(case, name=source.name, fingerprint=source.fingerprint)


def _computed(home: Path, cases: Sequence[Mapping[str, Any]], python: str) -> dict[str, Any]:
    """The report of the other interpreter, once it has written its arrays into a folder.

    Raises:
        InputError: it can't be run, has no torch, or ended without a report.
    """
    request = home / "request.json"
    request.write_text(json.dumps(cases), encoding="utf-8")
    source = Path(__file__).with_name("reference.py").read_text(encoding="utf-8")
    # What this environment puts on the path is not the other one's.
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    quiet = {"PYTHONSAFEPATH": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [python, "-c", source, str(request)], cwd=home, env={**kept, **quiet}, capture_output=True, text=True
        )
    except OSError as error:
        raise InputError(
            f"{python=} can't be run ({error.strerror or error}); expected a Python that has torch"
        ) from error
    report = home / "report.json"
    if not report.exists():
        said = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise InputError(f"{python=} ended with {done.returncode} before the reference was computed: {said:.300}")
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if "error" in found:
        raise InputError(
            f"{python=} {found['error']}; name a Python that has torch and transformers, which need not be this one"
        )
    return found
