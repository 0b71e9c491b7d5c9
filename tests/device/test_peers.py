"""Processes of a group watch each other: whoever ends or fails is told, and nobody waits for it for ever."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from archport.contract import ArchportError, InputError
from archport.contract.split import Rank
from archport.device import peers as module
from archport.device.peers import Peers


def pair():
    """Two ranks of one process, in threads that exchange what ranks do through MLX."""
    told, barrier, found = [None, None], threading.Barrier(2), [None, None]

    def start(number):
        def everyone(mine):
            told[number] = list(mine)
            barrier.wait(60)
            return list(told)

        found[number] = Peers(Rank(number, 2), everyone)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def refuses(rank):
    try:
        with rank.calling():
            return False
    except ArchportError as error:
        return "rank" in str(error) or "ended" in str(error)


def test_a_call_that_fails_on_one_rank_is_refused_on_the_other_with_the_reason():
    first, second = pair()
    with pytest.raises(ZeroDivisionError), second.calling():
        raise ZeroDivisionError("odd")
    assert until(lambda: refuses(first))
    with (
        pytest.raises(ArchportError, match=r"rank 1 failed \(ZeroDivisionError: odd\); start the group"),
        first.calling(),
    ):
        pass


def test_what_archport_refuses_on_every_rank_leaves_the_group_as_it_is():
    first, second = pair()
    for rank in (first, second):
        with pytest.raises(InputError), rank.calling():
            raise InputError("too long")
    time.sleep(0.1)
    assert not refuses(first)
    assert not refuses(second)


WAITS = """
import archport, sys, time
sys.path.insert(0, sys.argv[1])
from archport.device import peers
peers.GRACE = 0.5
from test_peers import pair
first, second = pair()
with first.calling():
    second.fail("rank 1 failed (odd)")
    time.sleep(20)
"""


def test_a_rank_that_waits_for_one_that_is_gone_ends_and_says_why():
    command = [sys.executable, "-c", WAITS, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == module.STATUS
    assert "rank 0 ends after waiting" in done.stderr
    assert "rank 1 failed (odd)" in done.stderr
