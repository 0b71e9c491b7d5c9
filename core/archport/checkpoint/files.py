"""Names of files: which ones a checkpoint needs, and which modules its pipeline lists.

Knows the published layouts (sharded, sentence-transformers, original formats). Knows nothing of the hub or of arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from archport.checkpoint.disk import inside, read_json
from archport.checkpoint.routes import Routes, expanded, read_routes
from archport.contract.errors import CheckpointError

INDEX = "model.safetensors.index.json"
# Of an adapter in PEFT's layout.
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNSAFE_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".pkl", ".pickle")

# Module kinds that are a transformer; sparse encoders were saved with the second one before sentence-transformers 5.4.
TRANSFORMERS = ("Transformer", "MLMTransformer")
# And those that stand in its place: a table of vectors, of sentence-transformers or in model2vec's own layout.
TABLES = ("StaticEmbedding", "StaticModel")
BODIES = (*TRANSFORMERS, *TABLES)

# Layers that some repositories keep in files of their own, NAME.pt as published and NAME.safetensors when converted.
HEADS_APART = ("sparse_linear", "colbert_linear")

_SMALL_SUFFIXES = (".json", ".txt", ".model", ".jinja")
_FOREIGN_FOLDERS = {"onnx", "openvino", "original", "coreml", "flax", "tf", "gguf", "runs", "logs", "assets", "figures"}
_FOREIGN_INDEX = re.compile(r"(pytorch_model|tf_model|flax_model|consolidated).*\.json$")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<total>\d{5})\.safetensors$")
_NOT_A_MODEL = re.compile(r"^(adapter_|optimizer|scheduler|rng_state|training_args)")


class Opened(Protocol):
    """What readers of a checkpoint's small files are given: a `Checkpoint`, of which they know no more than this."""

    @property
    def folder(self) -> Path: ...

    @property
    def route(self) -> str | None: ...

    @property
    def body(self) -> str: ...

    @property
    def body_path(self) -> Path: ...

    @property
    def places(self) -> list[Path]: ...

    @property
    def config(self) -> Mapping[str, Any]: ...

    @property
    def memo(self) -> dict[str, Any]: ...

    @property
    def modules(self) -> tuple[str, ...] | None: ...

    def json(self, path: str) -> dict[str, Any] | None: ...

    def token_id(self, token: str) -> int | None: ...


def pipeline_modules(folder: Path, route: str | None = None) -> list[dict[str, Any]] | None:
    """The entries of `modules.json`, each with `type` and `path`; None when the file is absent.

    They run in the order of the list, whatever `idx` says. In a router's place stand the modules of a route.

    Args:
        route: None for the main one.
    """
    entries = expanded(_listed_modules(folder), _reader(folder), route)
    for entry in entries or ():
        inside(folder, entry["path"], "modules.json")
    return entries


def routes_of(folder: Path) -> Routes | None:
    """Which modules answer which role, where the pipeline begins with a router."""
    return read_routes(_listed_modules(folder), _reader(folder))


def _reader(folder: Path) -> Callable[[str], Any]:
    return lambda name: read_json(inside(folder, name, "modules.json"))


def _listed_modules(folder: Path) -> list[dict[str, Any]] | None:
    path = inside(folder, "modules.json", "a pipeline")
    value = read_json(path)
    if value is None:
        return _own_table(folder)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise CheckpointError(f"{path}: expected a list of objects with `type` and `path`, one per pipeline module.")
    for entry in value:
        if not isinstance(entry.get("type"), str) or not isinstance(entry.get("path"), str):
            raise CheckpointError(f"{path}: module {entry!r} lacks a text `type` or `path`.")
        inside(folder, entry["path"], "modules.json")
    return value


def _own_table(folder: Path) -> list[dict[str, Any]] | None:
    """The pipeline of a folder that model2vec wrote without modules.json: config.json says whether it normalises."""
    path = inside(folder, "config.json", "a pipeline")
    config = read_json(path)
    if not isinstance(config, dict) or config.get("model_type") != "model2vec":
        return None
    entries = [{"type": "model2vec.StaticModel", "path": ""}]
    return [*entries, {"type": "Normalize", "path": "1_Normalize"}] if config.get("normalize") else entries


def module_folder(entry: Mapping[str, Any]) -> str:
    """Where a pipeline module's files are, relative to the checkpoint, "" for its root."""
    path = str(entry["path"]).strip("/")
    return "" if path == "." else path


def module_kind(entry: Mapping[str, Any]) -> str:
    """The class name of a pipeline module: the last dotted component of its `type`."""
    return str(entry["type"]).rsplit(".", 1)[-1]


def body_folder(folder: Path, route: str | None = None) -> str:
    """Where the transformer itself is, relative to the checkpoint: "" except in some old pipelines and routes."""
    for entry in pipeline_modules(folder, route) or []:
        if module_kind(entry) in BODIES:
            return module_folder(entry)
    return ""


def small_files(names: Iterable[str]) -> list[str]:
    """Of a repository's files, the configuration, tokenizer and template files: never weights, code or pickles."""
    chosen: list[str] = []
    for name in names:
        parts = name.split("/")
        foreign = any(part in _FOREIGN_FOLDERS or part.startswith(".") for part in parts[:-1])
        if len(parts) > 3 or foreign or _FOREIGN_INDEX.match(parts[-1]) or parts[-1].startswith("."):
            continue
        if parts[-1].endswith(_SMALL_SUFFIXES):
            chosen.append(name)
    return sorted(chosen)


def weight_files(names: Collection[str], index: Mapping[str, Any] | None, where: str) -> list[str]:
    """The safetensors files, out of one folder's `names`, that together hold the model once.

    An unsplit `model.safetensors` decides, as in transformers: shards and an index next to it are those of an older
    upload. Then the index, shards by their names, and what else looks like a model. A repository often carries the same
    weights twice (`consolidated.safetensors`, a half-precision variant). A file that the index names is returned even
    when it is not in `names`, for the caller to report.

    Raises:
        CheckpointError: the index is malformed, a shard is missing, or there are only adapter weights.
    """
    stored = sorted(name for name in names if _of_model(name))
    if index is not None:
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{where}/{INDEX}: `weight_map` is not an object of tensor name to file name.")
        shards = sorted(set(weight_map.values()))
        if shards and ("model.safetensors" in shards or "model.safetensors" not in names):
            return shards
    if "model.safetensors" in stored:
        return ["model.safetensors"]
    groups: dict[tuple[str, int], list[str]] = {}
    for name in stored:
        if match := _SHARD.match(name):
            groups.setdefault((match["stem"], int(match["total"])), []).append(name)
    for (stem, total), shards in sorted(groups.items(), key=lambda item: not item[0][0].startswith("model")):
        if len(shards) != total:
            raise CheckpointError(
                f"{where}: {len(shards)} of {total} shards of {stem!r} are here and there is no {INDEX}. "
                "Fetch the missing shards."
            )
        return shards
    models = [name for name in stored if not _NOT_A_MODEL.match(name)]
    if stored and not models:
        raise CheckpointError(
            f"{where}: holds only {', '.join(stored)}, which is not a whole model. The weights of an adapter need "
            f"{ADAPTER_CONFIG} next to them."
        )
    preferred = [name for name in models if not name.startswith("consolidated")]
    return preferred or models


def weights_needed(names: Collection[str], read: Callable[[str], Any], where: str) -> list[str]:
    """The weight files of a whole checkpoint: the transformer's and those of its Dense modules, of every route.

    Args:
        names: every file of the checkpoint, relative to its root.
        read: gives the parsed JSON of one of them, None when absent.
    """
    listed = [entry for entry in read("modules.json") or [] if isinstance(entry, dict)]
    routes = read_routes(listed, read)
    if routes is None:
        found = _weights_of(names, read, where, listed)
    else:
        # Those of the routes that roles take; tables of weights have one file each.
        others = [expanded(listed, read, route) or [] for route in routes.others if route not in routes.static]
        pipelines = [expanded(listed, read) or [], *others]
        found = [name for entries in pipelines for name in _weights_of(names, read, where, entries)]
        found += [f"{folder}/model.safetensors" for folder in routes.static.values()]
    # Heads that bge-m3 has next to its pipeline.
    return list(
        dict.fromkeys([*found, *(f"{name}.safetensors" for name in HEADS_APART if f"{name}.safetensors" in names)])
    )


def _weights_of(
    names: Collection[str], read: Callable[[str], Any], where: str, entries: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The weight files of one pipeline."""
    body = next((module_folder(entry) for entry in entries if module_kind(entry) in BODIES), "")
    prefix = f"{body}/" if body else ""
    here = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    flat = {name for name in here if "/" not in name}
    adapter = [ADAPTER_WEIGHTS] if {ADAPTER_CONFIG, ADAPTER_WEIGHTS} <= flat else []
    # The base of an adapter that is alone is a checkpoint of its own.
    alone = bool(adapter) and not is_whole_model(flat)
    main = adapter if alone else weight_files(flat, read(f"{prefix}{INDEX}"), where) + adapter
    dense: list[str] = []
    for folder in [str(entry["path"]).strip("/") for entry in entries if module_kind(entry) == "Dense"]:
        inner = [name for name in names if name.startswith(f"{folder}/")]
        if any(name.endswith(UNSAFE_WEIGHTS) for name in inner):
            refuse_without_safetensors(inner, where)
        # Some conversions keep these matrices in the main file, and no weights here.
        dense += [name for name in inner if name == f"{folder}/model.safetensors"]
    return [f"{prefix}{name}" for name in main] + dense


def _of_model(name: str) -> bool:
    """Whether a file may hold weights of the model itself."""
    return name.endswith(".safetensors") and name.rsplit("/", 1)[-1].removesuffix(".safetensors") not in HEADS_APART


def is_whole_model(names: Iterable[str]) -> bool:
    """Whether the files of one folder may hold weights of a whole model, and not an adapter's alone."""
    return any(_of_model(name) and not _NOT_A_MODEL.match(name) for name in names)


def refuse_adapter_pickle(names: Iterable[str], where: str) -> None:
    """Say how to convert an adapter whose weights are a pickle only."""
    pickles = [name for name in names if name.startswith("adapter_model.") and name.endswith(UNSAFE_WEIGHTS)]
    if pickles:
        raise CheckpointError(
            f"{where}: the adapter's weights are only {shorten(pickles)}, which can run code when they are read, so "
            "archport never opens them. Convert them where you trust them: safetensors.torch.save_file(torch.load("
            f"{pickles[0]!r}, weights_only=True), {ADAPTER_WEIGHTS!r})."
        )


def refuse_without_safetensors(names: Iterable[str], where: str) -> None:
    """Say what a checkpoint without any safetensors file holds instead, and how to convert it."""
    listed = list(names)
    if any(_of_model(name) for name in listed):
        return
    if ADAPTER_CONFIG in listed:
        refuse_adapter_pickle(listed, where)
    pickles = sorted(name for name in listed if name.endswith(UNSAFE_WEIGHTS))
    gguf = sorted(name for name in listed if name.endswith(".gguf"))
    if pickles:
        raise CheckpointError(
            f"{where}: its weights are only {shorten(pickles)}, formats that can run code when they are read, so "
            "archport never opens them. Use a revision or a re-upload with *.safetensors (many repositories have one "
            "as a pull request: revision='refs/pr/<number>'), or convert it where you trust it: "
            "transformers.AutoModel.from_pretrained(...).save_pretrained(folder, safe_serialization=True)."
        )
    if gguf:
        raise CheckpointError(
            f"{where}: its weights are only {shorten(gguf)}; archport reads safetensors. "
            "Use the repository that the GGUF files were made from."
        )
    raise CheckpointError(f"{where}: holds no weights; expected model.safetensors or shards with {INDEX}.")


def shorten(items: Collection[str], limit: int = 8) -> str:
    """A list in words, cut after `limit` items with the count of the rest."""
    listed = list(items)
    tail = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + tail
