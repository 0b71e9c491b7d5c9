"""What both classes here share: a model loaded by sentence-transformers' arguments, its prompts, limit and processes.

An argument that would change numbers is obeyed or refused; one that only says how torch should run is passed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from archport.compat import processes
from archport.compat.tensors import torch_is_there
from archport.contract import InputError
from archport.contract.errors import shown
from archport.engine import Model, load

log = logging.getLogger("archport")

# Of model_kwargs: how torch would run, which is archport's to plan.
_RUNS = {"attn_implementation", "device_map", "low_cpu_mem_usage", "use_safetensors", "file_name", "provider"}
_DTYPES = {"auto": None, "torch.float32": "float32", "torch.float16": "float16", "torch.bfloat16": "bfloat16"}


class Loaded:
    """A model that was loaded by sentence-transformers' arguments.

    Args:
        model_name_or_path: a name for `engine.load`, or a loaded model.
        device: kept for programs that ask for it; MLX chooses where the model runs.
        prompts, default_prompt_name: in addition to the stored ones, or in their place.
        revision: as `engine.load`.
        trust_remote_code, backend: no code of a repository is run, and only "torch" can be meant.
        model_kwargs: `dtype` or `torch_dtype`; how torch would run is passed over.
        processor_kwargs, tokenizer_kwargs: `model_max_length`, the limit in tokens; `padding_side` is passed over.
        options: of `engine.load`.

    Raises:
        InputError: for arguments that archport does not obey, naming them; else as `engine.load` does.
    """

    def __init__(
        self,
        model_name_or_path: str | Path | Model,
        *,
        device: Any = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        revision: str | None = None,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        config_kwargs: Mapping[str, Any] | None = None,
        model_card_data: object = None,
        backend: str = "torch",
        **options: Any,
    ) -> None:
        given = isinstance(model_name_or_path, Model) or Path(model_name_or_path).is_dir()
        _refuse(
            {
                "cache_folder": (cache_folder, "set HF_HUB_CACHE in the environment"),
                "token": (token if isinstance(token, str) else None, "set HF_TOKEN in the environment"),
                "config_kwargs": (config_kwargs, "config.json decides; edit it"),
                "backend": (None if backend == "torch" else backend, "archport runs on MLX"),
                "local_files_only": (
                    local_files_only and not given,
                    "set HF_HUB_OFFLINE=1 in the environment, or give a folder",
                ),
            }
        )
        limit = _limit({**(tokenizer_kwargs or {}), **(processor_kwargs or {})})
        if isinstance(model_name_or_path, Model):
            self.archport = model_name_or_path
        else:
            dtype = _dtype(model_kwargs or {})
            options = options if dtype is None else {"dtype": dtype, **options}
            self.archport = load(model_name_or_path, revision=revision, **options)
        inputs = self.archport.inputs
        self.prompts: dict[str, str] = {"query": "", "document": "", **inputs.prompts, **(prompts or {})}
        self.default_prompt_name = default_prompt_name or inputs.default_prompt
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise InputError(
                f"default_prompt_name={shown(self.default_prompt_name)} is none of the prompts {sorted(self.prompts)}"
            )
        self._limit = limit
        self._device = device

    def __reduce__(self) -> tuple[Callable[..., object], tuple[type, dict[str, Any]]]:
        # By hand, because pickle looks at `__class__`, which is the host's where one asks for it.
        return _restored, (type(self), self.__dict__)

    def __getattr__(self, name: str) -> Any:
        # Only what is not there comes here; `copy` and `pickle` ask for names like these of objects without attributes.
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"archport.compat's {type(self).__name__} has no {name!r}: it runs a model on MLX and has no torch "
            "modules, so it neither trains nor saves; use sentence-transformers for that"
        )

    def __repr__(self) -> str:
        return f"<archport.compat.{type(self).__name__} of {self.archport!r}>"

    @property
    def device(self) -> Any:
        """Where answers are when they are tensors: torch's CPU."""
        if not torch_is_there():
            return "cpu"
        import torch  # pyright: ignore[reportMissingImports]

        return torch.device("cpu")

    def to(self, *_: Any, **__: Any) -> Self:
        """Itself: MLX chooses where the model runs."""
        return self

    def eval(self) -> Self:
        """Itself: nothing here trains."""
        return self

    @property
    def tokenizer(self) -> Tokenizer:
        """A copy of the checkpoint's tokenizer, of the tokenizers library."""
        return self.archport.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text or pair, special ones included; longer ones are cut."""
        return self.archport.max_tokens if self._limit is None else self._limit

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"max_seq_length={shown(value)}; expected a positive integer, or None for the model's own")
        self._limit = value

    def get_max_seq_length(self) -> int:
        """`max_seq_length`."""
        return self.max_seq_length

    def start_multi_process_pool(self, target_devices: Sequence[str] | None = None) -> processes.Pool:
        """Spawned processes that each load this model, for `pool=`; end them with `stop_multi_process_pool`.

        Args:
            target_devices: one name for each process, as "cuda:0" or "cpu"; default: the visible GPUs, else two CPUs.
        """
        return processes.started(self, target_devices or _devices(self.archport))

    @staticmethod
    def stop_multi_process_pool(pool: processes.Pool) -> None:
        """End the processes of a pool."""
        processes.stopped(pool)

    def _prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """The text in front of every input: `prompt`, else the one of that name, else the default one, else none."""
        if prompt is not None:
            return prompt
        name = prompt_name if prompt_name is not None else self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise InputError(f"prompt_name={shown(name)} is none of the prompts {sorted(self.prompts)}")
        return self.prompts[name]

    def _run(
        self,
        method: str,
        inputs: list[Any],
        options: dict[str, Any],
        *,
        shown: bool,
        device: Any,
        pool: processes.Pool | None,
        chunk_size: int | None,
    ) -> list[Any]:
        """What a method answers for all inputs: in this process, or by chunks in a pool or a process per device."""
        if pool is None and not (isinstance(device, list | tuple) and device):
            return [getattr(self, method)(inputs, shown=shown, **options)]
        if not inputs:
            return [getattr(self, method)([], shown=False, **options)]
        used = pool if pool is not None else self.start_multi_process_pool([str(name) for name in device])
        try:
            return processes.answered(used, method, inputs, chunk_size, shown, {**options, "shown": False})
        finally:
            if pool is None:
                processes.stopped(used)


def _restored(kind: type, state: dict[str, Any]) -> object:
    other = object.__new__(kind)
    other.__dict__.update(state)
    return other


def check_batch(batch_size: int) -> None:
    """Raise InputError for what is no batch size, although archport plans its own."""
    if not isinstance(batch_size, int | np.integer) or batch_size <= 0:
        raise InputError(f"batch_size={shown(batch_size)}; expected a positive integer (archport plans its batches)")


def bar(show_progress_bar: bool | None) -> bool:
    """Whether to show a bar: as asked for, else when this package's logger tells what happens."""
    if show_progress_bar is None:
        return log.getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    return bool(show_progress_bar)


def _devices(model: Model) -> list[str]:
    import mlx.core as mx

    return [f"cuda:{at}" for at in range(mx.device_count(mx.gpu))] if model.device.kind == "cuda" else ["cpu"] * 2


def _refuse(arguments: Mapping[str, tuple[object, str]]) -> None:
    for name, (value, advice) in arguments.items():
        if value:
            raise InputError(f"{name}={shown(value)} is not obeyed here; {advice}")


def _dtype(keywords: Mapping[str, Any]) -> str | None:
    others = sorted(set(keywords) - _RUNS - {"dtype", "torch_dtype"})
    if others:
        raise InputError(f"model_kwargs={{{others[0]!r}: ...}} is not obeyed here; expected dtype or torch_dtype")
    stated = keywords.get("dtype", keywords.get("torch_dtype"))
    return None if stated is None else _DTYPES.get(str(stated), str(stated))


def _limit(keywords: Mapping[str, Any]) -> int | None:
    others = sorted(set(keywords) - {"model_max_length", "padding_side", "use_fast"})
    if others:
        raise InputError(
            f"processor_kwargs={{{others[0]!r}: ...}} is not obeyed here; the tokenizer's files decide. Expected "
            "model_max_length"
        )
    return keywords.get("model_max_length")
