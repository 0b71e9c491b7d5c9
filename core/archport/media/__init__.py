"""Images and video: what they are before they are decoded, and their pixels afterwards. numpy and Pillow, no mlx.

Measuring reads headers only and refuses what no model should see; decoding comes after a request was planned.
`reading.PictureReader` puts it together for conversations with images and video in them.
"""

from archport.media.images import ImageLimits, ImageSource, measure_image
from archport.media.patches import normalise, patch_rows, unfold
from archport.media.resize import resize, scaled, smart_resize, smart_resize_video
from archport.media.video import VideoSource, measure_video, sample_frames

__all__ = [
    "ImageLimits",
    "ImageSource",
    "VideoSource",
    "measure_image",
    "measure_video",
    "normalise",
    "patch_rows",
    "resize",
    "sample_frames",
    "scaled",
    "smart_resize",
    "smart_resize_video",
    "unfold",
]
