"""What `archport doctor --report` writes: one JSON about a machine, to be attached to an issue.

    from archport.testing.device_report import write_report

    write_report(Path("report.json"), quick=True)

It runs the kit, asks MLX for its routes, compares plans with peaks and measures a little, within a bound of time. What
fails becomes an entry. `schema.json` in this folder says what the file holds.
"""

from archport.testing.device_report.privacy import Scrubber
from archport.testing.device_report.report import PARTS, QUICK_SECONDS, SECONDS, schema, write_report

__all__ = ["PARTS", "QUICK_SECONDS", "SECONDS", "Scrubber", "schema", "write_report"]
