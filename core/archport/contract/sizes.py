"""Byte sizes as people write them. Knows nothing of devices."""

from __future__ import annotations

import re
from fractions import Fraction

from archport.contract.errors import InputError, shown

DECIMAL = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BINARY = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
UNITS = {**DECIMAL, **BINARY}
# What 64 bits hold, as MLX and operating systems count.
LARGEST = 2**63 - 1
SIZE = re.compile(r"\s*(?P<number>\d+(?:_\d+)*(?:\.\d+)?(?:[eE][+-]?\d{1,3})?)\s*(?P<unit>[A-Za-z]*)\s*", re.ASCII)


def parse_bytes(size: str | int, *, what: str = "size") -> int:
    """Bytes from a number of them or from text: "16GB" is 16 x 10^9, "16GiB" is 16 x 2^30, "0.5e9" is 500,000,000.

    Args:
        what: the argument's name, for the error.

    Raises:
        InputError: not a size, an unknown unit, or not positive.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        count = Fraction(size)
    elif isinstance(size, str):
        match = SIZE.fullmatch(size)
        # More digits than any size has, Python refuses to read.
        if match is None or len(size) > 400:
            raise InputError(
                f"{what}={shown(size)} is not a size; expected bytes (16000000000) or text like '16GB' or '16GiB'"
            )
        unit = match["unit"].upper()
        if unit not in UNITS:
            raise InputError(
                f"{what}={shown(size)}: unknown unit {match['unit']!r}; expected B, KB, MB, GB, TB (powers of 1000) "
                "or KiB, MiB, GiB, TiB (powers of 1024)"
            )
        count = Fraction(match["number"].replace("_", "")) * UNITS[unit]
    else:
        raise InputError(
            f"{what}={shown(size)} is a {type(size).__name__}; expected an int of bytes or text like '16GB'"
        )
    if count < 1:
        raise InputError(f"{what}={shown(size)} is less than one byte; expected a positive size like '16GB'")
    if count > LARGEST:
        raise InputError(f"{what}={shown(size)} is more than any machine has; expected a size like '16GB'")
    return int(count)


def format_bytes(count: int) -> str:
    """A byte count for people, in powers of 1000 like the sizes `parse_bytes` reads: 1536 -> "1.5 KB"."""
    if count < 0:
        return "-" + format_bytes(-count)
    if count < 1000:
        return f"{count} B"
    value = float(count)
    for unit in ("KB", "MB", "GB"):
        value /= 1000
        if value < 999.95:  # 999,950 would be printed as "1000.0 KB"
            return f"{value:.1f} {unit}"
    return f"{value / 1000:,.1f} TB"
