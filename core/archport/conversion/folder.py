"""The output's folder: which files come along as they are, the index, config.json last, and the record of progress.

A folder without config.json is no checkpoint, so a conversion that was interrupted is never loaded by mistake.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from archport.checkpoint import Checkpoint, normalise_config
from archport.checkpoint.adapting import adapted_config
from archport.checkpoint.disk import inside, read_object
from archport.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, HEADS_APART, INDEX, UNSAFE_WEIGHTS
from archport.contract import InputError
from archport.contract.errors import CheckpointError, of_file
from archport.conversion.settings import Settings
from archport.conversion.targets import Target

# What is asked for, and one line for each step that is on disk.
RECORD, PROGRESS = "archport-convert.json", "archport-convert.progress"
_OTHER_FORMATS = (*UNSAFE_WEIGHTS, ".gguf", ".onnx", ".onnx_data", ".tflite", ".mlmodel", ".safetensors.index.json")
_TYPE_KEYS = ("dtype", "torch_dtype")
# What transformers 5 spells otherwise, and mlx-lm reads under these names alone.
_CLASSIC = ("rope_theta", "num_experts")


@dataclass(frozen=True, slots=True)
class Output:
    """One weight file of the output.

    Args:
        file: relative to the folder of the transformer.
        targets: what it holds, in order.
    """

    file: str
    targets: tuple[Target, ...]


def outputs_of(targets: Sequence[Target]) -> list[Output]:
    """One output file for each source file that holds the beginning of a tensor."""
    groups: dict[str, list[Target]] = {}
    for target in targets:
        groups.setdefault(target.stretches[0].file, []).append(target)
    count = len(groups)
    name = "model.safetensors" if count == 1 else "model-{:05d}-of-{:05d}.safetensors"
    return [Output(name.format(at, count), tuple(group)) for at, group in enumerate(groups.values(), 1)]


def begin(out: Path, checkpoint: Checkpoint, settings: Settings) -> dict[str, int]:
    """Make a folder the place of a conversion, or find it to be so already.

    Returns:
        How many tensors of each output file are on disk.

    Raises:
        InputError: it holds something else, another conversion, or the source itself.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; expected a new folder for the output")
    for folder in checkpoint.folders:
        source = folder.resolve()
        if source in (out.resolve(), *out.resolve().parents):
            where = "the checkpoint itself" if out.resolve() == source else f"inside the checkpoint {folder}"
            raise InputError(f"{out} is {where}, whose files come along; write into another folder")
    record = {"source": checkpoint.name, "files": _fingerprint(checkpoint), "settings": settings.described()}
    out.mkdir(parents=True, exist_ok=True)
    here = sorted(os.listdir(out))
    if RECORD not in here:
        if here:
            raise InputError(f"{out} holds {', '.join(here[:4])}; expected an empty folder, or a new one")
        _replace(out / RECORD, json.dumps(record, indent=2))
        return {}
    if read_object(out / RECORD) != json.loads(json.dumps(record)):
        raise InputError(
            f"{out} holds the beginning of another conversion, of another source or with other settings. Ask for the "
            "same to go on with it, or remove the folder"
        )
    done: dict[str, int] = {}
    with suppress(FileNotFoundError):
        # A line that a killed process did not finish has no end.
        for line in (out / PROGRESS).read_text().splitlines(keepends=True):
            file, _, count = line.rpartition("\t")
            if line.endswith("\n") and count.strip().isdigit():
                done[file] = int(count)
    return done


def note(out: Path, file: str, count: int) -> None:
    """Record that the first tensors of an output file are on disk."""
    with (out / PROGRESS).open("a") as log:
        log.write(f"{file}\t{count}\n")
        log.flush()
        os.fsync(log.fileno())


def _fingerprint(checkpoint: Checkpoint) -> list[list[Any]]:
    found: list[list[Any]] = []
    for file in sorted({info.file for info in checkpoint.stored_tensors.values()}):
        status = os.stat(inside(checkpoint.weights_folder, file, INDEX))
        found.append([file, status.st_size, status.st_mtime_ns])
    for file in () if checkpoint.adapted is None else (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        assert checkpoint.adapted is not None, "else there are no such files"
        status = os.stat(inside(checkpoint.adapted.adapter.folder, file, "an adapter"))
        found.append([file, status.st_size, status.st_mtime_ns])
    return found


def copy_files(checkpoint: Checkpoint, out: Path) -> list[str]:
    """Copy every file that is no weight of the transformer; returns their names.

    Modules after the transformer keep their own weights. Hidden files, and weights in formats that archport does not
    read, stay behind, and so do an adapter's, which the output has in its matrices.
    """
    copied: dict[str, None] = {}
    own = checkpoint.root or checkpoint.folder
    # Of an adapter that was named itself, its files last: they go before its base's.
    for folder in dict.fromkeys([checkpoint.weights_folder, checkpoint.folder, own]):
        copied |= dict.fromkeys(_copy_folder(checkpoint, folder, out))
    return list(copied)


def _copy_folder(checkpoint: Checkpoint, folder: Path, out: Path) -> list[str]:
    body = f"{checkpoint.body}/" if checkpoint.body else ""
    copied: list[str] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            relative = (Path(root) / name).relative_to(folder).as_posix()
            place = relative.removesuffix(name)
            if name.startswith(".") or name.endswith(_OTHER_FORMATS) or relative == f"{body}config.json":
                continue
            if checkpoint.adapted is not None and name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
                continue
            if place == body and name.endswith(".safetensors") and name.removesuffix(".safetensors") not in HEADS_APART:
                continue
            target = out / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{name}.part")
            shutil.copyfile(inside(folder, relative, "the checkpoint"), part)
            os.replace(part, target)
            copied.append(relative)
    return copied


def finish(checkpoint: Checkpoint, out: Path, outputs: Sequence[Output], settings: Settings, total: int) -> None:
    """Write the index where there are several files, then config.json, and remove the record of progress."""
    place = out / checkpoint.body
    if len(outputs) > 1:
        weight_map = {
            name: output.file for output in outputs for target in output.targets for name, _, _ in target.stored()
        }
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _replace(place / INDEX, json.dumps(index, indent=2))
    config = read_object(inside(checkpoint.config_path.parent, "config.json", "a checkpoint"))
    if config is None:
        raise CheckpointError(f"{checkpoint.config_path.parent}: config.json was removed meanwhile")
    fit = checkpoint.adapted
    if fit is not None:
        config = adapted_config(config, fit) | ({"tie_word_embeddings": False} if fit.copied else {})
    _replace(place / "config.json", json.dumps(_config(config, settings), indent=2, ensure_ascii=False) + "\n")
    for name in (PROGRESS, RECORD):
        (out / name).unlink(missing_ok=True)


def _config(config: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The source's config with what changed."""
    made = dict(config)
    normal = normalise_config(dict(config))
    made |= {key: normal[key] for key in _CLASSIC if key in normal and key not in made}
    if settings.dtype is not None:
        for key in _TYPE_KEYS:
            made |= {key: settings.dtype} if key in made else {}
        if not any(key in made for key in _TYPE_KEYS):
            made["dtype"] = settings.dtype
        for name in ("text_config", "vision_config"):
            part = made.get(name)
            if isinstance(part, dict):
                made[name] = {key: settings.dtype if key in _TYPE_KEYS else value for key, value in part.items()}
    if (quantization := settings.config()) is not None:
        # mlx-lm reads the first, the hub's page of a model the second.
        made |= {"quantization": quantization, "quantization_config": quantization}
    return made


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with of_file(path), part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
