"""Reading a checkpoint's small files: regular ones inside its folder only, of bounded size, and JSON of bounded shape.

Whoever made the files is a stranger. A file that is a pipe, a device, a link out of the folder, too large, too deep or
in another encoding is a CheckpointError that names it. Knows no layout and no meaning of a key.
"""

from __future__ import annotations

import functools
import json
import os
import re
import site
import stat
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any

from archport.contract.errors import CheckpointError

MIB = 1 << 20
# Bytes that are read of a file. The largest published index has 9 MB, the largest tokenizer 33.
LARGEST_JSON, LARGEST_TOKENIZER, LARGEST_TEXT = 16 * MIB, 128 * MIB, 64 * MIB
# A list of nothing takes 3 bytes in a file and 64 in memory; the largest vocabulary that is read has 901,629 entries.
MOST_CONTAINERS = 1_000_000
# The same vocabulary has two commas for each of them; no published one that is an object has a third as many names.
MOST_ENTRIES, MOST_NAMES = 2_000_000, 1_000_000
# Far deeper than any published file, and far from the end of Python's stack.
DEEPEST = 64
# The largest published number has 30 digits: it stands for "no limit".
MOST_DIGITS = 64
_TOO_LARGE = 10**MOST_DIGITS
# Of a name on the systems that archport runs on.
_LONGEST_NAME, _LONGEST_PATH = 255, 1024
_HALF_OF_A_PAIR = re.compile("[\ud800-\udfff]")
_SPELLED_HALF = re.compile(r"\\u[dD][89a-fA-F]")

# What `masked` puts into a file, and the files that were read, while somebody looks for the fault of an error.
_masked: ContextVar[tuple[str, tuple[str, ...], Any] | None] = ContextVar("archport masked key", default=None)
_read: ContextVar[dict[str, Any] | None] = ContextVar("archport files read", default=None)
REMOVED: Any = object()


def inside(folder: Path, relative: str, asked_by: str) -> Path:
    """The path of a file inside `folder`; one that leads out of it, by name or by link, is a CheckpointError.

    The hub cache keeps its files as links to its own blobs, and installers may link what they put into site-packages.
    """
    path = PurePosixPath(relative)
    windows_drive = bool(re.match(r"^[A-Za-z]:", relative))
    if path.is_absolute() or windows_drive or "\\" in relative or "\0" in relative or ".." in path.parts:
        raise CheckpointError(
            f"{folder}: {asked_by} asks for {relative!r}, which is not a path inside the checkpoint. "
            "Nothing outside the folder is read; the checkpoint is damaged or hostile."
        )
    if len(relative) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise CheckpointError(f"{folder}: {asked_by} asks for {relative[:80]!r}..., which is too long for a path.")
    found = folder.joinpath(*path.parts)
    # Most paths have no link below the folder, which is quickly seen.
    if not any(os.path.islink(os.path.join(folder, *path.parts[: at + 1])) for at in range(len(path.parts))):
        return found
    real, root = os.path.realpath(found), _root(folder)
    if root is not None and real != root and not real.startswith(root.rstrip(os.sep) + os.sep):
        raise CheckpointError(
            f"{found}: is a link to {real}, outside the checkpoint. Nothing outside the folder is read: put a copy of "
            "the file in the link's place, or pass the folder that holds the files."
        )
    return found


def _root(folder: Path) -> str | None:
    """The folder that links may not leave; None where an installer put the files."""
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots" and place.parent.parent.name.startswith("models--"):
            return os.path.realpath(place.parent.parent)
    if any(folder.is_relative_to(place) for place in _installed()):
        return None
    return os.path.realpath(folder)


@functools.cache
def _installed() -> frozenset[str]:
    """Where installers of this Python put files."""
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    return frozenset({*places, site.getusersitepackages()} - {""})


def files_in(folder: Path) -> list[str]:
    """The names of what is in a folder and is no folder, sorted.

    Raises:
        CheckpointError: it can't be listed.
    """
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_symlink() or not entry.is_dir())
    except OSError as error:
        raise CheckpointError(f"{folder}: can't be listed ({error.strerror}).") from error


def read_bytes(path: Path, most: int) -> bytes | None:
    """The content of a file, None when it is absent.

    Args:
        most: bytes that it may have.

    Raises:
        CheckpointError: no regular file, too large, or not readable.
    """
    try:
        # Asked before it is opened: opening a device may do something.
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            raise CheckpointError(f"{path}: is {_named(kind)}; expected a regular file.")
        # Should it become a pipe meanwhile, nobody waits for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            content = file.read(most + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}). Fetch the file again.") from error
    if len(content) > most:
        raise CheckpointError(f"{path}: has more than {most:,} bytes, the most that archport reads of such a file.")
    return content


def _named(mode: int) -> str:
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe (FIFO)"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for test, name in kinds if test(mode)), "no file")


def read_text(path: Path, most: int = LARGEST_TEXT) -> str | None:
    """A file's text, None when it is absent; what is not UTF-8 is a CheckpointError."""
    content = read_bytes(path, most)
    if content is None:
        return None
    try:
        # Some editors put a byte order mark in front.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = " It looks like UTF-16." if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise CheckpointError(f"{path}: can't be read as UTF-8 text ({error}).{hint} Fetch the file again.") from error
    if text.startswith("version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the file itself. Run `git lfs pull` in its repository."
        )
    return text


def read_json(path: Path, most: int = LARGEST_JSON) -> Any:
    """A JSON file's value, None when the file is absent; what is no JSON of a sane shape is a CheckpointError."""
    text = read_text(path, most)
    if text is None:
        return None
    value = parse_json(str(path), text)
    if value is None:
        raise CheckpointError(f"{path}: holds null; expected an object or a list. Fetch the file again, or remove it.")
    seen, mask = _read.get(), _masked.get()
    if seen is not None:
        seen[str(path)] = value
    if mask is not None and mask[0] == str(path):
        if not mask[1]:
            return None
        holder = value
        for key in mask[1][:-1]:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict):
            holder.pop(mask[1][-1], None)
            if mask[2] is not REMOVED:
                holder[mask[1][-1]] = mask[2]
    return value


def read_object(path: Path, most: int = LARGEST_JSON) -> dict[str, Any] | None:
    """A JSON file that must hold an object, None when the file is absent."""
    value = read_json(path, most)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__}; expected an object ({{...}}).")
    return value


def parse_json(
    where: str, text: str, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None, form: str = "valid JSON"
) -> Any:
    """The value of a JSON text.

    Args:
        where: how messages call its file.
        pairs: what makes an object of its pairs; a dict where left out.
        form: what messages expect.

    Raises:
        CheckpointError: not JSON; or deeper, longer, or with larger numbers than any file has, naming the key.
    """
    containers = text.count("[") + text.count("{")
    if containers > MOST_CONTAINERS:
        raise CheckpointError(f"{where}: holds {containers:,} lists and objects; expected at most {MOST_CONTAINERS:,}.")
    check_entries(where, text)
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=_integer)
    except RecursionError as error:
        raise CheckpointError(f"{where}: not {form}: its lists and objects lie too deep in each other.") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where}: not {form} ({error}). Fetch the file again.") from error
    _check_shape(where, value, halves=_SPELLED_HALF.search(text) is not None)
    return value


def check_entries(where: str, text: str) -> None:
    """Refuse JSON of more entries than any published file has, before it is parsed.

    Raises:
        CheckpointError: naming the file.
    """
    for sign, what, most in ((",", "entries", MOST_ENTRIES), (":", "names", MOST_NAMES)):
        if (count := text.count(sign)) > most:
            raise CheckpointError(f"{where}: holds {count:,} {what}; expected at most {most:,}.")


def _integer(digits: str) -> int:
    # Python refuses thousands of digits without a place; so many are refused below, with their key.
    return int(digits if len(digits) <= MOST_DIGITS else "9" * (MOST_DIGITS + 1))


def _check_shape(where: str, value: Any, *, halves: bool) -> None:
    """Refuse what would fall later: depth, numbers of very many digits, and text that has no encoding."""
    level: list[tuple[str, Any]] = [("", value)]
    for _ in range(DEEPEST):
        if not level:
            return
        deeper: list[tuple[str, Any]] = []
        for key, entry in level:
            entries = entry.items() if isinstance(entry, dict) else enumerate(entry) if isinstance(entry, list) else ()
            for name, item in entries:
                if isinstance(item, dict | list):
                    deeper.append((f"{key}.{name}" if key else f"{name}", item))
                elif type(item) is int and not -_TOO_LARGE < item < _TOO_LARGE:
                    raise CheckpointError(
                        f"{where}: {key}{'.' * bool(key)}{name} is a number of more than {MOST_DIGITS} digits."
                    )
                elif halves and any(isinstance(text, str) and _HALF_OF_A_PAIR.search(text) for text in (name, item)):
                    shown = f"{key}{'.' * bool(key)}{name}".encode("ascii", "backslashreplace").decode()
                    raise CheckpointError(
                        f"{where}: {shown} holds half of a surrogate pair, which is no text; expected whole characters."
                    )
        level = deeper
    if level:
        raise CheckpointError(
            f"{where}: {level[0][0][:60]} lies more than {DEEPEST} lists and objects deep; expected at most so many."
        )


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """The JSON files that are read meanwhile, each with its value."""
    found: dict[str, Any] = {}
    token = _read.set(found)
    try:
        yield found
    finally:
        _read.reset(token)


@contextmanager
def masked(path: str, keys: tuple[str, ...], value: Any = REMOVED) -> Iterator[None]:
    """Read a file meanwhile as if the entry that these keys lead to were another, or absent; without keys, the file."""
    token = _masked.set((path, keys, value))
    try:
        yield
    finally:
        _masked.reset(token)
