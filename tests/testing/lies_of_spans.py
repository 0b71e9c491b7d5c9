"""Lies about spans: a rule that forgets, or is not there, and backends that look past what `call.spans` says."""

from dataclasses import replace

import numpy as np
from lies import spec_with

from archport.attention import builtin_backends

# Id that a row's pictures consist of.
PICTURE = 7


def knowing(spec):
    """The spec with layers that know spans, where they look back."""
    if spec.semantics != "causal":
        return spec
    return replace(spec, layers=tuple(replace(layer, spans=True) for layer in spec.layers))


CLAIM = spec_with(knowing)


def pictures(ids):
    edges = np.flatnonzero(np.diff(np.concatenate([[False], np.asarray(ids) == PICTURE, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def names(rule):
    """archport_inputs with a rule."""

    def archport_inputs(spec, checkpoint):
        return replace(checkpoint.stored_inputs(), spans=rule)

    return archport_inputs


def every_second_time():
    asked = []

    def rule(ids):
        asked.append(len(ids))
        return pictures(ids) if len(asked) % 2 else []

    return rule


def overlap(ids):
    """Pictures of their own id; where another fills a row, two that overlap."""
    return [(0, 3), (1, 4)] if len(ids) > 8 and (np.asarray(ids) == PICTURE + 1).all() else pictures(ids)


class Looks:
    """A fast backend that runs what Tiled runs, without the spans of some calls."""

    def __init__(self, name, forgets):
        self.name, self._forgets = name, forgets
        (self._tiled,) = [backend for backend in builtin_backends() if backend.name == "tiled"]
        self.features = self._tiled.features

    def reasons_against(self, call, device):
        return self._tiled.reasons_against(call, device) if call.spans else ["no spans"]

    def price(self, call, device):
        return replace(self._tiled.price(call, device), seconds=0.0)

    def run(self, call, price, q, k, v, **options):
        return self._tiled.run(replace(call, spans=()) if self._forgets(call) else call, price, q, k, v, **options)


PAST_ALL = Looks("past_all", lambda call: True)
PAST_LONE_ROWS = Looks("past_lone_rows", lambda call: call.B == 1 and call.q_len == call.kv_len)
PAST_CACHED = Looks("past_cached", lambda call: call.B == 1 and call.q_len < call.kv_len)
