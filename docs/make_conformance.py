"""Write docs/conformance.md: what every check found on every shipped plugin, and which liar fails which check.

    python docs/make_conformance.py

Figures are those of the machine it runs on, which the page names. Takes a few minutes.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import archport  # first: it loads the BLAS that MLX uses on a CPU

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "testing"))

HEAD = """# What the conformance kit finds

Written by `python docs/make_conformance.py` on {device}, MLX {mlx}, archport {version}. `archport check --markdown`
prints the first table for the plugins that you have installed. A cell is the figure that the check measured, one per
example where they differ; n/a is decided from the declared spec.

{table}
## The rules

{rules}

## Honest plugins

`tests/testing/honest_kinds.py` holds plugins as strangers wrote them, declared as they are built: an inner width that
the family adjusts (LFM2), latent attention (DeepSeek), yarn, biases and sinks (gpt-oss), a recurrence of its own
(LFM2's convolution), experts with a clamped gate, spans that see both ways, and the plain toy. They pass every check.
`peak_is_predicted`, which measures, was run 60 times on six of them (all but the experts and the spans), on two cores
with 12 to 18 processes waiting for them: 0 of 360 runs failed (2026-11-30). `make liars` runs it as often on all eight.

## Liars

For every check `tests/testing/liars.py` holds plugins that break exactly its rule. `make liars` runs every check on
every liar and accepts no other failures than these; `make truth` does so for an eighth of the liars, and `make test`
runs each liar's own checks and two others. The last column is what else the same lies reach, for the reasons given with
each.

{matrix}

{reasons}
"""


def main() -> None:
    from archport.contract.plugins import discover
    from archport.device.facts import this_device
    from archport.testing import CHECKS, run_checks
    from archport.testing.report import as_markdown

    device = this_device()
    runs = {plugin.name: [*run_checks(plugin.name), *run_checks(plugin.name, tier="ranks")] for plugin in discover()}
    rules = "\n".join(
        textwrap.fill(f"- `{check.name}` ({check.tier}): {check.rule}", 120, subsequent_indent="  ") for check in CHECKS
    )
    matrix, reasons = liar_matrix()
    page = HEAD.format(
        device=device.name,
        mlx=device.mlx_version,
        version=archport.__version__,
        table=as_markdown(runs),
        rules=rules,
        matrix=matrix,
        reasons=reasons,
    )
    (ROOT / "docs" / "conformance.md").write_text(page, encoding="utf-8")


def liar_matrix() -> tuple[str, str]:
    """(table of check by liar, list of lies and of reasons for what else they fail), as the liars declare and the tests
    hold them to."""
    from liars import LIARS

    from archport.testing import CHECKS

    failed = [{liar.breaks, *liar.also} for liar in LIARS]
    names = [liar.module.__name__.removeprefix("liar_") for liar in LIARS]
    lines = ["| check | failed by its liar | failed by others |", "|---|---|---|"]
    notes = [f"- **{name}**: {liar.lie}." for name, liar in zip(names, LIARS, strict=True)]
    for check in CHECKS:
        caught = [(name, liar) for name, liar, bad in zip(names, LIARS, failed, strict=True) if check.name in bad]
        own = [name for name, liar in caught if liar.breaks == check.name]
        other = [name for name, liar in caught if liar.breaks != check.name]
        lines.append(f"| `{check.name}` | {', '.join(own)} | {', '.join(other)} |")
    for index, liar in enumerate(LIARS):
        for check, reason in liar.also.items():
            notes[index] += f" Also fails `{check}`: {reason}."
    return "\n".join(lines), "\n".join(textwrap.fill(note, 120, subsequent_indent="  ") for note in notes)


if __name__ == "__main__":
    main()
