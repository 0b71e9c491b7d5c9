"""What an honest plugin computes from its first example, as a golden file that golden liars are compared with."""

import mlx.core as mx
import numpy as np

from archport.testing.checks.golden import TEXTS
from archport.testing.finding import find, subject_of
from archport.testing.recorded import GoldenFile, Recorded, write_golden

NEW = 6


def recorded(tiny):
    """The case of an example: vectors where it only embeds, scores, or logits and tokens where its head has them."""
    model, given = tiny.model, {}
    ids = tuple(np.array(row) for row in model._runtime.tokeniser(TEXTS[:3]).ids)
    hidden = tuple(np.array(model.forward(row[None])[0]) for row in ids)
    if "classify" in tiny.spec.tasks:
        given = {"scores": tiny.answers(TEXTS[:3])}
    elif "generate" in tiny.spec.tasks:
        logits = [
            np.array(model._runtime.encoder.trunk.logits(states[None, -1:])[0, 0]) for states in map(mx.array, hidden)
        ]
        made = model.generate([row.tolist() for row in ids], max_tokens=NEW, logprobs=2)
        tokens = np.array([each.tokens for each in made])
        given = {"logits": np.array(logits), "greedy": tokens, "margins": np.full(tokens.shape, 0.5)}
    else:
        given = {"vectors": model.embed(TEXTS[:3])}
    return Recorded(tuple(TEXTS[:3]), ids, hidden, name=tiny.example.name, fingerprint=tiny.fingerprint, **given)


def write_reference(module, file):
    """A golden file of a checkpoint, the module's first example; returns what `run_checks` is given."""
    tiny = subject_of(find(module)).tinies[0]
    write_golden(file, GoldenFile((recorded(tiny),), {"of": "the honest toy"}))
    return {"model": str(tiny.folder), "golden": file}
