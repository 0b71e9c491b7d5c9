"""What a request says about its rows, checked. Knows nothing of devices or schedules."""

from __future__ import annotations

from collections.abc import Sequence

from archport.contract import ArchSpec, InputError
from archport.contract.errors import shown


def whole(name: str, values: Sequence[int], least: int) -> tuple[int, ...]:
    """The values, each an integer of at least `least`; raises InputError otherwise."""
    for value in values:
        # bool is an int, and a plan for True tokens would be nonsense.
        if not isinstance(value, int) or isinstance(value, bool) or value < least:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"{name}={shown(value)}; expected an integer >= {least}")
    return tuple(values)


def visible_of(rows: Sequence[int], visible: Sequence[int]) -> tuple[int, ...]:
    """How much of every row is seen, checked; empty when that is everything."""
    found = whole("visible", visible, 1)
    if found and (len(found) != len(rows) or any(seen > length for seen, length in zip(found, rows, strict=True))):
        raise InputError(f"visible: {found} of rows of {tuple(rows)} tokens; expected as many, none longer")
    return () if found == tuple(rows) else found


def pictures_of(spec: ArchSpec, rows: Sequence[int], images: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The pictures of every row, checked against the tokens they stand for."""
    if not any(images):
        return ()
    if spec.vision is None:
        raise InputError(f"images: {spec.arch} has no vision tower")
    if len(images) != len(rows):
        raise InputError(f"images: {len(images)} rows of pictures for {len(rows)} rows of tokens")
    merged = spec.vision.merge_size**2
    found = tuple(whole("images", tuple(each), merged) for each in images)
    for row, (length, each) in enumerate(zip(rows, found, strict=True)):
        if sum(each) // merged > length or any(patches % merged for patches in each):
            raise InputError(
                f"images: row {row} has {length} tokens for pictures of {each} patches; {merged} patches make one token"
            )
    return found
