"""A plugin that claims nothing but brings backends or policy hooks, checked as a guest in models that others claim.

It is passed as an override, the way its users pass it, to the tiny models of shipped plugins: one whose layers see only
earlier tokens and one whose layers see all. Whatever a guest brings, its hosts have to stay right.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from archport import engine
from archport.checkpoint import defaults
from archport.contract import ArchSpec, Example
from archport.contract.hooks import Hooks, Speaker
from archport.contract.plugins import Plugin
from archport.testing.subject import Subject, Tiny


class GuestTiny(Tiny):
    """An example of a host, loaded with the guest in front of it."""

    def __init__(self, subject: Subject, host: Plugin, example: Example) -> None:
        super().__init__(subject, example)
        self.host = host

    @cached_property
    def spec(self) -> ArchSpec:
        spec = self.host.hooks().claim(self.config)
        assert spec is not None, "hosts are chosen by what they claim"
        return spec

    @cached_property
    def hooks(self) -> Hooks:
        assert self.host.module is not None, "hosts are sound plugins"
        guest = Speaker(f"override {self.subject.module.__name__}", self.subject.module)
        return Hooks([Speaker("core defaults", defaults), Speaker(self.host.label, self.host.module), guest])

    def load(self, folder: Path, **options: Any) -> engine.Model:
        """A checkpoint through `engine.load`, claimed by the host, with the guest among the overrides."""
        options = {"dtype": "float32", **options}
        return engine.load(folder, plugins=(self.host,), overrides=[self.subject.module], **options)


def guest_tinies(subject: Subject, hosts: Sequence[Plugin]) -> tuple[Tiny, ...]:
    """One causal and one bidirectional example of the hosts; fewer where they have no such thing."""
    found: dict[str, Tiny] = {}
    for host in sorted(hosts, key=lambda host: host.distribution != "archport"):
        for example in host.hooks().examples():
            tiny = GuestTiny(subject, host, Example(f"{host.name}: {example.name}", *_rest(example)))
            found.setdefault(tiny.spec.semantics, tiny)
    return tuple(found[kind] for kind in ("causal", "bidirectional") if kind in found)


def _rest(example: Example) -> tuple[Any, ...]:
    return example.config, example.seed, example.scale, example.publish
