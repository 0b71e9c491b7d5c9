"""What jinja2's filters cost: a check for each that grows or is slow, which pays before the filter runs.

A check has the parameters of its filter. It gives the value back, in a form that can be read twice where it was a
stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from sys import getsizeof
from typing import Any

from archport.reading.template_bounds import ESCAPED, STEP, Meter, TooMuch, count_of, fill, joined

# Filters that look at no more than their value's own items, or at each of them by another filter.
SHALLOW = frozenset(
    """attr batch count d default first items join last length list map random reject rejectattr reverse safe select
    selectattr slice""".split()  # noqa: SIM905
)
# Tests that compare.
DEEP_TESTS = (
    "==",
    "eq",
    "equalto",
    "!=",
    "ne",
    ">",
    "gt",
    "greaterthan",
    ">=",
    "ge",
    "<",
    "lt",
    "lessthan",
    "<=",
    "le",
    "in",
)
# Letters that jinja2's slow filters get: they take a second for so many.
_SLOW = 200_000
_ROWS = 100_000


def _listed(meter: Meter, value: Any, *_: Any, **__: Any) -> Any:
    """Pay for a list of the items."""
    if isinstance(value, str | bytes):
        meter.pay(8 * len(value))
        return value
    if isinstance(value, Sized) or not isinstance(value, Iterable):
        meter.pay(8 * len(value) if isinstance(value, Sized) else 0)
        return value
    items = list(value)
    meter.pay(STEP * len(items))
    return items


def _read(meter: Meter, value: Any, *_: Any, **__: Any) -> Any:
    """Pay for the items with all that they hold, and for the time that it takes to put them in order."""
    items = _listed(meter, value)
    meter.whole(items)
    meter.pay(2 * STEP * len(items) if isinstance(items, Sized) else 0)
    return items


def _text(meter: Meter, value: Any, *_: Any, **__: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    meter.pay(getsizeof(text))
    return text


def _slow(meter: Meter, value: Any, *_: Any, **__: Any) -> Any:
    if len(_text(meter, value)) > _SLOW:
        raise TooMuch(f"it hands more than {_SLOW:,} letters to a slow filter")
    return value


def _escaped(meter: Meter, value: Any, *_: Any, **__: Any) -> Any:
    meter.pay(ESCAPED * len(_text(meter, value)))
    return value


def _center(meter: Meter, value: Any, width: Any = 80) -> Any:
    meter.pay(4 * count_of(width))
    return value


def _indent(meter: Meter, value: Any, width: Any = 4, first: Any = False, blank: Any = False) -> Any:
    wide = len(width) if isinstance(width, str) else count_of(width)
    meter.pay(4 * wide * (sum(map(_text(meter, value).count, "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")) + 1))
    return value


def _wordwrap(
    meter: Meter,
    value: Any,
    width: Any = 79,
    break_long_words: Any = True,
    wrapstring: Any = None,
    break_on_hyphens: Any = True,
) -> Any:
    _slow(meter, value)
    meter.pay(len(_text(meter, value)) * (len(wrapstring) if isinstance(wrapstring, str) else 1))
    return value


def _batch(meter: Meter, value: Any, linecount: Any = 1, fill_with: Any = None) -> Any:
    if count_of(linecount) > _ROWS:
        raise TooMuch(f"it makes rows of {linecount:,} items")
    meter.pay(8 * count_of(linecount))
    return _listed(meter, value)


def _slice(meter: Meter, value: Any, slices: Any = 1, fill_with: Any = None) -> Any:
    if count_of(slices) > _ROWS:
        raise TooMuch(f"it makes {slices:,} rows")
    meter.pay(STEP * count_of(slices))
    return _listed(meter, value)


def _joined(meter: Meter, value: Any, d: Any = "", attribute: Any = None) -> Any:
    separator, items = d if isinstance(d, str) else str(d), _listed(meter, value)
    if not isinstance(items, Iterable):
        return items
    if attribute is not None:
        # An attribute of an item is at most the item.
        meter.whole(items, ESCAPED)
    return joined(meter, separator, items)


def _replaced(meter: Meter, value: Any, old: Any = "", new: Any = "", count: Any = None) -> Any:
    if isinstance(new, str):
        meter.pay(ESCAPED * (_text(meter, value).count(str(old))) * len(new))
    return value


def _formatted(meter: Meter, value: Any, *args: Any, **kwargs: Any) -> Any:
    fill(meter, _text(meter, value), kwargs or args)
    return value


def _rounded(_: Meter, value: Any, precision: Any = 0, method: Any = "common") -> Any:
    if isinstance(precision, int) and abs(precision) > 1000:
        raise TooMuch("it rounds to more than 1,000 places")
    return value


def _summed(meter: Meter, value: Any, attribute: Any = None, start: Any = 0) -> Any:
    items = _listed(meter, value)
    if not isinstance(start, int | float):
        # Lists that are added are copied every time.
        size = getsizeof(start)
        for item in items:
            size += getsizeof(item)
            meter.pay(size)
    return items


def _printed(meter: Meter, value: Any) -> Any:
    _slow(meter, repr(value))
    return value


def _truncated(
    meter: Meter, value: Any, length: Any = 255, killwords: Any = False, end: Any = "...", leeway: Any = None
) -> Any:
    meter.pay(getsizeof(end))
    return value


CHECKS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"), _listed),
    **dict.fromkeys(("dictsort", "groupby", "max", "min", "sort", "unique"), _read),
    **dict.fromkeys(("striptags", "title", "urlencode", "urlize", "wordcount", "xmlattr"), _slow),
    **dict.fromkeys(("e", "escape", "forceescape", "string", "safe"), _escaped),
    "batch": _batch,
    "center": _center,
    "format": _formatted,
    "indent": _indent,
    "join": _joined,
    "pprint": _printed,
    "replace": _replaced,
    "round": _rounded,
    "slice": _slice,
    "sum": _summed,
    "truncate": _truncated,
    "wordwrap": _wordwrap,
}
