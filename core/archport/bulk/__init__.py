"""Files in, files out: embed more rows than memory holds, and go on after whatever ended the last run.

A job reads its inputs as a stream of rows, cuts them into parts, and writes every part whole or not at all. Which rows
a part holds depends on the input alone, so a job that was ended anywhere, or split over machines, writes the same parts
as one that ran through.
"""

from __future__ import annotations

from archport.bulk.job import Job, Summary, run
from archport.bulk.search import Found, search
from archport.bulk.stores import Stored, read

__all__ = ["Found", "Job", "Stored", "Summary", "read", "run", "search"]
