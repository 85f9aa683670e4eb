"""Networks of classes that take vectors instead: every embedding of classes becomes a linear map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.layers.spectral import SpectralEmbedding, SpectralLinear


class VectorMap(nn.Linear):
    """A linear map of a vector in the place of an embedding of classes.

    Before training it spreads as the rows of the embedding did, around their mean.
    """

    def __init__(self, embedding: nn.Embedding, size: int) -> None:
        super().__init__(size, embedding.embedding_dim)
        rows = embedding.weight.detach()
        spread = float(rows.std(dim=0, unbiased=False).mean())
        with torch.no_grad():
            self.weight.normal_(0, spread / size**0.5)
            self.bias.copy_(rows.mean(dim=0))

    def forward(self, vector_BP: Tensor) -> Tensor:
        """[B, embedding_dim]."""
        return super().forward(vector_BP.to(self.weight.dtype))


def take_vectors(network: nn.Module, size: int) -> nn.Module:
    """Replace the embeddings of classes in a freshly built network by maps of vectors of this size."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, SpectralEmbedding):
                setattr(module, name, SpectralLinear(size, child.embedding_dim, bias=False))
            elif isinstance(child, nn.Embedding):
                setattr(module, name, VectorMap(child, size))
    return network
