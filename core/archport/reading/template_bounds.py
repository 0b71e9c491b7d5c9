"""What a chat template may spend: a meter that every growing operation of a template pays before or just after it runs.

A template is a program from the internet. It pays in bytes that it makes and in steps that it takes; a clock stands
behind both, for operations that are slow for their size. Knows which operations of Python grow, and nothing of jinja's
syntax or of messages.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from sys import getsizeof
from typing import Any

from jinja2.utils import Namespace

# What a template may make, and what it may make more for every byte of the messages. Published templates make two to
# twenty times their messages. All that is alive at one time is at most what was paid.
BYTES, BYTES_PER_BYTE = 64 << 20, 32
# Seconds of this thread, and more of them for every byte of the messages.
SECONDS, SECONDS_PER_BYTE = 1.0, 1e-6
# A block of statements that runs, a call, a value inside another: what takes a microsecond is as dear as so many bytes.
STEP = 256
# A short text, with its place in a list.
_PIECE = 64
# Levels of lists in lists; Python's own recursion ends at a thousand.
DEPTH = 400
# What a text of a value may have for every byte of it: "\u0000" has six letters.
ESCAPED = 6
# Bits of an integer, letters of a pattern, and comparisons of letters in one search.
BITS, PATTERN, COMPARISONS = 1 << 16, 10_000, 200_000_000

SCALARS = frozenset({str, int, float, bool, type(None)})
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))
_MANY = (list, tuple, set, frozenset, *_VIEWS)
_CONVERSION = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(\*|\d+)?(?:\.(\*|\d+)?)?")
# What `str.split` splits at by itself.
_SPACES = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
_NUMBER = re.compile(r"\d+")


class TooMuch(Exception):
    """A template went past its bounds, or asks for something that can't be bounded."""


class Meter:
    """What one rendering may still spend.

    Args:
        given: bytes of the messages and of all else that the template is given.
    """

    __slots__ = ("_end", "_left", "_look", "_seconds", "_ticks")

    def __init__(self, given: int) -> None:
        self._left = BYTES + BYTES_PER_BYTE * given
        self._seconds = SECONDS + SECONDS_PER_BYTE * given
        self._end: float | None = None
        # What a template that means well never reaches, so that it does not pay for the thread's clock, which is slow.
        self._look = time.perf_counter() + SECONDS / 10
        self._ticks = 0

    def pay(self, amount: int) -> None:
        """Pay for so many bytes, before they are made where they may be many.

        Raises:
            TooMuch: there is not so much left, in bytes or in time.
        """
        self._left -= amount
        self._ticks += 1
        if self._left < 0:
            raise TooMuch("it makes more text, or takes more steps, than these messages can need")
        if (amount > 4096 or not self._ticks & 31) and time.perf_counter() > self._look:
            self._check_time()

    def _check_time(self) -> None:
        used = time.thread_time()
        if self._end is None:
            self._end = used + self._seconds
        if used > self._end:
            raise TooMuch("it runs longer than these messages can need")
        # Others may have the processor meanwhile.
        self._look = time.perf_counter() + self._end - used

    def made(self, value: Any) -> Any:
        """The value, paid: itself, not what it holds."""
        kind = type(value)
        if kind is str or isinstance(value, Sized):
            self.pay(getsizeof(value))
        return value

    def whole(self, value: Any, times: int = 1) -> int:
        """Pay for a value with all that it holds, `times` over, before it is compared, hashed or written.

        A list that holds one list twice, which holds another twice, and so on, is small and has no end when it is read.
        """
        if type(value) in SCALARS:
            return 0
        size, depth = extent(value, self._left // times)
        self.pay(size * times)
        return depth

    def text(self, value: Any) -> str:
        """A value as text."""
        if not isinstance(value, str):
            self.whole(value, ESCAPED)
            value = str(value)
        self.pay(getsizeof(value))
        return value


def extent(value: Any, most: int) -> tuple[int, int]:
    """(bytes of a value with all that it holds, counted as often as it holds it; levels of lists in lists).

    Raises:
        TooMuch: more than `most`, or very deep.
    """
    size, depth, waiting = 0, 0, [iter((value,))]
    while waiting:
        depth = max(depth, len(waiting))
        for inner in waiting[-1]:
            if isinstance(inner, str | bytes):
                size += getsizeof(inner)
                continue
            size += STEP
            if isinstance(inner, dict):
                waiting.append(iter([*inner.keys(), *inner.values()]))
            elif isinstance(inner, _MANY):
                waiting.append(iter(inner))
            elif isinstance(inner, Namespace):
                waiting.append(iter(_attributes(inner).values()))
            else:
                continue
            break
        else:
            waiting.pop()
        if size > most or len(waiting) > DEPTH:
            raise TooMuch("it makes values that hold more than these messages can need")
    return size, depth


def _attributes(space: Namespace) -> Mapping[str, Any]:
    return object.__getattribute__(space, "_Namespace__attrs")


def compare(count: int) -> None:
    """Refuse a search that compares too many letters: searches from the right are not linear."""
    if count > COMPARISONS:
        raise TooMuch("it searches a long text for a long text")


def count_of(value: Any) -> int:
    """A number of letters or times that a template names; what is none is left for the operation to refuse."""
    return max(0, value) if isinstance(value, int) else 0


def plus(meter: Meter, left: Any, right: Any) -> Any:
    # What comes of it is at most both together, which are paid.
    return meter.made(left + right)


def times(meter: Meter, left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _bits(left.bit_length() + right.bit_length())
    for value, count in ((left, right), (right, left)):
        if isinstance(value, Sized) and isinstance(count, int):
            meter.pay(getsizeof(value) * count_of(count))
    return left * right


def power(_: Meter, left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _bits(left.bit_length() * abs(right))
    return left**right


def _bits(count: int) -> None:
    if count > BITS:
        raise TooMuch(f"it makes an integer of {count:,} bits")


def modulo(meter: Meter, left: Any, right: Any) -> Any:
    if isinstance(left, str | bytes):
        fill(meter, left, right)
    return left % right


def fill(meter: Meter, pattern: str | bytes, values: Any) -> None:
    """Pay for `pattern % values`."""
    if len(pattern) > PATTERN:
        raise TooMuch("it formats with a pattern of " + f"{len(pattern):,} letters")
    if isinstance(pattern, bytes):
        pattern = pattern.decode("latin-1")
    given = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
    longest, star = 0, 0
    for value in (*given, values if isinstance(values, dict) else None):
        longest = max(longest, _written(meter, value))
        star = max(star, abs(value) if isinstance(value, int) else 0)
    total = len(pattern)
    for match in _CONVERSION.finditer(pattern):
        widths = [star if found == "*" else _digits(found) for found in match.groups() if found]
        total += sum(widths) + longest
    meter.pay(4 * total)


def _written(meter: Meter, value: Any) -> int:
    """Letters that a value has when it is written."""
    if isinstance(value, str | bytes):
        return ESCAPED * len(value)
    if isinstance(value, int):
        return value.bit_length() + 8
    if isinstance(value, float):
        return 400
    meter.whole(value, ESCAPED)
    return len(str(value))


def _digits(text: str) -> int:
    if len(text) > 9:
        raise TooMuch(f"it formats with a width of {len(text)} digits")
    return int(text)


def widths(meter: Meter, spec: str) -> None:
    """Pay for the widths and precisions that a format's specification names."""
    meter.pay(4 * sum(_digits(found) for found in _NUMBER.findall(spec)))


def joined(meter: Meter, separator: str | bytes, items: Iterable[Any]) -> Iterable[Any]:
    """The items of a join, paid."""
    several = items if isinstance(items, list | tuple | dict) else list(items)
    meter.pay((8 + getsizeof(separator)) * len(several))
    for item in several:
        meter.pay(getsizeof(item) if isinstance(item, str | bytes) else 0)
        meter.whole(item, ESCAPED)
    return several


def _padded(meter: Meter, _: Any, width: Any = 0, *rest: Any) -> None:
    meter.pay(4 * count_of(width))


def _replaced(meter: Meter, text: Any, old: Any = None, new: Any = None, count: Any = -1) -> None:
    if isinstance(old, str | bytes) and isinstance(new, str | bytes):
        meter.pay(text.count(old) * getsizeof(new))


def _expanded(meter: Meter, text: Any, tabsize: Any = 8) -> None:
    meter.pay(4 * text.count(b"\t" if isinstance(text, bytes) else "\t") * count_of(tabsize))


def _translated(meter: Meter, text: Any, table: Any = None, *rest: Any, **more: Any) -> None:
    if isinstance(table, dict):
        longest = max((getsizeof(value) for value in table.values() if isinstance(value, str)), default=4)
        meter.pay(len(text) * longest)


def _from_right(_: Meter, text: Any, needle: Any = None, *rest: Any, sep: Any = None, **more: Any) -> None:
    sought = needle if needle is not None else sep
    compare(len(text) * len(sought) if isinstance(sought, str | bytes) else 0)


def _encoded(meter: Meter, text: Any, encoding: Any = "utf-8", *rest: Any, **more: Any) -> None:
    meter.pay(4 * len(text))
    # Some codecs are programs of their own, and slow.
    compare(len(text) * (1 if str(encoding).lower().startswith(("utf", "ascii", "latin")) else 10_000))


def _to_bytes(meter: Meter, _: Any, length: Any = 1, *rest: Any, **more: Any) -> None:
    meter.pay(count_of(length))


def _split(meter: Meter, text: Any, sep: Any = None, *rest: Any, **more: Any) -> None:
    given = isinstance(sep, str | bytes) and sep
    spaces: Any = (b" ", b"\n", b"\t", b"\r", b"\x0b", b"\x0c") if isinstance(text, bytes) else _SPACES
    ends: Any = (sep,) if given else spaces
    meter.pay(_PIECE * sum(text.count(each) for each in ends))


def _rsplit(meter: Meter, text: Any, sep: Any = None, *rest: Any, **more: Any) -> None:
    _from_right(meter, text, sep)
    _split(meter, text, sep)


def _lines(meter: Meter, text: Any, *rest: Any, **more: Any) -> None:
    ends: Any = (b"\n", b"\r") if isinstance(text, bytes) else "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    meter.pay(_PIECE * sum(text.count(end) for end in ends))


def _free(*_: Any, **__: Any) -> None:
    """At most a few times what is there already."""


# Methods of texts, numbers, lists and mappings that templates may call, and what each pays before it runs.
METHODS: Mapping[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
    **dict.fromkeys(("lstrip", "rstrip", "strip", "rfind", "rindex", "rpartition"), _from_right),
    **dict.fromkeys(
        """as_integer_ratio bit_count bit_length capitalize casefold conjugate copy count decode endswith find fromhex
        fromkeys from_bytes get hex index is_integer isalnum isalpha isascii isdecimal isdigit isidentifier islower
        isnumeric isprintable isspace istitle isupper items keys lower maketrans partition removeprefix removesuffix
        startswith striptags swapcase title unescape upper values escape isdisjoint""".split(),  # noqa: SIM905
        _free,
    ),
    "replace": _replaced,
    "expandtabs": _expanded,
    "translate": _translated,
    "encode": _encoded,
    "to_bytes": _to_bytes,
    "split": _split,
    "rsplit": _rsplit,
    "splitlines": _lines,
}
