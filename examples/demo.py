"""Embed a few sentences with real weights and print which are similar; a package carries the model, no network."""

from __future__ import annotations

import time

from archport import engine

SENTENCES = [
    "The cat sleeps on the warm windowsill.",
    "A kitten naps in the sun by the window.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive this year.",
    "She plays the violin in the city orchestra.",
    "He practises the cello every evening.",
    "Heavy rain flooded several streets downtown.",
    "The storm left parts of the town under water.",
]


def main() -> None:
    started = time.perf_counter()
    model = engine.load("all-MiniLM-L6-v2")
    loaded = time.perf_counter()
    vectors = model.embed(SENTENCES)
    done = time.perf_counter()
    scores = model.similarity(vectors, vectors)
    print(f"\n{model.name} ({model.spec.arch}, {model.spec.semantics}) on {model.device.name}")
    print(f"loaded in {loaded - started:.2f} s; {len(SENTENCES)} sentences embedded in {done - loaded:.2f} s\n")
    for index, sentence in enumerate(SENTENCES):
        scores[index, index] = -1
        nearest = int(scores[index].argmax())
        print(f"{sentence}\n    {scores[index, nearest]:.3f}  {SENTENCES[nearest]}")


if __name__ == "__main__":
    main()
