"""Values that nobody expects, and how values of a JSON object are changed by a few of them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# JSON has no key that is no text, and Python writes NaN and infinities without being asked.
ODD_NUMBERS = [
    *(0, 1, -1, 2, 7, 255, 65_537, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64, 10**9, 10**18, 10**30),
    *(0.0, -0.0, 0.5, 1e-300, 1e300, -1.5, float("inf"), float("-inf"), float("nan"), 10**400, -(10**70)),
]
ODD_TEXTS = [
    "",
    " ",
    "a",
    "0",
    "true",
    "null",
    "[MASK]",
    "../x",
    "/etc/passwd",
    "a" * 3000,
    "é",
    "\u0000",
    "\ud800",
    "torch.nn.modules.linear.Identity",
    "{{ x }}",
    "float32",
    "torch.bfloat16",
    "%s%n",
    "🦆",
]


def odd(*, deep: bool = True) -> st.SearchStrategy[Any]:
    """A value of any JSON kind."""
    flat = st.one_of(
        st.none(),
        st.booleans(),
        st.sampled_from(ODD_NUMBERS),
        st.integers(-300, 300),
        st.sampled_from(ODD_TEXTS),
        st.text(max_size=6),
    )
    if not deep:
        return flat
    return st.one_of(
        flat,
        flat,
        st.lists(flat, max_size=3),
        st.dictionaries(st.sampled_from(["a", "type", "content", "0", "rope_type"]), flat, max_size=2),
        st.just([[[1]]]),
    )


def edits(known: list[str], weights: dict[str, int] | None = None) -> st.SearchStrategy[list[Any]]:
    """One to three changes of an object's entries: (what, at which entry or of which name, value).

    Args:
        known: names that may be added.
        weights: how often each change is drawn.
    """
    often = {"inert": 5, "drop": 2, "set": 2, "nudge": 1, "add": 2, "retype": 1, **(weights or {})}
    what = st.sampled_from([name for name, count in often.items() for _ in range(count)])
    one = st.tuples(what, st.integers(0, 400), st.sampled_from(known), odd())
    return st.one_of(st.lists(one, min_size=1, max_size=1), st.lists(one, min_size=1, max_size=3))


def edited(value: dict[str, Any], changes: list[Any]) -> dict[str, Any]:
    """The object after the changes; entries of an inner object are changed as often as its own."""
    for what, at, name, new in changes:
        holder = value
        inner = [entry for entry in value.values() if isinstance(entry, dict) and entry]
        if inner and at % 3 == 0:
            holder = inner[at % len(inner)]
        keys = list(holder)
        key = keys[at % len(keys)] if keys else name
        old = holder.get(key)
        if what == "inert":
            holder[f"unknown_{name}"] = new
        elif what == "add":
            holder[name] = new
        elif what == "drop":
            holder.pop(key, None)
        elif what == "nudge" and isinstance(old, int | float):
            holder[key] = old + (at % 5 - 2)
        elif what == "retype":
            holder[key] = str(old) if at % 2 else [old]
        else:
            holder[key] = new
    return value
