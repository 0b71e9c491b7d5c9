"""Frozen plans: what a handful of requests gets on a handful of machines, so that a change of verdict is seen.

    python tests/planning/goldens.py           compare, and print what differs
    python tests/planning/goldens.py --write   freeze the plans of this version

Numbers are meant to move when a formula does; the diff of `golden/` then belongs to the change that moved them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from archport.attention import Chooser, builtin_backends
from archport.contract import AdmissionRefused, ArchSpec, AttentionPath
from archport.device.profiles import profile
from archport.planning import Plan, Request, report
from archport.testing.plans import plan_of

HERE = Path(__file__).parent

# name -> (model, device, arguments of plan_of)
REQUESTS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "qwen3-embed-32x32768-m2-ultra-128gb": ("qwen3_06b", "m2-ultra-128gb", {"lengths": [32_768] * 32}),
    "qwen3-embed-32x32768-dense-m2-ultra-128gb": (
        "qwen3_06b",
        "m2-ultra-128gb",
        {"lengths": [32_768] * 32, "dense": True},
    ),
    "qwen3-embed-mixed-h200": ("qwen3_06b", "h200", {"lengths": [17, 512, 510, 498, 60, 3000, 9000, 31, 128, 128]}),
    "qwen3-embed-mixed-cpu": ("qwen3_06b", "cpu", {"lengths": [17, 512, 510, 498, 60, 3000]}),
    "qwen3-generate-8x20000-m4-pro-24gb": ("qwen3_06b", "m4-pro-24gb", {"lengths": [20_000] * 8, "new_tokens": 512}),
    "qwen3-generate-20000-m4-pro-24gb": ("qwen3_06b", "m4-pro-24gb", {"lengths": [20_000], "new_tokens": 512}),
    "hybrid-generate-327000-m2-ultra-128gb": (
        "hybrid_27b",
        "m2-ultra-128gb",
        {"lengths": [327_000], "new_tokens": 512},
    ),
    "hybrid-generate-327000-m4-pro-24gb": ("hybrid_27b", "m4-pro-24gb", {"lengths": [327_000], "new_tokens": 512}),
    "hybrid-generate-99000-cached-m5-max-128gb": (
        "hybrid_27b",
        "m5-max-128gb",
        {"lengths": [1000], "cached": 99_000, "new_tokens": 64},
    ),
    **{
        f"hybrid-{size}-generate-{tokens}-{device}": (
            f"hybrid_{size}",
            device,
            {"lengths": [tokens - 512], "new_tokens": 512},
        )
        for size in ("27b", "122b")
        for tokens in (131_072, 262_144)
        for device in ("m2-ultra-128gb", "m5-max-128gb")
    },
    "bert-embed-mixed-cpu": ("bert", "cpu", {"lengths": [12, 90, 91, 300, 512, 512]}),
    "bert-embed-mixed-h200": ("bert", "h200", {"lengths": [12, 90, 91, 300, 512, 512]}),
    "windowed-generate-60000-m1-16gb": ("windowed", "m1-16gb", {"lengths": [60_000], "new_tokens": 100}),
}


# The smallest peak of longer prompts takes half a second to find, each of hundreds of small steps being priced.
LONG = 100_000


class Unasked:
    """In place of what made a plan, where that is not asked for the smallest peak."""

    def minimum(self, request: Request) -> int:
        return 0

    def cost(self, plan: Plan) -> str:
        return ""

    def against(self, path: AttentionPath) -> tuple[tuple[str, str], ...]:
        return ()

    def explain(self, plan: Plan, *, verbose: bool) -> str:
        return report.explain(plan)

    def to_dict(self, plan: Plan) -> dict[str, Any]:
        return report.as_dict(plan)


def plans(models: Mapping[str, ArchSpec]) -> dict[str, dict[str, Any]]:
    """name -> the plan, or the refusal, as JSON-ready values."""
    choose = Chooser(tuple(builtin_backends()))
    found: dict[str, dict[str, Any]] = {}
    for name, (model, device, arguments) in REQUESTS.items():
        try:
            plan = plan_of(models[model], device=profile(device), choose=choose, **arguments)
            if plan.largest.shape.L > LONG:
                plan = replace(plan, planner=Unasked())
            found[name] = _short(plan.to_dict())
        except AdmissionRefused as refusal:
            found[name] = {
                "refused": refusal.code,
                "required_bytes": refusal.required_bytes,
                "limit_bytes": refusal.limit_bytes,
                "breakdown": refusal.breakdown,
                "binding": refusal.binding,
                "max_tokens_that_fit": refusal.max_tokens_that_fit,
                "max_rows_that_fit": refusal.max_rows_that_fit,
            }
    return json.loads(json.dumps(found))


def _short(plan: dict[str, Any]) -> dict[str, Any]:
    """Equal batches once, with their number, and paths without the reasons against others."""
    batches: list[dict[str, Any]] = []
    for batch in plan["batches"]:
        for kind in batch["kinds"]:
            for path in kind["paths"].values():
                path["against"] = sorted(path["against"])
        if batches and {**batches[-1], "times": 1} == {**batch, "times": 1}:
            batches[-1]["times"] += 1
        else:
            batches.append({**batch, "times": 1})
    return {**plan, "batches": batches}


def frozen() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "golden").glob("*.json"))}


def _models() -> dict[str, ArchSpec]:
    found = importlib.util.spec_from_file_location("planning_models", HERE / "models.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.models()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="freeze the plans of this version")
    now, before = plans(_models()), frozen()
    if parser.parse_args().write:
        for old in (HERE / "golden").glob("*.json"):
            old.unlink()
        for name, plan in now.items():
            (HERE / "golden" / f"{name}.json").write_text(json.dumps(plan, indent=1) + "\n")
        return 0
    changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    print("\n".join(changed) or "all plans are as frozen")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
