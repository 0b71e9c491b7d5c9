"""Bytes of what runs when the prompts' layers are done: a head that reads hidden states, and steps of decoding.

Knows nothing of schedules.
"""

from __future__ import annotations

from dataclasses import replace

from archport.contract import KVAllocation
from archport.planning.batch import Batch
from archport.planning.caches import CacheBytes, cache_bytes
from archport.planning.costs import itemsize
from archport.planning.flight import decoding_layers, in_flight
from archport.planning.job import Job
from archport.planning.plan import Buffer
from archport.planning.readout import GREEDY_LOGITS, Readout
from archport.planning.steps import decode_step


def readout_bytes(job: Job, readout: Readout, tokens: int, components: dict[str, int]) -> tuple[int, Buffer]:
    """What a head needs beyond what the layers needed, and its largest array."""
    needed = readout.total(tokens)
    if job.device.kind != "cpu":
        # There the hidden states are not counted apart.
        needed += tokens * job.spec.hidden_size * itemsize(job.dtype)
    more = max(0, needed - components["activations"] - components["attention"])
    return more, Buffer(readout.name, readout.each(tokens), job.device.max_buffer)


def decoding_bytes(
    job: Job, batch: Batch, components: dict[str, int], caches: CacheBytes, kv: tuple[KVAllocation | None, ...]
) -> tuple[int, int, Buffer]:
    """What decoding needs beyond what the prompts needed, how much of that comes and goes, and its largest array.

    Several answers of a prompt add copies of its caches, which are made when the prompts are read and stay.
    """
    rows, cap = len(batch.lengths) * job.answers, job.device.max_buffer
    head = itemsize(job.dtype) * job.spec.vocab_size
    readout = job.readout or Readout("the logits", "logits", GREEDY_LOGITS, fixed=head)
    step = decode_step(job, batch)
    assert step is not None
    layers = sum(in_flight(job, rows, decoding_layers(job, rows), split=False, paths=step.paths))
    needed, copied = layers + rows * readout.total(1) - components["logits"], 0
    array = Buffer(readout.name, rows * readout.each(1), cap)
    if job.answers > 1:
        # One array after the other, when rows have been moved to end at one column.
        copies = cache_bytes(job, kv, replace(batch.shape, B=rows, ragged=False))
        needed, copied = max(needed, caches.largest), max(0, copies.total - caches.total)
        largest = Buffer("the keys or values of one layer", copies.largest, cap)
        array = max(array, largest, key=lambda each: each.bytes)
    more = max(0, needed + copied - components["activations"] - components["attention"])
    return more, min(more, needed), array
