"""No verdict changes unseen."""

from __future__ import annotations

from types import ModuleType

from archport.contract import ArchSpec


def test_plans_are_as_frozen(goldens: ModuleType, models: dict[str, ArchSpec]):
    now, before = goldens.plans(models), goldens.frozen()
    assert now.keys() == before.keys()
    changed = {name: plan for name, plan in now.items() if plan != before[name]}
    assert not changed, "run `python tests/planning/goldens.py --write` and review the diff"
