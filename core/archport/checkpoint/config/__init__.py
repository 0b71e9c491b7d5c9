"""One spelling of `config.json`: the dialects of one model, what its class fills in, its ropes and layer types."""

from archport.checkpoint.config.classes import CLASSES
from archport.checkpoint.config.config_class import ConfigClass
from archport.checkpoint.config.normalise import normalise_config

__all__ = ["CLASSES", "ConfigClass", "normalise_config"]
