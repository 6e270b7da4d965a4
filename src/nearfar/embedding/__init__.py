"""Many images to embeddings on disk: by shards, in bounded memory, gone on with after a crash, here or on a Ray cluster."""

from nearfar.embedding.gallery import build_index
from nearfar.embedding.output import Embeddings
from nearfar.embedding.stream import embed_stream

__all__ = ["Embeddings", "build_index", "embed_stream"]
