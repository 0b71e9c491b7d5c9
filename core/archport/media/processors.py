"""The settings of a checkpoint's image and video processors, from whichever of its files hold them.

Knows their names and precedence, and of what the settings mean only the normalisation, which all have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archport.contract import CheckpointError, CheckpointView

_CHANNELS = 3
_FILES = "preprocessor_config.json or processor_config.json"


def image_settings(checkpoint: CheckpointView) -> dict[str, Any]:
    """The image processor's: nested in processor_config.json, as saved today, else a file of its own, else {}."""
    return _nested(checkpoint, "image_processor") or checkpoint.json("preprocessor_config.json") or {}


def video_settings(checkpoint: CheckpointView) -> dict[str, Any]:
    """The video processor's, found likewise; the image processor's file where it has none of its own."""
    return (
        _nested(checkpoint, "video_processor")
        or checkpoint.json("video_preprocessor_config.json")
        or checkpoint.json("preprocessor_config.json")
        or {}
    )


def channel_normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel: `image_mean` and `image_std`, 0.5 where they are left out.

    Raises:
        CheckpointError: no number nor a list of three, or a deviation that is not above 0.
    """
    mean, std = (_per_channel(key, settings.get(key)) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise CheckpointError(f"{_FILES}: image_std={settings['image_std']!r:.80}; expected numbers above 0.")
    return mean, std


def _per_channel(key: str, value: Any) -> tuple[float, ...]:
    if value is None:
        return (0.5,) * _CHANNELS
    values = value if isinstance(value, list) else [value] * _CHANNELS
    numbers = [each for each in values if isinstance(each, int | float) and not isinstance(each, bool)]
    # float32 holds nothing larger.
    if len(numbers) != len(values) or len(values) != _CHANNELS or any(not abs(each) < 3e38 for each in numbers):
        raise CheckpointError(f"{_FILES}: {key}={value!r:.80}; expected a finite number, or a list of {_CHANNELS}.")
    return tuple(float(each) for each in numbers)


def _nested(checkpoint: CheckpointView, name: str) -> dict[str, Any] | None:
    found = (checkpoint.json("processor_config.json") or {}).get(name)
    return found if isinstance(found, dict) else None
