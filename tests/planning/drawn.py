"""Random requests of every family on every kind of device, and budgets that hardly admit them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from archport.attention import Chooser
from archport.checkpoint import normalise_config
from archport.contract import ArchSpec
from archport.contract.plugins import claim, discover
from archport.device.profiles import profile
from archport.planning import Plan
from archport.testing.plans import plan_of

LONGEST = 40_000
DEVICES = ("cpu", "m1-16gb", "m4-pro-24gb", "m5-max-128gb", "h200")


def families(models: Mapping[str, ArchSpec]) -> dict[str, ArchSpec]:
    """Every plugin's examples and the given models, with positions for the longest request."""
    plugins = discover()
    found = dict(models)
    for plugin in plugins:
        for example in plugin.hooks().examples() if "archport_examples" in plugin.hook_names else ():
            spec = claim(normalise_config(dict(example.config)), plugins)[1]
            found[f"{plugin.label.split()[0]}: {example.name}"] = spec
    return {name: replace(spec, max_positions=2 * LONGEST) for name, spec in found.items()}


@dataclass(frozen=True)
class Drawn:
    """A request: a family, a device, rows, and further arguments of `plan_of`."""

    name: str
    spec: ArchSpec
    device: str
    lengths: tuple[int, ...]
    arguments: Mapping[str, Any]

    def plan(self, choose: Chooser, **more: Any) -> Plan:
        arguments = {**self.arguments, **more}
        return plan_of(self.spec, self.lengths, device=profile(self.device), choose=choose, **arguments)


def requests(specs: Mapping[str, ArchSpec], count: int, seed: int, longest: int = LONGEST) -> Iterator[Drawn]:
    """So many requests, device by device, which keeps the chooser's memory."""
    rng = random.Random(seed)
    causal = sorted(name for name, spec in specs.items() if spec.semantics == "causal")
    others = sorted(specs.keys() - causal)
    for index in range(count):
        # Causal families have more ways to be wrong: six requests of seven are theirs, of each as many.
        some = causal if index % 7 else others
        name = some[(index if index % 7 else index // 7) % len(some)]
        yield _request(rng, name, specs[name], DEVICES[index * len(DEVICES) // count], longest)


def _request(rng: random.Random, name: str, spec: ArchSpec, device: str, longest: int) -> Drawn:
    generates = "generate" in spec.tasks and rng.random() < 0.65
    top = int(longest ** rng.uniform(0.25, 1))
    rows = rng.choice((1, 1, 1, 2, 4))
    lengths = tuple(max(1, int(top * rng.choice((1, rng.uniform(0.02, 1))))) for _ in range(rows))
    arguments: dict[str, Any] = {"mode": "generate" if generates else "embed", "dtype": "float32"}
    if generates:
        arguments["new_tokens"] = rng.choice((0, 1, 40, 500, None))
        start = rng.choice((0, 0, 0, 20, 999))
        uneven = rng.random() < 0.2
        arguments["cached"] = [rng.randint(0, start) for _ in lengths] if uneven else start
    elif spec.semantics != "causal" and rng.random() < 0.2:
        arguments["visible"] = [rng.randint(1, length) for length in lengths]
    if spec.vision is not None and rng.random() < 0.6:
        arguments["images"] = [_pictures(rng, length, spec.vision.rows_per_token) for length in lengths]
    if device == "h200":
        arguments |= {"dtype": rng.choice(("float32", "bfloat16")), "pack": True}
    if rng.random() < 0.45:
        arguments["chunk"] = max(1, top // rng.choice((2, 4, 20, 300)))
    if device == "cpu":
        # There matrices are unpacked where the budget holds them, so their bytes are no constant of the model.
        spec = replace(spec, quantization=None)
    return Drawn(name, spec, device, lengths, arguments)


def _pictures(rng: random.Random, tokens: int, merged: int) -> list[int]:
    """Patches of some pictures that fit a row."""
    found = []
    for _ in range(rng.choice((0, 1, 1, 3))):
        size = rng.randint(1, max(1, min(tokens, 2000) // 3))
        if size <= tokens:
            found.append(size * merged)
            tokens -= size
    return found


def tight(request: Drawn, choose: Chooser, share: float) -> Plan:
    """The request's plan in a budget of 0 to 5 % above the smallest that admits it, as `share` goes from 0 to 1."""
    least = request.plan(choose, budget=2**50).minimum
    return request.plan(choose, budget=least + int(0.05 * share * least))
