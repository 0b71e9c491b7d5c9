"""Runs models split over processes of this machine, with the ring backend, and brings back what each rank answered.

The same code as one `mlx.launch --backend ring -n 2` starts; here for checks that compare ranks with one process.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from archport import engine
from archport.contract import EmbeddingHead, InputError
from archport.running.encode import VARIABLE
from archport.testing.finding import find

# Of a run, imports included.
SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of one model.

    Args:
        folder: its checkpoint.
        plugin: the entry-point name or module of the only plugin that is asked.
        rows: token ids, which run as one request.
        texts: that are embedded, where the model's head makes vectors.
        pairs: (query, documents) that are ranked, where it scores pairs.
        new_tokens: greedy tokens after each row; 0 for none.
        options: of `engine.load`.
    """

    folder: str
    plugin: str
    rows: Sequence[Sequence[int]]
    texts: Sequence[str] = ()
    pairs: tuple[str, Sequence[str]] | None = None
    new_tokens: int = 0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Answered:
    """What one rank, or one process alone, answered; or why it refused.

    Args:
        arrays: by name.
        plan: of the rows, explained.
        bytes: of the weights that it holds.
        peaks: (measured, planned) bytes of each batch; none where memory was not verified.
    """

    arrays: Mapping[str, np.ndarray]
    plan: str = ""
    bytes: int = 0
    refused: str = ""
    peaks: Sequence[Sequence[int]] = ()


class _Readings(logging.Handler):
    """Collects what a run took beside what its plan said."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: list[tuple[int, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        reading = getattr(record, "reading", None)
        if reading is not None:
            self.peaks.append((reading.measured, reading.planned))


def answered(asked: Asked, **options: Any) -> Answered:
    """What this process answers, together with its group where `tensor_parallel` is among the options."""
    readings = _Readings()
    logging.getLogger("archport").addHandler(readings)
    try:
        model = engine.load(asked.folder, plugins=(find(asked.plugin),), **{**asked.options, **options})
    except InputError as error:
        return Answered({}, refused=str(error))
    longest = max(map(len, asked.rows))
    ids, real = np.zeros((2, len(asked.rows), longest), np.int64)
    for at, row in enumerate(asked.rows):
        ids[at, : len(row)], real[at, : len(row)] = row, 1
    arrays = {"hidden": np.array(model.forward(ids, real).astype(mx.float32))}
    if asked.texts and isinstance(model.head, EmbeddingHead):
        arrays["vectors"] = model.embed(list(asked.texts))
    if asked.pairs and "rerank" in model.spec.tasks:
        query, documents = asked.pairs
        scores = {each.index: each.score for each in model.rerank(query, list(documents))}
        arrays["scores"] = np.array([scores[at] for at in range(len(documents))])
    if asked.new_tokens:
        rows = [list(row) for row in asked.rows]
        greedy = model.generate(rows, max_tokens=asked.new_tokens, min_tokens=asked.new_tokens)
        arrays["greedy"] = np.array([each.tokens for each in greedy])
        drawn = model.generate(rows, max_tokens=asked.new_tokens, min_tokens=asked.new_tokens, temperature=1.0)
        arrays["drawn"] = np.array([each.tokens for each in drawn])
    plan = model.plan([len(row) for row in asked.rows])
    logging.getLogger("archport").removeHandler(readings)
    return Answered(arrays, plan.explain(), plan.bytes["weights"], peaks=readings.peaks)


def on_ranks(asked: Sequence[Asked], count: int = 2) -> list[list[Answered]]:
    """What each rank answers, for each that is asked, in processes of their own.

    Raises:
        RuntimeError: a process failed, or all took longer than five minutes; the message ends with what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="archport-ranks-") as home:
        (Path(home) / "asked.json").write_text(json.dumps([_as_json(each) for each in asked]), encoding="utf-8")
        start(["-m", "archport.testing.ranks", home], count, Path(home))
        return [[_load(Path(home), rank, at) for rank in range(count)] for at in range(len(asked))]


def start(arguments: Sequence[str], count: int, home: Path, seconds: float = SECONDS) -> None:
    """Run Python with these arguments on every rank of a ring, and wait for all.

    Raises:
        RuntimeError: see `on_ranks`.
    """
    hosts = home / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(count)]), encoding="utf-8")
    logs = [home / f"rank{rank}.log" for rank in range(count)]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank, log in enumerate(logs):
            environment = {**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(hosts), VARIABLE: "1"}
            environment["PYTHONPATH"] = os.pathsep.join(each for each in sys.path if each)
            with log.open("wb") as file:
                command = [sys.executable, *arguments]
                processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
        for process in processes:
            process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    for rank, (process, log) in enumerate(zip(processes, logs, strict=True)):
        if process.returncode:
            said = log.read_text(encoding="utf-8", errors="replace").strip()
            raise RuntimeError(f"rank {rank} of {count} ended with {process.returncode}: {said[-1500:]}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _as_json(asked: Asked) -> dict[str, Any]:
    return {name: getattr(asked, name) for name in Asked.__dataclass_fields__}


def _load(home: Path, rank: int, at: int) -> Answered:
    with np.load(home / f"{at}.{rank}.npz") as found:
        arrays = dict(found)
    return Answered(arrays, **json.loads((home / f"{at}.{rank}.json").read_text(encoding="utf-8")))


def main(home: Path) -> None:
    """Answer what was asked, as one rank; leaves a file of arrays and one of words for each."""
    rank = os.environ["MLX_RANK"]
    for at, asked in enumerate(json.loads((home / "asked.json").read_text(encoding="utf-8"))):
        found = answered(Asked(**asked), tensor_parallel=True)
        np.savez(home / f"{at}.{rank}.npz", allow_pickle=False, **dict(found.arrays))
        words = {"plan": found.plan, "bytes": found.bytes, "refused": found.refused, "peaks": found.peaks}
        (home / f"{at}.{rank}.json").write_text(json.dumps(words), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
