"""A process that was forked after a model was loaded refuses every call that would wait for MLX's threads for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

GOLDENS = Path(__file__).parents[1] / "goldens"
# Runs a call in a forked child, which says what became of it; one that waits is ended.
FORKED = """
import os, signal, sys
import numpy as np
import archport
from archport import engine
from archport.contract import ForkedProcess

def in_child(name, call):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            call()
            said = "answered"
        except ForkedProcess as error:
            said = "refused" if "spawn" in str(error) else str(error)
        except BaseException as error:
            said = repr(error)
        print(name, said, flush=True)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status:
        print(name, "was ended by signal", status, flush=True)

goldens = sys.argv[1]
"""


def said(program: str) -> list[str]:
    command = [sys.executable, "-c", FORKED + program, str(GOLDENS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_every_call_of_a_model_that_was_loaded_before_the_fork_is_refused():
    program = """
bert, generator = engine.load(goldens + "/bert-prefixed"), engine.load(goldens + "/qwen3-moe")
reranker, labels = engine.load(goldens + "/colbert"), engine.load(goldens + "/bert-classify")
vectors, stream = bert.embed(["a", "b"]), generator.generate("the hack", max_tokens=4, stream=True)
next(stream)
calls = {
    "embed": lambda: bert.embed("a"),
    "encode_query": lambda: bert.encode_query("a"),
    "encode_document": lambda: bert.encode_document("a"),
    "fill_mask": lambda: bert.fill_mask("[MASK]"),
    "forward": lambda: bert.forward([[1, 2]]),
    "classify": lambda: labels.classify("a"),
    "rerank": lambda: reranker.rerank("a", ["b"]),
    "maxsim": lambda: reranker.maxsim("a", ["b"]),
    "embed tokens": lambda: reranker.embed("a", output="tokens"),
    "generate": lambda: generator.generate("the hack", max_tokens=2),
    "stream": lambda: generator.generate("the hack", max_tokens=2, stream=True),
    "next": lambda: next(stream),
    "load": lambda: engine.load(goldens + "/bert-plain"),
}
for name, call in calls.items():
    in_child(name, call)
"""
    answers = said(program)
    assert len(answers) == 13
    assert [answer for answer in answers if not answer.endswith(" refused")] == []


def test_what_needs_no_device_answers_in_a_fork_and_the_parent_goes_on():
    program = """
model = engine.load(goldens + "/bert-plain")
vectors = model.embed(["a", "b"])
in_child("plan", lambda: model.plan([5, 6]))
in_child("similarity", lambda: model.similarity(vectors, vectors))
reranker = engine.load(goldens + "/colbert")
in_child("maxsim", lambda: reranker.maxsim(np.ones((2, 4)), [np.ones((3, 4))]))
in_child("describe", lambda: engine.describe(goldens + "/qwen3-moe"))
print("parent", "answered" if (model.embed(["a", "b"]) == vectors).all() else "differs")
"""
    assert said(program) == [
        "plan answered",
        "similarity answered",
        "maxsim answered",
        "describe answered",
        "parent answered",
    ]


def test_a_process_that_was_forked_before_any_load_loads_and_runs():
    program = """
def use():
    assert engine.load(goldens + "/bert-plain").embed("a").shape == (1, 48)

engine.describe(goldens + "/bert-plain")
in_child("load", use)
"""
    # CUDA is started where MLX is imported.
    gpu = mx.default_device() == mx.Device(mx.gpu)
    assert said(program) == ["load refused" if gpu else "load answered"]


@pytest.mark.parametrize(
    ("method", "answer"), [("fork", "ForkedProcess"), pytest.param("spawn", "(1, 48)", marks=pytest.mark.truth)]
)
def test_a_pool_that_forks_hands_the_refusal_to_the_parent_and_one_that_spawns_answers(tmp_path, method, answer):
    script = tmp_path / "pool.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from archport import engine\n\n"
        "def work(_):\n"
        "    model = globals().get('model') or engine.load(sys.argv[1])\n"
        "    return model.embed('a').shape\n\n"
        "if __name__ == '__main__':\n"
        "    model = engine.load(sys.argv[1])\n"
        "    model.embed('a')\n"
        "    with multiprocessing.get_context(sys.argv[2]).Pool(1) as pool:\n"
        "        try:\n"
        "            print(pool.map_async(work, [0]).get(30)[0])\n"
        "        except Exception as error:\n"
        "            print(type(error).__name__)\n"
    )
    command = [sys.executable, str(script), str(GOLDENS / "bert-plain"), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == answer, done.stderr[-2000:]
