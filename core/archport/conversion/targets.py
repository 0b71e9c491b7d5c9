"""What a converted checkpoint holds, tensor by tensor, from headers alone; refuses what can't be quantised.

Names stay as they are stored, so whoever reads the source reads the output: but for experts, which MLX's readers expect
stacked when they are quantised, and trunks saved without their prefix. Which matrices can be quantised the plugin's own
module says. Its `sanitize` gets stand-ins of one element that are spread over the stored shapes, so no weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from logging import getLogger
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx

from archport.checkpoint.files import shorten
from archport.checkpoint.headers import TensorInfo
from archport.checkpoint.weights import Sensitive
from archport.contract import InputError
from archport.contract.errors import CheckpointError
from archport.contract.spec import DType, Quantization
from archport.conversion.additions import Additions
from archport.conversion.settings import Settings
from archport.loading import Description

FLOATING: tuple[DType, ...] = get_args(DType)
_EXPERT = re.compile(r"^(?P<layer>.+)\.experts\.(?P<index>\d+)\.(?P<matrix>gate_proj|up_proj|down_proj)\.weight$")
_FUSED = re.compile(r"^(?P<layer>.+)\.experts\.(?P<matrix>gate_up_proj|down_proj)$")


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive bytes of a source file: rows of a tensor.

    Args:
        file: relative to the checkpoint, or to an adapter that brings the tensor.
        offset: its first byte in the file.
        nbytes: how many.
        folder: what the file is relative to, where that is not the checkpoint.
        added: (first row, end) -> what an adapter adds to these rows, (rows, columns) float32; None where it does not.
    """

    file: str
    offset: int
    nbytes: int
    folder: Path | None = None
    added: Callable[[int, int], mx.array] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor of the output before it is quantised.

    Args:
        name: as the output's files spell it.
        dtype: element type of the source.
        shape: of the dense tensor.
        stretches: the source's bytes in their order.
        to: element type of the output, and of scales.
        packed: how it is quantised; None where it stays dense.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stretches: tuple[Stretch, ...]
    to: str
    packed: Quantization | None = None

    @property
    def adapted(self) -> bool:
        """Whether an adapter adds to it."""
        return any(stretch.added is not None for stretch in self.stretches)

    def stored(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """(name, element type, shape) of each tensor that it becomes."""
        if self.packed is None:
            return [(self.name, self.to, self.shape)]
        *rows, columns = self.shape
        path = self.name.removesuffix(".weight")
        groups = (*rows, columns // self.packed.group_size)
        words = (self.name, "uint32", (*rows, columns * self.packed.bits // 32))
        if self.packed.mode != "affine":
            return [words, (f"{path}.scales", "uint8", groups)]
        return [words, (f"{path}.scales", self.to, groups), (f"{path}.biases", self.to, groups)]


def targets_of(about: Description, settings: Settings) -> list[Target]:
    """Every tensor of the output, in the order of the source's files.

    Raises:
        CheckpointError: quantised already, an element type that can't be converted, or matrices that can't be
            quantised, by name.
        InputError: a pattern of `keep` that no tensor matches.
    """
    tensors = about.checkpoint.tensors
    where = str(about.checkpoint.folder)
    _refuse_packed(where, about, tensors)
    brought = frozenset[str]() if about.checkpoint.adapted is None else frozenset(about.checkpoint.adapted.whole)
    # What an adapter brings comes after the checkpoint's files, as another one.
    ordered = sorted(tensors.values(), key=lambda info: (info.name in brought, info.file, info.offset))
    adds = None if about.checkpoint.adapted is None else Additions(about.checkpoint.adapted)
    whole = [_as_stored(info, adds) for info in ordered]
    if settings.quantization is None:
        module = about.hooks.build(about.spec, about.checkpoint.config)
        wide = isinstance(module, Sensitive) and module
        return [_cast(target, settings, not (wide and wide.in_float32(target.name))) for target in whole]
    for pattern in settings.keep:
        if not any(_matches(name, (pattern,)) for name in tensors):
            raise InputError(f"keep={pattern!r} matches none of the {len(tensors)} tensors, such as {min(tensors)!r}")
    return _Packer(about, settings, settings.quantization).targets(whole)


def _as_stored(info: TensorInfo, adds: Additions | None) -> Target:
    """A stored tensor as it is, but for what an adapter does to it."""
    stretch = Stretch(info.file, info.offset, info.nbytes)
    if adds is not None:
        stretch = replace(stretch, folder=adds.folder(info.name), added=adds.to(info))
    return Target(info.name, info.dtype, info.shape, (stretch,), info.dtype)


def _refuse_packed(where: str, about: Description, tensors: Mapping[str, TensorInfo]) -> None:
    scales = [name for name in tensors if name.endswith((".scales", ".weight_scale_inv"))]
    if about.spec.quantization is not None or scales:
        raise CheckpointError(
            f"{where}: is quantised already ({shorten(scales, 2) or 'config.json says so'}), and quantising twice adds "
            "both losses. Convert the unquantised version."
        )
    strange = [
        f"{info.name} ({info.dtype})" for info in tensors.values() if info.dtype.startswith(("float8", "float4"))
    ]
    strange += [f"{info.name} (float64)" for info in tensors.values() if info.dtype == "float64"]
    if strange:
        raise CheckpointError(
            f"{where}: {shorten(strange)} can't be converted; expected float32, float16 or bfloat16. Use such a "
            "version of this checkpoint."
        )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern) for pattern in patterns)


def _cast(target: Target, settings: Settings, narrow: bool) -> Target:
    if settings.dtype is None or target.dtype not in FLOATING or (not narrow and settings.dtype != "float32"):
        return target
    return replace(target, to=settings.dtype)


class _Packer:
    """Decides, for one plugin's module, what is quantised and under which name."""

    def __init__(self, about: Description, settings: Settings, packing: Quantization) -> None:
        self._about, self._settings, self._packing = about, settings, packing
        self._module: Any = about.hooks.build(about.spec, about.checkpoint.config)
        self._where = str(about.checkpoint.folder)
        # Names of output tensors that `keep` matched under the names of the source.
        self._kept: set[str] = set()

    def targets(self, whole: Sequence[Target]) -> list[Target]:
        prefix = self._missing_prefix(whole)
        named = [replace(target, name=f"{prefix}{target.name}") for target in whole]
        stacked = list(self._stacked(named))
        paths = self._paths(stacked)
        made: list[Target] = []
        unfit: list[str] = []
        for target in stacked:
            path = paths.get(target.name)
            cast = _cast(target, self._settings, not self._sensitive(path or target.name))
            why = self._reason_against(target, path)
            if why == "dense":
                made.append(cast)
            elif why:
                unfit.append(f"{target.name} {target.shape} ({why})")
            else:
                made.append(replace(cast, packed=self._packing))
        if unfit:
            raise CheckpointError(
                f"{self._where}: {len(unfit)} matrices can't be quantised in {self._packing.mode} with "
                f"{self._packing.bits} bits in groups of {self._packing.group_size}: {shorten(unfit, 4)}. "
                "Choose another group_size or mode, or name them in keep= to leave them as they are."
            )
        if not any(target.packed for target in made):
            raise CheckpointError(f"{self._where}: holds no matrix that can be quantised, or keep= names all of them.")
        self._check(stacked, made)
        return made

    def _missing_prefix(self, whole: Sequence[Target]) -> str:
        """What mlx-lm wants before the names of a trunk whose config names a model with a head."""
        named = self._about.checkpoint.config.get("architectures") or [""]
        if not str(named[0]).endswith("ForCausalLM"):
            return ""
        prefixed = self._paths([replace(target, name=f"model.{target.name}") for target in whole])
        as_stored = self._paths(whole)
        same = bool(as_stored) and all(path == f"model.{name}" for name, path in as_stored.items())
        return "model." if same and set(prefixed) == {f"model.{name}" for name in as_stored} else ""

    def _stacked(self, whole: Sequence[Target]) -> Iterator[Target]:
        """The tensors with every layer's experts as MLX's readers have them: (E, N, K) by matrix."""
        sets: dict[tuple[str, str], dict[int, Target]] = {}
        for target in whole:
            if match := _EXPERT.match(target.name):
                sets.setdefault((match["layer"], match["matrix"]), {})[int(match["index"])] = target
        modules = dict(self._module.named_modules())
        for target in whole:
            if match := _EXPERT.match(target.name):
                experts = sets.get((match["layer"], match["matrix"]), {})
                if sorted(experts) != list(range(len(experts))):
                    self._note_kept(target.name, [target.name])
                    yield target
                elif experts[0] is target:
                    stretches = tuple(stretch for index in range(len(experts)) for stretch in experts[index].stretches)
                    name = f"{match['layer']}.switch_mlp.{match['matrix']}.weight"
                    self._note_kept(name, [expert.name for expert in experts.values()])
                    yield replace(target, name=name, shape=(len(experts), *target.shape), stretches=stretches)
            elif match := _FUSED.match(target.name):
                for half in _unfused(target, match["layer"], match["matrix"], modules):
                    self._note_kept(half.name, [target.name])
                    yield half
            else:
                self._note_kept(target.name, [target.name])
                yield target

    def _note_kept(self, name: str, sources: Sequence[str]) -> None:
        if any(_matches(source, self._settings.keep) for source in (name, *sources)):
            self._kept.add(name)

    def _sensitive(self, path: str) -> bool:
        return isinstance(self._module, Sensitive) and self._module.in_float32(path)

    def _paths(self, targets: Sequence[Target]) -> dict[str, str]:
        """Name -> the parameter that `sanitize` makes of a tensor and of nothing else."""
        stored = {target.name: _spread(index, target.dtype, target.shape) for index, target in enumerate(targets)}
        by_identity = {id(array): name for name, array in stored.items()}
        with _quiet():
            made = self._fresh().sanitize(dict(stored))
        return {by_identity[id(array)]: path for path, array in made.items() if id(array) in by_identity}

    def _fresh(self) -> Any:
        # `sanitize` may change the module, for example add a head that is stored.
        self._module = self._about.hooks.build(self._about.spec, self._about.checkpoint.config)
        return self._module

    def _reason_against(self, target: Target, path: str | None) -> str:
        """Why a tensor is not quantised: "dense" where it never is, "" where it can be."""
        spec = self._about.spec
        if target.dtype not in FLOATING or len(target.shape) not in (2, 3) or target.name in self._kept:
            return "dense"
        if path is None:
            # Cut, turned or joined by the plugin; a bias of such a shape or a filter is no product's matrix.
            return (
                "stored in a layout that the model rearranges"
                if _EXPERT.match(target.name) or _FUSED.match(target.name)
                else "dense"
            )
        owner = dict(self._module.named_modules()).get(path.removesuffix(".weight"))
        if owner is None or not path.endswith(".weight") or not callable(getattr(owner, "to_quantized", None)):
            return "dense"
        if self._sensitive(path):
            return "dense"
        if spec.experts is not None and len(target.shape) == 2 and target.shape[0] == spec.experts.count:
            # A router: its few numbers decide which experts run.
            return "dense"
        if target.shape[-1] % self._packing.group_size:
            return f"{target.shape[-1]} columns are no multiple of {self._packing.group_size}"
        if self._packing.mode == "nvfp4" and math.prod(target.shape) // self._packing.group_size % 4:
            # MLX 0.32.4 on a CPU neither makes nor reads such a matrix.
            return "its scales are no multiple of 4, which MLX does not read"
        return ""

    def _check(self, dense: Sequence[Target], made: Sequence[Target]) -> None:
        """Refuse an output that the plugin's module would not read as it was meant."""
        paths = self._paths(dense)
        stored = {
            name: _spread(index, dtype, shape)
            for index, (name, dtype, shape) in enumerate(entry for target in made for entry in target.stored())
        }
        with _quiet():
            read = self._fresh().sanitize(stored)
        lost = [
            target.name
            for target in made
            if target.packed and f"{paths[target.name].removesuffix('.weight')}.scales" not in read
        ]
        if lost:
            raise CheckpointError(
                f"{self._where}: {self._about.plugin.label} does not read {shorten(lost, 4)} quantised under "
                "the stored names. Name them in keep= to leave them as they are."
            )


def _unfused(target: Target, layer: str, matrix: str, modules: Mapping[str, Any]) -> Iterator[Target]:
    """gate_up_proj (E, 2N, K) as its halves, down_proj (E, K, N) as it is; as stored where the model has it turned."""
    count, rows, columns = target.shape if len(target.shape) == 3 else (0, 0, 0)
    names = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else (matrix,)
    paths = [f"{layer}.switch_mlp.{name}" for name in names]
    owner = next((module for path, module in modules.items() if path.endswith(_tail(paths[0]))), None)
    if not count or owner is None or tuple(owner.weight.shape) != (count, rows // len(names), columns):
        yield target
        return
    first = target.stretches[0]
    size = first.nbytes // (count * len(names))
    for half, path in enumerate(paths):
        stretches = tuple(
            replace(first, offset=first.offset + (expert * len(names) + half) * size, nbytes=size)
            for expert in range(count)
        )
        yield replace(target, name=f"{path}.weight", shape=(count, rows // len(names), columns), stretches=stretches)


def _tail(path: str) -> str:
    """A layer's path from its number on, which prefixes of the published layouts leave alone."""
    return path[match.start() :] if (match := re.search(r"layers\.\d+\.", path)) else path


def _spread(value: int, dtype: str, shape: tuple[int, ...]) -> mx.array:
    """An array of one element that takes no memory, unlike every other of another value."""
    kind = getattr(mx, dtype, mx.uint8)
    one = mx.array(value % 2 == 0) if kind == mx.bool_ else mx.array(value % 199).astype(kind)
    return mx.broadcast_to(one, shape) if math.prod(shape) else mx.zeros(shape, kind)


@contextmanager
def _quiet() -> Iterator[None]:
    """What `sanitize` logs about values would be about the stand-ins."""
    log = getLogger("archport")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before
