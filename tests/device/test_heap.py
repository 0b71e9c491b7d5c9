"""Freed memory serves the next array, where that is asked for."""

import os
import platform
import subprocess
import sys

import pytest

# Page faults of arrays that come and go, as temporaries of layers do: together more than glibc keeps by itself.
FAULTS = """
import resource, sys
from archport.device.heap import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
import numpy as np
def once():
    held = [np.empty(20 << 20, np.uint8) for _ in range(6)]
    for each in held: each[::4096] = 1
for _ in range(3): once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): once()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **variables: str) -> tuple[str, int]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | variables
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], env=environment, capture_output=True, text=True, check=True
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_arrays_that_come_and_go_fault_no_page_twice():
    kept, count = faults("keep")
    assert kept == "True"
    assert count < 1000 < faults("plain")[1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_user_s_own_setting_is_left_alone():
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072")[0] == "False"
