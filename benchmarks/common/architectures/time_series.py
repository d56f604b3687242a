"""Forecasts of time series."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.architectures.base import Architecture, Subject, batches, floats, ones
from common.architectures.hugging_face import Make, made, rows

PAST, FUTURE, CHANNELS = 24, 8, 3

_PATCH = {
    "num_input_channels": CHANNELS,
    "context_length": PAST,
    "patch_length": 4,
    "patch_stride": 4,
    "prediction_length": FUTURE,
    "d_model": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 32,
    "num_layers": 2,
}
_FORMER = {
    "prediction_length": FUTURE,
    "context_length": 16,
    "lags_sequence": [1, 2, 3],
    "num_time_features": 2,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "moving_average": 5,
    "label_length": 4,
    "scaling": "mean",
    "attention_type": "full",
}


def _patched(name: str) -> Make:
    return made(name, batches(past_values=floats(PAST, CHANNELS), future_values=floats(FUTURE, CHANNELS)), _PATCH)


def _former(name: str) -> Make:
    return made(
        name,
        batches(
            past_values=floats(19), past_time_features=floats(19, 2), past_observed_mask=ones(19, dtype=torch.float64),
            future_values=floats(FUTURE), future_time_features=floats(FUTURE, 2),
        ),
        _FORMER,
    )  # fmt: skip


class DLinear(nn.Module):
    """Zeng et al., "Are transformers effective for time series forecasting?" (2023)."""

    def __init__(self, window: int = 5) -> None:
        super().__init__()
        self.window = window
        self.trend, self.rest = nn.Linear(PAST, FUTURE), nn.Linear(PAST, FUTURE)

    def forward(self, past: Tensor, future: Tensor) -> Tensor:
        x = past.transpose(1, 2)
        side = self.window // 2
        trend = F.avg_pool1d(F.pad(x, (side, side), mode="replicate"), self.window, stride=1)
        return F.mse_loss((self.trend(trend) + self.rest(x - trend)).transpose(1, 2), future)


class NBeats(nn.Module):
    """Oreshkin et al., "N-BEATS: neural basis expansion analysis for interpretable time series forecasting" (2020)."""

    def __init__(self, width: int = 32, blocks: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(PAST, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()) for _ in range(blocks)
        )
        self.back = nn.ModuleList(nn.Linear(width, PAST) for _ in range(blocks))
        self.ahead = nn.ModuleList(nn.Linear(width, FUTURE) for _ in range(blocks))

    def forward(self, past: Tensor, future: Tensor) -> Tensor:
        forecast = torch.zeros_like(future)
        for block, back, ahead in zip(self.blocks, self.back, self.ahead, strict=True):
            state = block(past)
            past = past - back(state)
            forecast = forecast + ahead(state)
        return F.l1_loss(forecast, future)


class TemporalConvolutions(nn.Module):
    """Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and recurrent networks for sequence
    modeling" (2018)."""

    def __init__(self, width: int = 16, levels: int = 3) -> None:
        super().__init__()
        self.inward = nn.Conv1d(CHANNELS, width, 1)
        self.levels = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(width, width, 3, dilation=2**i)) for i in range(levels)
        )
        self.outward = nn.Linear(width, FUTURE * CHANNELS)

    def forward(self, past: Tensor, future: Tensor) -> Tensor:
        x = self.inward(past.transpose(1, 2))
        for i, level in enumerate(self.levels):
            x = F.relu(x + F.relu(level(F.pad(x, (2 ** (i + 1), 0)))))
        return F.mse_loss(self.outward(x[:, :, -1]).view_as(future), future)


class DeepAR(nn.Module):
    """Salinas et al., "DeepAR: probabilistic forecasting with autoregressive recurrent networks" (2020)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.lstm = nn.LSTM(CHANNELS, width, 2, batch_first=True)
        self.mean, self.scale = nn.Linear(width, CHANNELS), nn.Linear(width, CHANNELS)

    def forward(self, past: Tensor) -> Tensor:
        states, _ = self.lstm(past[:, :-1])
        return F.gaussian_nll_loss(self.mean(states), past[:, 1:], F.softplus(self.scale(states)))


class ITransformer(nn.Module):
    """Liu et al., "iTransformer: inverted transformers are effective for time series forecasting" (2024)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Linear(PAST, width)
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, FUTURE)

    def forward(self, past: Tensor, future: Tensor) -> Tensor:
        mean, deviation = past.mean(1, keepdim=True), past.std(1, keepdim=True, unbiased=False) + 1e-5
        states = self.blocks(self.embedding(((past - mean) / deviation).transpose(1, 2)))
        return F.mse_loss(self.head(states).transpose(1, 2) * deviation + mean, future)


_SERIES = batches(past=floats(PAST, CHANNELS), future=floats(FUTURE, CHANNELS))
_SINGLE = batches(past=floats(PAST), future=floats(FUTURE))

ROWS = (
    *rows(
        "time_series",
        {
            "PatchTST": _patched("PatchTSTForPrediction"),
            "PatchTSMixer": _patched("PatchTSMixerForPrediction"),
            "Autoformer": _former("AutoformerForPrediction"),
            "Informer": _former("InformerForPrediction"),
            "Time Series Transformer": _former("TimeSeriesTransformerForPrediction"),
            "TimesFM": made(
                "TimesFmModelForPrediction",
                batches(
                    past_values=floats(64),
                    freq=lambda samples, g: torch.zeros(samples, 1, dtype=torch.long),
                    future_values=floats(32),
                ),
                {
                    "hidden_size": 32,
                    "intermediate_size": 48,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "head_dim": 8,
                    "context_length": 64,
                    "horizon_length": 32,
                    "patch_length": 32,
                },
            ),
        },
    ),
    Architecture("DLinear", "time_series", "torch", lambda: Subject(DLinear(), _SERIES)),
    Architecture("N-BEATS", "time_series", "torch", lambda: Subject(NBeats(), _SINGLE)),
    Architecture("TCN", "time_series", "torch", lambda: Subject(TemporalConvolutions(), _SERIES)),
    Architecture("DeepAR", "time_series", "torch", lambda: Subject(DeepAR(), batches(past=floats(PAST, CHANNELS)))),
    Architecture("iTransformer", "time_series", "torch", lambda: Subject(ITransformer(), _SERIES)),
)
