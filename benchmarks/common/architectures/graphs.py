"""Networks on graphs: a batch of small graphs with their adjacency, or signals on the nodes of one graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.architectures.base import Architecture, Batch, Subject
from common.architectures.libraries import library

NODES, FEATURES, CLASSES = 10, 8, 3


def graphs(samples: int, seed: int) -> Batch:
    """Random undirected graphs with a class each: `x` f64[samples, nodes, features], `adjacency` of zeros and ones."""
    generator = torch.Generator().manual_seed(seed)
    upper = (torch.rand(samples, NODES, NODES, generator=generator) < 0.3).double().triu(1)
    return {
        "x": torch.randn(samples, NODES, FEATURES, generator=generator, dtype=torch.float64),
        "adjacency": upper + upper.transpose(1, 2),
        "labels": torch.randint(0, CLASSES, (samples,), generator=generator),
    }


def signals(samples: int, seed: int) -> Batch:
    """Features of the nodes of one graph, whose edges are the same at every step: i64[2, edges]."""
    generator = torch.Generator().manual_seed(seed)
    ring = torch.arange(NODES)
    return {
        "x": torch.randn(samples, NODES, FEATURES, generator=generator, dtype=torch.float64),
        "edges": torch.stack([torch.cat([ring, ring]), torch.cat([ring.roll(1), ring.roll(3)])]),
        "labels": torch.randint(0, CLASSES, (samples, NODES), generator=generator),
    }


class GraphConvolution(nn.Module):
    """Kipf and Welling, "Semi-supervised classification with graph convolutional networks" (2017)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        looped = adjacency + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
        scale = looped.sum(-1).rsqrt()
        return (scale[..., None] * looped * scale[..., None, :]) @ self.linear(x)


class GraphAttention(nn.Module):
    """Veličković et al., "Graph attention networks" (2018), with several heads."""

    def __init__(self, before: int, after: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.linear = nn.Linear(before, after, bias=False)
        self.source, self.target = (nn.Parameter(torch.randn(heads, after // heads) / 4) for _ in range(2))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = (h * self.source[:, None]).sum(-1)[..., None] + (h * self.target[:, None]).sum(-1)[..., None, :]
        looped = adjacency + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
        weights = F.leaky_relu(scores, 0.2).masked_fill(looped[:, None] == 0, float("-inf")).softmax(-1)
        return (weights @ h).transpose(1, 2).flatten(2)


class GraphIsomorphism(nn.Module):
    """Xu et al., "How powerful are graph neural networks?" (2019)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(()))
        self.mlp = nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.mlp((1 + self.eps) * x + adjacency @ x)


class MessagePassing(nn.Module):
    """Gilmer et al., "Neural message passing for quantum chemistry" (2017): messages of pairs, a gated update."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.inward = nn.Linear(before, after)
        self.message = nn.Sequential(nn.Linear(2 * after, after), nn.ReLU(), nn.Linear(after, after))
        self.update = nn.GRUCell(after, after)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.inward(x)
        nodes = h.shape[1]
        pairs = torch.cat([h[:, :, None].expand(-1, -1, nodes, -1), h[:, None].expand(-1, nodes, -1, -1)], -1)
        received = (self.message(pairs) * adjacency[..., None]).sum(2)
        return self.update(received.flatten(0, 1), h.flatten(0, 1)).view_as(h)


class GraphClassifier(nn.Module):
    """Layers of one kind, pooled over the nodes."""

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(width if i else FEATURES, width) for i in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, adjacency: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x, adjacency))
        return F.cross_entropy(self.head(x.mean(1)), labels)


class NodeClassifier(nn.Module):
    """Layers of one kind on the nodes of one graph."""

    def __init__(self, layer: Callable[[int, int], nn.Module], width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(width if i else FEATURES, width) for i in range(depth))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor, edges: Tensor, labels: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.relu(layer(x, edges))
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


def _dense(name: str, **settings: int) -> Subject:
    """Layers of torch_geometric for batches of graphs."""
    layer = partial(getattr(library("torch_geometric.nn"), name), **settings)
    return Subject(GraphClassifier(layer), graphs)


def _dense_isomorphism() -> Subject:
    geometric = library("torch_geometric.nn")

    def layer(before: int, after: int) -> nn.Module:
        return geometric.DenseGINConv(
            nn.Sequential(nn.Linear(before, after), nn.ReLU(), nn.Linear(after, after)), train_eps=True
        )

    return Subject(GraphClassifier(layer), graphs)


def _sparse(name: str) -> Subject:
    """Layers of torch_geometric on the edges of one graph."""
    return Subject(NodeClassifier(getattr(library("torch_geometric.nn"), name)), signals)


def _own(layer: Callable[[int, int], nn.Module]) -> Callable[[], Subject]:
    return lambda: Subject(GraphClassifier(layer), graphs)


_TABLE: dict[str, tuple[str, Callable[[], Subject]]] = {
    "GCN": ("torch", _own(GraphConvolution)),
    "GAT": ("torch", _own(GraphAttention)),
    "GIN": ("torch", _own(GraphIsomorphism)),
    "MPNN": ("torch", _own(MessagePassing)),
    "dense GCN": ("torch_geometric", partial(_dense, "DenseGCNConv")),
    "dense GraphSAGE": ("torch_geometric", partial(_dense, "DenseSAGEConv")),
    "dense GAT": ("torch_geometric", partial(_dense, "DenseGATConv")),
    "dense GIN": ("torch_geometric", _dense_isomorphism),
    "sparse GCN": ("torch_geometric", partial(_sparse, "GCNConv")),
    "sparse GraphConv": ("torch_geometric", partial(_sparse, "GraphConv")),
}

ROWS = tuple(Architecture(name, "graphs", library_, make) for name, (library_, make) in _TABLE.items())
