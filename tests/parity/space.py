"""A seeded draw of a family's checkpoints. Pure data; both environments read it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .families import FAMILIES
from .options import UNSAID


@dataclass(frozen=True, slots=True)
class Draw:
    """One checkpoint: a family, an architecture, its options that are not the default, and the seed of its values.

    `longest` is the tokens of its longest row, where its positions allow as many.
    """

    family: str
    architecture: str
    seed: int
    options: Mapping[str, Any]
    longest: int = 60

    def without(self, name: str) -> Draw:
        """The same with one option as it is by default."""
        rest = {key: value for key, value in self.options.items() if key != name}
        return Draw(self.family, self.architecture, self.seed, rest, self.longest)


def word(index: int) -> str:
    """The text of a vocabulary id. No word begins another: a special token is found inside words, too."""
    return f"t{index:02d}"


# An option is something else than its default so often.
OFTEN = 0.22


def draws(family: str, seed: int, count: int) -> list[Draw]:
    """`count` draws of a family; the first has every option as it is by default."""
    about, found = FAMILIES[family], list[Draw]()
    for index in range(count):
        dice = random.Random(f"{family} {seed} {index}")
        options: dict[str, Any] = {}
        for name, values in about.options.items():
            if len(values) > 1 and dice.random() < OFTEN and index:
                options[name] = dice.choice(values[1:])
        found.append(Draw(family, dice.choice(list(about.tasks)), 1000 * seed + index, options))
    return found


def config_of(draw: Draw) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(keys of the config class, edits of the saved file, what is done to the checkpoint) of a draw."""
    about = FAMILIES[draw.family]
    config: dict[str, Any] = {
        key: dict(value) if isinstance(value, dict) else value for key, value in about.base.items()
    }
    raw: dict[str, Any] = {}
    make: dict[str, Any] = {}
    for name, values in about.options.items():
        value = draw.options.get(name, values[0])
        kind, _, rest = name.partition(".")
        if kind in ("raw", "make"):
            (raw if kind == "raw" else make)[rest] = value
        elif value != UNSAID:
            (config[f"{kind}_config"] if rest else config)[rest or name] = value
    return config, {key: value for key, value in raw.items() if value != UNSAID}, make


def lengths_of(seed: int, longest: int) -> list[int]:
    """Tokens of the rows that a draw is asked for: ragged, with one of a single token."""
    dice = random.Random(seed)
    return [1, *(dice.randint(2, longest) for _ in range(3)), longest]
