"""What models reach beyond transformers is in the table of operators, and valid as it is captured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from galvatron.ir.capture import capture_graph
from galvatron.ir.verify import verify
from tests.marks import needs_torch

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "fft": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=-1) * 0.5, dim=-1).real + torch.fft.fft2(x).abs(),
    "linalg": lambda x: torch.linalg.inv(x @ x.mT + torch.eye(8)) @ x + torch.linalg.svdvals(x).sum(),
    "solve": lambda x: (
        torch.linalg.solve(x @ x.mT + torch.eye(8), x) + torch.linalg.qr(x)[0] + torch.linalg.det(x).sum()
    ),
    "eigenvalues": lambda x: torch.linalg.eigh(x + x.mT)[1] + torch.linalg.matrix_norm(x).sum(),
    "special": lambda x: (
        torch.special.i0e(x) + torch.lgamma(x.abs() + 1) + torch.special.erfcx(x) + torch.digamma(x.abs() + 1)
    ),
    "grid sample": lambda x: F.grid_sample(
        x, F.affine_grid(torch.eye(2, 3).repeat(x.shape[0], 1, 1), [x.shape[0], 3, 8, 8])
    ),
    "upsample": lambda x: (
        F.interpolate(x, scale_factor=2.0, mode="bilinear") + F.interpolate(x, size=(16, 16), mode="nearest")
    ),
    "pixels": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.repeat(1, 4, 1, 1), 2), 2),
    "pools": lambda x: (
        F.max_pool2d(x, 2) + F.avg_pool2d(x, 2) + F.adaptive_avg_pool2d(x, 4) + F.adaptive_max_pool2d(x, 4)
    ),
    "unfold": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 8), 2, stride=2) + F.pad(x, (0, 0, 0, 0), mode="reflect"),
    "convolutions": lambda x: (
        F.conv_transpose2d(x, torch.ones(3, 5, 2, 2), stride=2) + F.conv2d(x, torch.ones(5, 3, 1, 1)).sum()
    ),
    "scatter": lambda x: x.scatter_add(-1, (x > 0).long(), x) + x.index_put((torch.tensor([0]),), torch.zeros(3, 8, 8)),
    "scatter reduce": lambda x: (
        x.scatter_reduce(-1, (x > 0).long(), x, "amax") + x.index_copy(1, torch.tensor([0]), x[:, :1])
    ),
    "running": lambda x: (
        x.cummax(-1)[0] + x.logcumsumexp(-1) + x.cumprod(-1) + x.sort(-1)[0] + x.kthvalue(2, -1)[0].sum()
    ),
    "masks": lambda x: x.masked_scatter(x > 0, x * 2) + torch.bucketize(x, torch.tensor([0.0, 1.0])) + x.nan_to_num(),
    "einsum": lambda x: torch.einsum("bcij,bcjk->bcik", x, x) + torch.cdist(x, x),
    "norms": lambda x: F.group_norm(x, 3) + F.instance_norm(x) + F.local_response_norm(x, 2) + F.normalize(x, dim=1),
    "activations": lambda x: F.hardswish(x) + F.selu(x) + F.celu(x) + F.softshrink(x) + F.threshold(x, 0, 1),
    "more activations": lambda x: F.logsigmoid(x) + F.hardshrink(x) + F.softsign(x) + F.glu(x).sum() + F.relu6(x),
    "losses": lambda x: (
        F.nll_loss(x.log_softmax(1), (x.sum(1) > 0).long()) + F.huber_loss(x, x * 2) + F.kl_div(x, x.softmax(1))
    ),
    "more losses": lambda x: (
        F.cosine_embedding_loss(x.flatten(1), x.flatten(1) * 2, torch.ones(x.shape[0]))
        + F.poisson_nll_loss(x, x.abs())
        + F.triplet_margin_loss(x, x * 2, x * 3)
        + F.soft_margin_loss(x, x.sign().detach())
    ),
    "statistics": lambda x: (
        x.quantile(0.5, -1).sum() + x.median(-1)[0].sum() + torch.std_mean(x, -1)[0].sum() + x.mode(-1)[0].sum()
    ),
    "bits": lambda x: (
        ((x > 0).long() << 2 | 1 ^ 3).float() + x.frexp()[0] + torch.ldexp(x, torch.tensor(2)) + x.heaviside(x)
    ),
}


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x * self.scale).sum()


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.net = kind(8, 8, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x[:, 0])[0].sum()


OLDER = {"statistics": needs_torch((2, 13), "quantile asks for the number of elements of symbolic sizes")}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("function", [pytest.param(name, marks=OLDER.get(name, ())) for name in FUNCTIONS])
def test_functions(function: str) -> None:
    verify(capture_graph(Applied(FUNCTIONS[function]), {"x": torch.randn(4, 3, 8, 8)}).program)


LSTM = pytest.param(nn.LSTM, marks=needs_torch((2, 13), "its states have a wrong shape when they are traced"))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", [LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind: Callable[..., nn.RNNBase]) -> None:
    verify(capture_graph(Recurrent(kind), {"x": torch.randn(4, 3, 2, 8)}).program)  # two steps: each adds its ops
