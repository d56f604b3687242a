"""Mixtures of experts.

In the implementation that the library takes by default, whose kernel has no float64 on the CPU; in another one where
the name says so.
"""

from __future__ import annotations

from common.architectures.hugging_face import decoder, rows

_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "head_dim": 4,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "decoder_sparse_step": 1,
}
_BALANCED = {"output_router_logits": True, "router_aux_loss_coef": 0.01}

ROWS = rows(
    "experts",
    {
        "Mixtral": decoder("MixtralForCausalLM", **_EXPERTS),
        "Mixtral with a balance loss": decoder("MixtralForCausalLM", **_EXPERTS, **_BALANCED),
        "Mixtral (batched_mm)": decoder("MixtralForCausalLM", **_EXPERTS, experts_implementation="batched_mm"),
        "Qwen3-MoE (batched_mm)": decoder("Qwen3MoeForCausalLM", **_EXPERTS, experts_implementation="batched_mm"),
        "DeepSeek-V3 (batched_mm)": decoder("DeepseekV3ForCausalLM", **_LATENT, experts_implementation="batched_mm"),
        "Mixtral (eager)": decoder("MixtralForCausalLM", **_EXPERTS, experts_implementation="eager"),
        "Qwen2-MoE": decoder("Qwen2MoeForCausalLM", **_EXPERTS),
        "Qwen3-MoE": decoder("Qwen3MoeForCausalLM", **_EXPERTS),
        "DeepSeek-V2": decoder("DeepseekV2ForCausalLM", **_LATENT),
        "DeepSeek-V3": decoder("DeepseekV3ForCausalLM", **_LATENT),
        "GPT-OSS": decoder("GptOssForCausalLM", **_EXPERTS, sliding_window=8),
        "Llama-4": decoder("Llama4ForCausalLM", **_EXPERTS, intermediate_size_mlp=48, interleave_moe_layer_step=1),
        "Phi-MoE": decoder("PhimoeForCausalLM", **_EXPERTS, router_jitter_noise=0.0, input_jitter_noise=0.0),
        "OLMoE": decoder("OlmoeForCausalLM", **_EXPERTS),
        "GraniteMoE": decoder("GraniteMoeForCausalLM", **_EXPERTS),
        "DBRX": decoder(
            "DbrxForCausalLM",
            d_model=32,
            n_heads=4,
            n_layers=2,
            max_seq_len=64,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
            ffn_config={"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
        ),
        "JetMoE": decoder("JetMoeForCausalLM", **_EXPERTS, kv_channels=8),
        "GLM-4-MoE": decoder("Glm4MoeForCausalLM", **_LATENT, partial_rotary_factor=0.5),
        "MiniMax": decoder(
            "MiniMaxForCausalLM", **_EXPERTS, layer_types=["linear_attention", "full_attention"], block_size=8
        ),
        "Switch Transformers": decoder(
            "SwitchTransformersForConditionalGeneration",
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            num_experts=4,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            router_jitter_noise=0.0,
            decoder_start_token_id=0,
            expert_capacity=64,
        ),
    },
    sequence=True,
    single=(
        "Mixtral",
        "Mixtral with a balance loss",
        "Qwen2-MoE",
        "Qwen3-MoE",
        "DeepSeek-V2",
        "DeepSeek-V3",
        "GPT-OSS",
        "Phi-MoE",
        "OLMoE",
        "GraniteMoE",
        "DBRX",
        "GLM-4-MoE",
        "MiniMax",
    ),
)
