"""The settings of a checkpoint's image and video processors, from whichever of its files hold them.

Knows their names and precedence, and nothing of what the settings mean.
"""

from __future__ import annotations

from typing import Any

from archport.contract import CheckpointView


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


def _nested(checkpoint: CheckpointView, name: str) -> dict[str, Any] | None:
    found = (checkpoint.json("processor_config.json") or {}).get(name)
    return found if isinstance(found, dict) else None
