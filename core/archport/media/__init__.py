"""Images and video: what they are before they are decoded, and their pixels afterwards. numpy and Pillow, no mlx.

Measuring reads headers only and refuses what no model should see; decoding comes after a request was planned.
`PictureReader` puts it together for conversations with images and video in them.
"""

from archport.media.conversations import (
    CLOSING,
    END,
    START,
    Document,
    Part,
    contents,
    conversation,
    fields_of,
    messages_of,
    plain,
    rendered,
    turns,
)
from archport.media.images import ImageLimits, ImageSource, measure_image
from archport.media.patches import normalise, patch_rows, unfold
from archport.media.processors import channel_normalisation, image_settings, video_settings
from archport.media.reading import PictureReader, Settings
from archport.media.resize import resize, scaled, smart_resize, smart_resize_video
from archport.media.video import VideoSource, measure_video, sample_frames

__all__ = [
    "CLOSING",
    "END",
    "START",
    "Document",
    "ImageLimits",
    "ImageSource",
    "Part",
    "PictureReader",
    "Settings",
    "VideoSource",
    "channel_normalisation",
    "contents",
    "conversation",
    "fields_of",
    "image_settings",
    "measure_image",
    "measure_video",
    "messages_of",
    "normalise",
    "patch_rows",
    "plain",
    "rendered",
    "resize",
    "sample_frames",
    "scaled",
    "smart_resize",
    "smart_resize_video",
    "turns",
    "unfold",
    "video_settings",
]
