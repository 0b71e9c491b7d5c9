"""Examples of plugins as checkpoints to be damaged, and the message with which a damaged one is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archport import engine
from archport.contract import ArchportError, PluginError
from archport.contract.plugins import discover
from archport.testing.subject import Subject


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a plugin's example, by the beginning of its name, written once."""
    tinies = [tiny for plugin in discover() if plugin.error is None for tiny in Subject(plugin).tinies]

    def folder(name: str) -> Path:
        return next(tiny for tiny in tinies if tiny.example.name.startswith(name)).folder

    return folder


@pytest.fixture
def damaged(tmp_path: Path, intact: Callable[[str], Path]) -> Callable[..., Path]:
    """A copy of an example, `damaged(file, change)`: change edits the parsed JSON, or is the new content."""

    def make(file: str = "config.json", change: Any = None, *, base: str = "bert, learned", **entries: Any) -> Path:
        folder = tmp_path / "tiny-embedding"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(intact(base), folder)
        path = folder / file
        if isinstance(change, str | bytes):
            path.write_bytes(change.encode() if isinstance(change, str) else change)
        else:
            value = json.loads(path.read_text()) if path.exists() else {}
            value.update(entries)
            if change is not None:
                change(value)
            path.write_text(json.dumps(value))
        return folder

    return make


def refusal(folder: Path, text: str = "hello") -> str:
    """The message with which a checkpoint is refused at load or at first use, within two seconds."""
    # Of this thread: a GPU's driver has threads that wait busily.
    start = time.thread_time()
    with pytest.raises(ArchportError) as refused:
        engine.load(folder).embed(text)
    assert time.thread_time() - start < 2
    assert not isinstance(refused.value, PluginError)
    assert "failed while looking" not in str(refused.value)
    return str(refused.value)
