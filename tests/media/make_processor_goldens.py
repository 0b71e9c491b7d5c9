"""Record what transformers' PIL processors make of a few images, as processors.npz, and their sizes, as sizes.json.

Needs transformers and Pillow (the `goldens` dependency group); tests read only the files.
"""

import json
from pathlib import Path

import numpy as np
import transformers
from transformers import Qwen2VLImageProcessorPil, SiglipImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_video

HERE = Path(__file__).parent
SHAPES = ((40, 56), (61, 33), (24, 24), (90, 20))
QWEN = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
SIZES = [
    *((480, 640), (1000, 1000), (33, 4000), (10, 1900), (1900, 10), (16, 16), (48, 80), (80, 48), (4000, 6000)),
    *((3120, 3120), (720, 1280), (97, 1), (1, 97), (2560, 2560), (31, 31), (112, 176), (4097, 4095)),
]
BOUNDS = ((65_536, 16_777_216), (4_096, 1_843_200))
VIDEOS = [(4, 360, 640), (7, 360, 640), (64, 720, 1280), (2, 20, 20), (768, 480, 480), (10, 16, 64)]


def picture(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth colours under noise, (height, width, 3) uint8."""
    dice = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / (5 + c) + seed) * np.cos(columns / (7 - c)) for c in range(3)], axis=-1)
    return np.clip(128 + 90 * waves + dice.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    qwen = Qwen2VLImageProcessorPil(
        **QWEN, size={"shortest_edge": 512, "longest_edge": 2048}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    clip = Qwen2VLImageProcessorPil(**QWEN, size={"shortest_edge": 512, "longest_edge": 2048})
    siglip = SiglipImageProcessorPil(size={"height": 32, "width": 48})
    for at, (height, width) in enumerate(SHAPES):
        image = picture(height, width, at)
        found = qwen(images=[image])
        arrays[f"image_{at}"] = image
        arrays[f"qwen_{at}"], arrays[f"grid_{at}"] = found["pixel_values"], found["image_grid_thw"][0]
        arrays[f"clip_{at}"] = clip(images=[image])["pixel_values"]
        arrays[f"siglip_{at}"] = siglip(images=[image])["pixel_values"][0]
    np.savez_compressed(HERE / "processors.npz", **{name: np.asarray(value) for name, value in arrays.items()})
    table = [
        {
            "height": height,
            "width": width,
            "min": low,
            "max": high,
            "size": smart_resize(height, width, 32, low, high),
        }
        for height, width in SIZES
        for low, high in BOUNDS
    ]
    videos = [
        {"frames": t, "height": h, "width": w, "size": smart_resize_video(t, h, w, 2, 32, 131_072, 786_432)}
        for t, h, w in VIDEOS
    ]
    text = json.dumps({"transformers": transformers.__version__, "images": table, "videos": videos}, indent=1)
    (HERE / "sizes.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
