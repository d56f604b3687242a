"""Decoders of text."""

from __future__ import annotations

from common.architectures.base import batches, text
from common.architectures.hugging_face import TEXT, decoder, made, rows

ROWS = rows(
    "decoders",
    {
        "Llama": decoder("LlamaForCausalLM"),
        "Mistral": decoder("MistralForCausalLM", sliding_window=8),
        "Ministral": decoder(
            "MinistralForCausalLM", layer_types=["sliding_attention", "full_attention"], sliding_window=8
        ),
        "Qwen2": decoder("Qwen2ForCausalLM", num_hidden_layers=3),
        "Qwen3": decoder("Qwen3ForCausalLM"),
        "Gemma": decoder("GemmaForCausalLM"),
        "Gemma-2": decoder("Gemma2ForCausalLM", query_pre_attn_scalar=8, sliding_window=8),
        "Gemma-3": decoder("Gemma3ForCausalLM", query_pre_attn_scalar=8, sliding_window=8, num_hidden_layers=4),
        "Phi": decoder("PhiForCausalLM", partial_rotary_factor=0.5),
        "Phi-3": decoder("Phi3ForCausalLM"),
        "GPT": decoder("OpenAIGPTLMHeadModel"),
        "GPT-2": decoder("GPT2LMHeadModel"),
        "GPT-Neo": decoder(
            "GPTNeoForCausalLM", num_layers=2, attention_types=[[["global", "local"], 1]], window_size=8
        ),
        "GPT-NeoX": decoder("GPTNeoXForCausalLM"),
        "GPT-J": decoder("GPTJForCausalLM", rotary_dim=4),
        "CodeGen": decoder("CodeGenForCausalLM", rotary_dim=4),
        "GPT-BigCode": decoder("GPTBigCodeForCausalLM"),
        "OPT": decoder("OPTForCausalLM", word_embed_proj_dim=32, ffn_dim=48),
        "XGLM": decoder("XGLMForCausalLM", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4),
        "BioGPT": decoder("BioGptForCausalLM"),
        "Bloom": decoder("BloomForCausalLM"),
        "MPT": decoder("MptForCausalLM", d_model=32, n_heads=4, n_layers=2, max_seq_len=64),
        "Falcon": made("FalconForCausalLM", batches(text()), TEXT),
        "Persimmon": decoder("PersimmonForCausalLM"),
        "StableLM": decoder("StableLmForCausalLM"),
        "StarCoder-2": decoder("Starcoder2ForCausalLM"),
        "OLMo": decoder("OlmoForCausalLM"),
        "OLMo-2": decoder("Olmo2ForCausalLM"),
        "OLMo-3": decoder("Olmo3ForCausalLM", layer_types=["sliding_attention", "full_attention"], sliding_window=8),
        "Cohere": decoder("CohereForCausalLM"),
        "Cohere-2": decoder("Cohere2ForCausalLM", sliding_window=8),
        "Granite": decoder("GraniteForCausalLM"),
        "GLM": decoder("GlmForCausalLM", partial_rotary_factor=0.5),
        "GLM-4": decoder("Glm4ForCausalLM", partial_rotary_factor=0.5),
        "Nemotron": decoder("NemotronForCausalLM"),
        "SmolLM3": decoder("SmolLM3ForCausalLM"),
        "Helium": decoder("HeliumForCausalLM"),
        "DiffLlama": decoder("DiffLlamaForCausalLM"),
        "Apertus": decoder("ApertusForCausalLM"),
        "EXAONE-4": decoder(
            "Exaone4ForCausalLM", layer_types=["sliding_attention", "full_attention"], sliding_window=8
        ),
        "MiniCPM3": decoder(
            "MiniCPM3ForCausalLM",
            num_key_value_heads=4,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_nope_head_dim=8,
            qk_rope_head_dim=4,
            v_head_dim=8,
        ),
        "CTRL": decoder("CTRLLMHeadModel", dff=48),
        "BitNet": decoder("BitNetForCausalLM"),
        "Doge": decoder("DogeForCausalLM", num_experts=16, num_experts_per_tok=2),
        "HRM": decoder("HrmTextForCausalLM"),
        "ModernBERT decoder": decoder(
            "ModernBertDecoderForCausalLM", local_attention=8, cls_token_id=1, sep_token_id=2
        ),
    },
    sequence=True,
    single=("XGLM",),
)
