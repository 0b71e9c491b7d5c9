"""What the library says in the words of the command line: flags instead of arguments, lines instead of indices.

Knows how messages are written, and no single one of them.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps

from archport.cli import FAILED, NO_MEMORY, USAGE
from archport.contract import ArchportError, BufferTooLarge, DeviceFailure, InputError, MemoryBudgetExceeded

# "text 3", as the library calls the fourth one.
_ROW = re.compile(r"\b(?:text|document|input|prompt) (\d+)\b")
_VALUE = r"""=(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<several>[(\[{][^()\[\]{}]*[)\]}])|(?P<bare>[\w.+-]*\w)?)"""
_PLAIN = re.compile(r"[\w.+-]+")
_METHOD = re.compile(r"\bModel\.(embed|rerank|generate|plan)\b")
# What flags are called otherwise in the library.
_OTHERWISE = {"stop_token_ids": "stop_token_id", "new_tokens": "new", "memory_budget": "budget", "lengths": "tokens"}
# Where an error keeps how it is said.
_WORDS = "_words_of_the_command_line"
# Advice that only a program can follow.
_CODE = re.compile(r"[;.] Repair it, for example with \S+\([^)]*\)\.decode\(\)")


def message_and_code(error: BaseException) -> tuple[str, int]:
    """What to print about a failure, and the exit code it has."""
    if isinstance(error, ArchportError):
        said = str(error)
        for words in error.__dict__.get(_WORDS, ()):
            said = words(said)
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", ()))
        return f"{said}{notes}", _code(error, said)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_allocation(str(error))):
        return f"this machine has no memory left for it ({error}); give a smaller --memory-budget or input", NO_MEMORY
    if isinstance(error, OSError) and error.strerror:
        what = "standard output" if error.filename is None else repr(error.filename)
        return f"{what} can't be read or written: {error.strerror}", FAILED
    first = (str(error).splitlines() or [""])[0]
    return (
        f"a fault of archport or of a plugin, {type(error).__name__}: {first:.300}. Please report it, with what "
        "ARCHPORT_TRACEBACK=1 prints"
    ), FAILED


def _code(error: ArchportError, said: str) -> int:
    full = isinstance(error, DeviceFailure) and error.code == "device_out_of_memory"
    if full or isinstance(error, MemoryBudgetExceeded | BufferTooLarge):
        return NO_MEMORY
    # A message that begins with a flag is about its value, unless the value is a file that can't be read.
    wrong_value = isinstance(error, InputError) and said.startswith("--") and not isinstance(error.__cause__, OSError)
    return USAGE if wrong_value else FAILED


def _is_allocation(message: str) -> bool:
    return "malloc" in message or "out of memory" in message.lower()


def spoken(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose errors name its flags where the library names its arguments."""
    names = list(inspect.signature(command).parameters)

    @wraps(command)
    def call(*args: object, **options: object) -> None:
        with _reworded(lambda text: in_flags(text, names)):
            try:
                command(*args, **options)
            except EOFError as error:
                # The library of the command line takes this one for a key that was pressed.
                raise InputError(f"a file or standard input ends too early ({error})") from error

    return call


@contextmanager
def rows_called(called: Callable[[int], str]) -> Iterator[None]:
    """Errors inside name a text, document or prompt as the user knows it.

    Args:
        called: how it is called, by its index.
    """
    with _reworded(lambda text: _ROW.sub(lambda found: called(int(found[1])), text)):
        yield


def skipped(
    command: Callable[..., None], errors: Mapping[int, ArchportError], called: Callable[[int], str]
) -> Iterator[str]:
    """What to print about rows that a command passed over.

    Args:
        command: whose flags the messages name.
        errors: by the row's index.
        called: how a row is called, by its index.
    """
    names = list(inspect.signature(command).parameters)
    for error in errors.values():
        yield in_flags(_ROW.sub(lambda found: called(int(found[1])), str(error)), names)


@contextmanager
def _reworded(words: Callable[[str], str]) -> Iterator[None]:
    try:
        yield
    except ArchportError as error:
        # The error itself stays as the library wrote it, and takes along how it is said here.
        error.__dict__[_WORDS] = [*error.__dict__.get(_WORDS, ()), words]
        raise


def in_flags(text: str, names: list[str]) -> str:
    """A message with `--max-tokens 9` for `max_tokens=9`.

    Args:
        names: the command's parameters.
    """
    flags = {name: f"--{name.replace('_', '-')}" for name in names}
    others = {name: own for name, own in _OTHERWISE.items() if own in names and name not in names}
    flags |= {name: f"--{own.replace('_', '-')}" for name, own in others.items()}
    for name, flag in flags.items():
        text = re.sub(rf"(?<![\w-]){name}{_VALUE}", lambda found, flag=flag: _given(flag, found), text)
        # Without a value only what can't be an English word.
        if "_" in name:
            text = re.sub(rf"(?<![\w-]){name}\b(?!=)", flag, text)
    return _CODE.sub("", _METHOD.sub(r"`archport \1`", text))


def _given(flag: str, found: re.Match[str]) -> str:
    """A flag with the value that an argument has in a message; with several values, as often as it was given."""
    if found["several"] is None:
        return f"{flag}{_value(found)}"
    try:
        values = ast.literal_eval(found["several"])
    except (SyntaxError, ValueError):
        values = ()
    # What was cut short, and what is no list of flags, stays as it is.
    if not isinstance(values, tuple | list) or not values or ... in values:
        return f"{flag} {found['several']}"
    return " ".join(f"{flag} {each if _PLAIN.fullmatch(str(each)) else repr(each)}" for each in values)


def _value(found: re.Match[str]) -> str:
    """The value that an argument has in a message, as a shell takes it."""
    quoted = found["single"] if found["single"] is not None else found["double"]
    if found["bare"] == "True":
        return ""
    if quoted is None:
        return f" {found['bare']}" if found["bare"] else ""
    return f" {quoted if _PLAIN.fullmatch(quoted) else repr(quoted)}"
