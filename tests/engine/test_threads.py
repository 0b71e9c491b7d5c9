"""Good and damaged pictures from several threads while the garbage collector runs: nothing hangs, no thread is left.

In a process of its own, since a hang is the failure.
"""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from archport import engine
from archport.answering import vectors as embed
from archport.contract import InputError

GOLDENS = Path(__file__).parents[1] / "goldens"
PICTURES = """
import gc, io, sys, threading
import numpy as np
from PIL import Image
from archport import engine
from archport.contract import InputError
from archport.answering import vectors as embed

# Several windows, so that texts are tokenised on a thread too.
embed._WINDOWS["cpu"] = (1, 2)
model, count = engine.load(sys.argv[1]), int(sys.argv[2])
out = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(out, "PNG")
good, bad = [{"image": out.getvalue()}], [{"image": out.getvalue()[:3000]}]
# The second window has two, so that they are decoded on threads.
three, worse = good * 3, good * 2 + bad
expected = {id(good): model.embed(good), id(three): model.embed(three)}
# What was imported is left out of collections, and threads take turns often, so that there are many collections and
# they do not keep the others from the interpreter.
gc.collect()
gc.freeze()
sys.setswitchinterval(2e-4)
before, wrong, ended = set(threading.enumerate()), [], threading.Event()

def work(mine):
    for index in range(count // 4):
        asked = (three, worse)[index // 20 % 2] if index % 20 == mine else (good, bad, bad, good)[index % 4]
        try:
            found = model.embed(asked)
        except InputError as error:
            if id(asked) in expected or "can't be decoded" not in str(error):
                wrong.append(error)
            continue
        if id(asked) not in expected or np.abs(found - expected[id(asked)]).max() > 1e-6:
            wrong.append(asked)

def collect():
    while not ended.is_set():
        gc.collect()

collector = threading.Thread(target=collect)
workers = [threading.Thread(target=work, args=(mine,)) for mine in range(4)]
for each in (collector, *workers):
    each.start()
for each in workers:
    each.join()
ended.set()
collector.join()
left = set(threading.enumerate()) - before
# The process keeps threads for MKL, whose buffers belong to threads.
print(len(wrong), [each.name for each in left if not each.name.startswith("archport_")])
"""


def pictures_in_turn(count: int, seconds: float) -> str:
    """What a process says that asked for so many; TimeoutExpired where it hangs."""
    command = [sys.executable, "-c", PICTURES, str(GOLDENS / "qwen3-vl"), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_damaged_pictures_from_four_threads_leave_no_thread_whenever_the_collector_runs():
    assert pictures_in_turn(40, 60) == "0 []"


def test_refused_pictures_leave_no_thread_though_nothing_is_collected(monkeypatch):
    model = engine.load(GOLDENS / "qwen3-vl")
    monkeypatch.setitem(embed._WINDOWS, model.device.kind, (1, 2))
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(out, "PNG")
    good, bad = {"image": out.getvalue()}, {"image": out.getvalue()[:3000]}
    gc.collect()
    gc.disable()
    try:
        for asked in ([good, bad, good, good], [good, good, bad, good], [bad, good, good]):
            with pytest.raises(InputError, match="can't be decoded"):
                model.embed(asked)
        names = [each.name for each in threading.enumerate()]
    finally:
        gc.enable()
    assert [name for name in names if name.startswith(("archport-tokenise", "archport-decode"))] == []


@pytest.mark.truth
def test_two_thousand_pictures_end_within_a_minute():
    assert pictures_in_turn(2000, 60) == "0 []"


THREADS = """
import sys, threading
from archport import engine

model = engine.load(sys.argv[1])
threads = [threading.Thread(target=model.embed, args=(["a b c"] * 3,)) for _ in range(4)]
for each in threads:
    each.start()
for each in threads:
    each.join()
"""


@pytest.mark.truth
def test_a_process_whose_threads_embedded_ends_well():
    for _ in range(20):
        done = subprocess.run(
            [sys.executable, "-c", THREADS, str(GOLDENS / "bert-plain")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-1000:]
