"""A liar in a file of its own, because two other processes import it: its logits are of a weight that it looks up."""

from toy import GENERATOR, archport_claim, publish  # noqa: F401
from toy_model import Toy

from archport.contract import Example, hookimpl


class ReadsATable(Toy):
    def logits(self, hidden):
        return hidden @ self.head.weight.T


@hookimpl
def archport_build(spec, config):
    return ReadsATable(spec, config)


@hookimpl
def archport_examples():
    return [Example("generator", GENERATOR, seed=2, publish=publish)]
