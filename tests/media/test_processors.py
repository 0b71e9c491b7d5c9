"""Where the settings of processors are found."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from archport.contract import CheckpointView
from archport.media.processors import image_settings, video_settings

OLD, VIDEO, NESTED = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"


def checkpoint(files: dict[str, Any]) -> CheckpointView:
    return cast(CheckpointView, SimpleNamespace(json=files.get))


@pytest.mark.parametrize(
    ("files", "image", "video"),
    [
        ({}, {}, {}),
        ({OLD: {"a": 1}}, {"a": 1}, {"a": 1}),
        ({OLD: {"a": 1}, VIDEO: {"b": 2}}, {"a": 1}, {"b": 2}),
        ({NESTED: {"image_processor": {"c": 3}, "video_processor": {"d": 4}}}, {"c": 3}, {"d": 4}),
        ({OLD: {"a": 1}, VIDEO: {"b": 2}, NESTED: {"image_processor": {"c": 3}}}, {"c": 3}, {"b": 2}),
        ({OLD: {"a": 1}, NESTED: {"processor_class": "Old"}}, {"a": 1}, {"a": 1}),
    ],
    ids=["none", "old", "both", "nested", "nested first", "another's"],
)
def test_nested_settings_win_and_a_video_falls_back_to_images(files: dict[str, Any], image: Any, video: Any):
    found = checkpoint(files)
    assert (image_settings(found), video_settings(found)) == (image, video)
