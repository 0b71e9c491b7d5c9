"""Byte sizes as people write them."""

import pytest

from archport.contract import InputError
from archport.contract.sizes import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("16GB", 16 * 10**9),
        ("16GiB", 16 * 2**30),
        ("16 gib", 16 * 2**30),
        ("1.5MiB", 3 * 2**19),
        ("0.5e9", 500_000_000),
        ("1_000", 1000),
        ("2TB", 2 * 10**12),
        ("512", 512),
        (512, 512),
        ("0.1GB", 100_000_000),
    ],
)
def test_a_size_is_read_as_its_bytes(text: str | int, count: int):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("size", ["", "GB", "16 G B", "-1GB", "16GB extra", "nan", "inf", "0x10", "\u0661\u0666GB"])
def test_text_that_is_no_size_is_refused_with_an_example(size: str):
    with pytest.raises(InputError, match=r"memory_budget=.* is not a size; expected .*16GB"):
        parse_bytes(size, what="memory_budget")


@pytest.mark.parametrize("size", ["16G", "16bits", "16XB"])
def test_an_unknown_unit_is_named_beside_the_known_ones(size: str):
    with pytest.raises(InputError, match=r"unknown unit .*KiB, MiB, GiB"):
        parse_bytes(size)


@pytest.mark.parametrize("size", [0, "0", "0GB", "0.1", -5])
def test_less_than_a_byte_is_refused(size: str | int):
    with pytest.raises(InputError, match="less than one byte"):
        parse_bytes(size)


@pytest.mark.parametrize("size", [True, 1.5, None, b"16GB"])
def test_other_types_are_refused_by_name(size: object):
    with pytest.raises(InputError, match=type(size).__name__):
        parse_bytes(size)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1536, "1.5 KB"),
        (999_949, "999.9 KB"),
        (999_950, "1.0 MB"),
        (137_438_953_472, "137.4 GB"),
        (999_960_000_000, "1.0 TB"),
        (2 * 10**15, "2,000.0 TB"),
        (-1536, "-1.5 KB"),
    ],
)
def test_a_count_is_written_with_one_decimal(count: int, text: str):
    assert format_bytes(count) == text
