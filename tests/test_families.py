"""docs/families.md against the plugins, the recorded draws and the tests that its numbers count."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from scripts import loaded

from archport.contract.plugins import Plugin
from archport.testing import run_checks

ROOT = Path(__file__).parents[1]
PACKAGES = [*(ROOT / "plugins").glob("*/tests"), ROOT / "tests"]


FAMILIES = loaded(ROOT / "docs" / "make_families.py")


@pytest.fixture(scope="module")
def rows() -> dict[str, object]:
    return FAMILIES.rows()


def cells() -> dict[str, dict[str, str]]:
    """Family -> column -> cell, of the page as it stands."""
    lines = [line for line in (ROOT / "docs" / "families.md").read_text(encoding="utf-8").splitlines() if "|" in line]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns, found = table[0], {}
    for line in table[2:]:
        if len(line) != len(columns):
            break
        found[line[0].strip("`")] = dict(zip(columns[1:], line[1:], strict=True))
    return found


def test_the_page_is_current():
    assert (ROOT / "docs" / "families.md").read_text(encoding="utf-8") == FAMILIES.page()


def test_every_cell_of_a_family_counts_a_test(rows: dict[str, object]):
    page = cells()
    assert set(page) == set(rows)
    empty = [(family, column) for family, row in page.items() for column, cell in row.items() if cell in ("", "0")]
    assert empty == []
    bare = {family for family, row in page.items() if "no layer" in row.values()}
    assert bare == {"static"}
    assert int(page["static"]["goldens"])
    drawn = [row for row in page.values() if row["goldens"] == "as drawn"]
    assert all(int(row["transformers 5"]) for row in drawn)


def test_every_golden_that_is_counted_is_read_by_a_test():
    sources = "".join(path.read_text(encoding="utf-8") for folder in PACKAGES for path in folder.rglob("test_*.py"))
    folders = [path.parent for path in (ROOT / "tests" / "goldens").glob("*/config.json")]
    assert [folder.name for folder in folders if not re.search(rf"\b{re.escape(folder.name)}\b", sources)] == []


def verify(plugin: Plugin, families: set[str]) -> None:
    """Run the checks that the page's columns stand for, and count examples of each family that they passed on."""
    names = {check: column for column, check in FAMILIES.CHECKS.items()}
    arch = {example.name: FAMILIES.claimed(example.config)[1].arch for example in plugin.hooks().examples()}
    passed: Counter[tuple[str, str]] = Counter()
    for outcome in run_checks(plugin, only=list(names)):
        assert outcome.status == "ok", (outcome.check.name, outcome.message)
        passed.update((arch[part.example], names[outcome.check.name]) for part in outcome.parts if part.status == "ok")
    page = cells()
    for family in families:
        for column in FAMILIES.CHECKS:
            assert page[family][column].partition(",")[0] == str(passed[family, column]), (family, column)


@pytest.mark.truth
@pytest.mark.parametrize("plugin", FAMILIES.plugins(), ids=lambda plugin: plugin.name)
def test_the_kit_passes_on_as_many_examples_as_the_page_says(plugin: Plugin):
    families = {family for family, row in FAMILIES.rows().items() if row.plugin == plugin.name and row.layers}
    verify(plugin, families)


def test_every_model_of_the_probe_is_claimed_by_whom_the_page_names(rows: dict[str, object]):
    tested = {name: row.plugin for row in rows.values() for name in row.architectures}
    assert len(FAMILIES.PROBE) == 47
    for asked in FAMILIES.PROBE:
        assert (asked.architecture in tested) == (not asked.reason), asked


def test_nobody_claims_what_the_page_says_that_nobody_claims():
    for asked in FAMILIES.PROBE:
        if not asked.reason:
            continue
        config = {"architectures": [asked.architecture], "model_type": asked.architecture.lower(), "hidden_size": 64}
        for causal in (True, False):
            claims = [plugin.hooks().claim({**config, "causal": causal}) for plugin in FAMILIES.plugins()]
            assert claims == [None] * len(claims), asked


def test_the_page_counts_what_is_claimed():
    counts = [row for row in FAMILIES.PROBE if not row.reason]
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert f"The 47 rows of a probe of November 2026. {len(counts)} are claimed" in text
