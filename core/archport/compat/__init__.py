"""archport behind interfaces that other libraries made common, so that programs written for those run on it.

from archport.compat import CrossEncoder, SentenceTransformer
"""

from archport.compat.cross_encoder import CrossEncoder
from archport.compat.sentence_transformers import SentenceTransformer

__all__ = ["CrossEncoder", "SentenceTransformer"]
