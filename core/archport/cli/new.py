"""`archport new`: the skeleton of a plugin that installs, is discovered, and fails conformance only at its TODOs.

Knows the shape of a plugin's folder. Knows nothing of any architecture beyond what its name suggests.
"""

from __future__ import annotations

import os
import re
import tempfile
from datetime import date
from pathlib import Path
from string import Template
from typing import Annotated

import typer

import archport
from archport.contract import InputError
from archport.contract.errors import shown

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
LONGEST = 30


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Lower case, such as qwen2 or acme_bert.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Folder to create archport-NAME in.")] = Path("."),
) -> None:
    """Write the skeleton of a plugin: pyproject, hooks, model, conformance test, README, licence, workflow of CI."""
    from archport.contract.plugins import discover

    check_name(name, taken={plugin.name: plugin.label for plugin in discover()})
    folder = write_skeleton(name, into)
    typer.echo(f"wrote {folder}:")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        todos = path.read_text(encoding="utf-8").count("TODO:")
        note = f"  {todos} TODO{'s' if todos > 1 else ''}" if todos else ""
        typer.echo(f"  {path.relative_to(folder)}{note}")
    typer.echo(f"next:\n  pip install --editable {folder}\n  archport plugins\n  archport check {name}")


def check_name(name: str, taken: dict[str, str]) -> None:
    """Accept a name that works as entry point, as `archport-<name>` and as `archport_<name>`.

    Args:
        taken: names of installed plugins, each with its label.

    Raises:
        InputError: for a name of another form, or one that an installed plugin has.
    """
    if len(name) > LONGEST or not _NAME.fullmatch(name):
        close = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_").removeprefix("archport_").lstrip("0123456789_")
        hint = f", for example {close[:LONGEST]!r}" if close else ""
        raise InputError(
            f"{name!r} is no name for a plugin; expected lower-case letters, digits and single underscores, a letter "
            f"first, at most {LONGEST} characters{hint}"
        )
    if name.startswith("archport"):
        raise InputError(f"{name!r} would be the distribution archport-{name}; leave the prefix out")
    if name in taken:
        raise InputError(
            f"a plugin called {name!r} is installed: {taken[name]}. Two plugins can't share a name; choose another, or "
            "uninstall that one"
        )


def write_skeleton(name: str, into: Path) -> Path:
    """Write `into`/archport-<name> and return it; all of it or nothing.

    Raises:
        InputError: when that folder exists, or `into` can't be written to.
    """
    folder = into / f"archport-{name.replace('_', '-')}"
    # `os.path` says no to a name that is too long, instead of raising.
    if os.path.exists(folder):
        raise InputError(f"{folder} exists; nothing was written. Choose another name or --into, or remove it")
    major, minor = archport.__version__.split(".")[:2]
    words = {
        "name": name,
        "distribution": folder.name,
        "package": f"archport_{name}",
        "title": "".join(part.capitalize() for part in name.split("_")),
        "year": str(date.today().year),
        "requires": f"archport>={major}.{minor},<{major}.{int(minor) + 1}",
    }
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".archport-new-") as made:
            whole = Path(made) / "plugin"
            for path, text in FILES.items():
                target = whole / Template(path).substitute(words)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(Template(text).substitute(words), encoding="utf-8")
            whole.rename(folder)
    except OSError as error:
        raise InputError(f"--into {shown(str(into))} can't be written: {error.strerror or error}") from error
    return folder


PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$distribution"
version = "0.1.0"
description = "$title for archport."
readme = "README.md"
license = "MIT"
license-files = ["LICENSE"]
requires-python = ">=3.11"
keywords = ["archport", "mlx"]
classifiers = [
  "Development Status :: 3 - Alpha",
  "Intended Audience :: Developers",
  "Operating System :: MacOS",
  "Operating System :: POSIX :: Linux",
  "Programming Language :: Python :: 3",
]
dependencies = ["$requires"]

[project.optional-dependencies]
test = ["pytest>=8", "ruff>=0.9"]

[project.entry-points.archport]
$name = "$package"

[tool.hatch.build.targets.wheel]
packages = ["$package"]

[tool.pytest.ini_options]
addopts = "--import-mode=importlib"

[tool.ruff]
line-length = 120

[tool.ruff.lint]
select = ["E", "F", "I", "W"]
"""

HOOKS = '''\
"""$title: what the architecture is. Imports no mlx, because every command of archport loads every plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from archport.contract import ArchSpec, AttentionLayer, Example, Trunk, hookimpl

# The contract that this is written for; an archport that does not understand it says so.
ARCHPORT_CONTRACT = "0.2"
# TODO: what `architectures` says in the config.json files that are yours. These are guesses.
ARCHITECTURES = ("${title}Model", "${title}ForCausalLM")


@hookimpl
def archport_claim(config: Mapping[str, Any]) -> ArchSpec | None:
    if not config.get("causal", True) or not any(name in ARCHITECTURES for name in config.get("architectures") or []):
        return None
    # TODO: a plain decoder is assumed. Declare what each layer really sees: semantics, heads, reach.
    heads = config["num_attention_heads"]
    layer = AttentionLayer(
        "causal",
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
    )
    return ArchSpec(
        arch="$name",
        tasks=("embed",),
        layers=(layer,) * config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        max_positions=config["max_position_embeddings"],
        dtype=config.get("dtype", "float32"),
        tied_head=bool(config.get("tie_word_embeddings", False)),
        qk_norm=False,
    )


@hookimpl
def archport_build(spec: ArchSpec, config: Mapping[str, Any]) -> Trunk:
    from $package.model import $title

    return $title(spec, config)


@hookimpl
def archport_examples() -> Sequence[Example]:
    # TODO: one tiny config per kind of checkpoint that you claim, with every key that your module reads.
    config = {
        "architectures": ["${title}Model"],
        "model_type": "$name",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 176,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": 199,
        "max_position_embeddings": 512,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    return [Example("a tiny $name", config)]
'''

MODEL = '''\
"""The $title trunk: token ids to hidden states after the final norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from archport.contract import ArchSpec, LayerContext


class $title(nn.Module):
    """Parameters are named as in the published checkpoints, after `sanitize`."""

    def __init__(self, spec: ArchSpec, config: Mapping[str, Any]) -> None:
        super().__init__()
        # TODO: embedding, blocks and final norm. archport.layers has Attention, GatedMLP, PreNormBlock, Rotary.
        raise NotImplementedError("TODO: build the layers, in $package/model.py")

    def __call__(self, input_ids: mx.array, ctx: LayerContext) -> mx.array:
        # TODO: (B, L) ids to (B, L, D). Attention goes through ctx.attend; build no mask and keep no state.
        raise NotImplementedError("TODO: run the layers, in $package/model.py")

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        # TODO: rename what is published under other names, and drop what embedding does not use.
        return {name: value for name, value in weights.items() if "lm_head." not in name}
'''

TEST = '''\
"""Everything archport asks of a plugin; `archport check $name` runs the same list."""

from pathlib import Path

from archport.testing import parametrize_conformance

# What the original implementation computes; see the README.
GOLDEN = Path(__file__).with_name("golden.npz")


@parametrize_conformance("$name", golden=GOLDEN if GOLDEN.exists() else None)
def test_conformance(check):
    check()
'''

README = """\
# $distribution

$title for archport.

    pip install --editable ".[test]"
    archport plugins             # is it found, and what does it declare?
    archport check $name         # what is still to do?
    pytest                       # the same list, for continuous integration

`$package/__init__.py` says what the architecture is,
`$package/model.py` builds it. Search both for TODO.

Conformance shows that the parts agree with each other, not that they are the right parts. So record what transformers
computes from your examples (token ids, hidden states, and of models that generate logits and greedy tokens), with any
Python that has torch and transformers. `pytest` compares from then on, and says which stage differs first:

    archport record $name --output tests/golden.npz --python /path/to/python

`.github/workflows/ci.yml` runs lint, tests and `archport check`. With `--recorded` the latter keeps what ran in
`tests/ran.json`; run it once here and commit the file, and a run that checks less is a failure. `LICENSE` is a
suggestion.
"""

LICENSE = """\
MIT License

Copyright (c) $year the authors of $distribution

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""

WORKFLOW = """\
name: ci
on: [push, pull_request]
jobs:
  check:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      # On Linux MLX has its backend in an extra of archport; on a Mac there is none to name.
      - run: pip install "archport[cpu]" ".[test]"
      - run: ruff check . && ruff format --check .
      - run: python -m pytest
      - run: archport check $name --recorded tests/ran.json
"""

FILES = {
    "pyproject.toml": PYPROJECT,
    "README.md": README,
    "LICENSE": LICENSE,
    ".github/workflows/ci.yml": WORKFLOW,
    "$package/__init__.py": HOOKS,
    "$package/model.py": MODEL,
    "tests/test_conformance.py": TEST,
}
