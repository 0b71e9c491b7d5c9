"""A checkpoint written again with its matrices quantised, or in another element type, in little memory.

What archport and mlx-lm read: the stored names, `scales` and `biases` next to a packed `weight`, and `quantization` in
config.json. Every other file of the pipeline is kept.
"""

from archport.conversion.convert import Conversion, convert
from archport.conversion.loss import Loss, measure_loss
from archport.conversion.settings import Settings, settings_of

__all__ = ["Conversion", "Loss", "Settings", "convert", "measure_loss", "settings_of"]
