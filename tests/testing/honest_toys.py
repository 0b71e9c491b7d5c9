"""Honest twins of golden liars: the toy with one example, which the reference is computed from."""

from dataclasses import replace

import mlx.nn as nn
from lies import plugin, spec_with
from lies_of_words import GENERATOR
from toy_model import Toy

from archport.contract.heads import ClassificationHead

DECODES = plugin("decodes")
GENERATES = plugin("generates", examples=[GENERATOR])


class Scores(Toy):
    """The toy with a classifier of two labels."""

    def __init__(self, spec, config):
        super().__init__(spec, config)
        self.classifier = nn.Linear(spec.hidden_size, 2)

    def scores(self, pooled):
        return self.classifier(pooled)


def labels(spec):
    return ClassificationHead(labels=("no", "yes"), pooling="last")


def scoring(trunk=Scores, name="scores"):
    claim = spec_with(lambda spec: replace(spec, tasks=("classify",)))
    return plugin(name, trunk=trunk, archport_claim=claim, archport_head=labels)


SCORES = scoring()
