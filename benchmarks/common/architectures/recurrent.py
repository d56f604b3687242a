"""State-space models, recurrent networks, and hybrids of these with attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.architectures.base import VOCABULARY, Architecture, Subject, batches, integers, text
from common.architectures.hugging_face import DECODER, decoder, made, rows

_SSM = {
    "state_size": 4,
    "mamba_d_state": 4,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "use_mambapy": False,
    "use_mamba_kernels": False,
    "time_step_rank": 4,
    "mamba_dt_rank": 4,
}
_SSM_2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 4,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 4,
    "use_mamba_kernels": False,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}


class LanguageLSTM(nn.Module):
    """A stack of LSTMs over words, as in Zaremba, Sutskever and Vinyals, "Recurrent neural network regularization"
    (2014)."""

    def __init__(self, width: int = 24, layers: int = 2, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(width * (1 + bidirectional), VOCABULARY)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        states, _ = self.lstm(self.embedding(input_ids))
        return F.cross_entropy(self.head(states).flatten(0, 1), labels.flatten())


class Translator(nn.Module):
    """A GRU that reads and one that writes while it attends to what was read, as in Luong, Pham and Manning, "Effective
    approaches to attention-based neural machine translation" (2015)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, width), nn.Embedding(VOCABULARY, width)
        self.reader, self.writer = (nn.GRU(width, width, 2, batch_first=True) for _ in range(2))
        self.mix = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        read, state = self.reader(self.source(source))
        written, _ = self.writer(self.target(target), state)
        context = (written @ read.transpose(1, 2)).softmax(-1) @ read
        states = torch.tanh(self.mix(torch.cat([written, context], -1)))
        return F.cross_entropy(self.head(states).flatten(0, 1), labels.flatten())


_WORDS = integers(VOCABULARY, 8)

ROWS = (
    *rows(
        "recurrent",
        {
            "Mamba": decoder("MambaForCausalLM", **_SSM),
            "Mamba-2": decoder("Mamba2ForCausalLM", num_heads=8, state_size=4, n_groups=1, chunk_size=4),
            "Falcon-Mamba": decoder("FalconMambaForCausalLM", **_SSM),
            "RWKV": made("RwkvForCausalLM", batches(text(length=8, mask=False)), DECODER),
            "xLSTM": made(
                "xLSTMForCausalLM",
                batches(text(mask=False)),
                DECODER
                | {
                    "embedding_dim": 32,
                    "num_heads": 2,
                    "chunk_size": 8,
                    "mode": "train",
                    "ffn_round_up_to_multiple_of": 8,
                    "weight_mode": "single",
                },
            ),
            "RecurrentGemma": decoder(
                "RecurrentGemmaForCausalLM",
                lru_width=32,
                attention_window_size=8,
                block_types=["recurrent", "attention"],
            ),
            "Qwen3-Next": decoder("Qwen3NextForCausalLM", **_EXPERTS, **_DELTA),
            "OLMo-Hybrid": decoder("OlmoHybridForCausalLM", **_DELTA),
            "Jamba": decoder(
                "JambaForCausalLM",
                **_SSM,
                **_EXPERTS,
                attn_layer_period=2,
                attn_layer_offset=1,
                expert_layer_period=2,
            ),
            "Bamba": decoder("BambaForCausalLM", **_SSM_2, attn_layer_indices=[1]),
            "Zamba-2": decoder(
                "Zamba2ForCausalLM",
                mamba_d_state=4,
                mamba_ngroups=1,
                n_mamba_heads=8,
                chunk_size=4,
                use_mamba_kernels=False,
                layers_block_type=["mamba", "hybrid"],
                num_key_value_heads=4,
                attention_head_dim=16,
                adapter_rank=4,
            ),
            "Falcon-H1": decoder("FalconH1ForCausalLM", **_SSM_2, mamba_d_ssm=64),
            "GraniteMoE-Hybrid": decoder(
                "GraniteMoeHybridForCausalLM",
                **_SSM_2,
                **_EXPERTS,
                layer_types=["mamba", "attention"],
                shared_intermediate_size=16,
            ),
            "LFM2": decoder("Lfm2ForCausalLM", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
            "Nemotron-H": decoder(
                "NemotronHForCausalLM",
                layers_block_type=["mamba", "attention", "mlp"],
                mamba_num_heads=8,
                mamba_head_dim=8,
                ssm_state_size=4,
                n_groups=1,
                chunk_size=4,
                use_mamba_kernels=False,
            ),
            "Qwen3.5": decoder("Qwen3_5ForCausalLM", **_DELTA),
        },
        sequence=True,
        single=("Qwen3-Next", "Jamba", "GraniteMoE-Hybrid"),
    ),
    Architecture("LSTM", "recurrent", "torch", lambda: Subject(LanguageLSTM(), batches(text(length=8, mask=False)))),
    Architecture(
        "bidirectional LSTM",
        "recurrent",
        "torch",
        lambda: Subject(LanguageLSTM(bidirectional=True), batches(text(length=8, mask=False))),
    ),
    Architecture(
        "GRU translator",
        "recurrent",
        "torch",
        lambda: Subject(Translator(), batches(source=_WORDS, target=_WORDS, labels=_WORDS)),
    ),
)
