"""Encoder–decoders of text."""

from __future__ import annotations

from typing import Any

from common.architectures.base import Subject, batches, text
from common.architectures.hugging_face import DECODER, TEXT, Make, config_of, made, model_of, rows, without

_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 2,
}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


_GEMMA = DECODER | {"query_pre_attn_scalar": 8, "sliding_window": 8, "cross_attention_hidden_size": 32}


def bart(name: str, /, **settings: Any) -> Make:
    return made(name, batches(text()), TEXT | _BART | settings)


def t5(name: str, /, **settings: Any) -> Make:
    return made(name, batches(text()), TEXT | _T5 | settings)


def two_berts() -> Subject:
    """A BERT that reads, and one that writes."""
    encoder = config_of("BertConfig", **TEXT)
    decoder = config_of("BertConfig", **TEXT, is_decoder=True, add_cross_attention=True)
    config = config_of("EncoderDecoderConfig", encoder=encoder.to_dict(), decoder=decoder.to_dict())
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return Subject(model_of("EncoderDecoderModel", config), batches(text()))


ROWS = rows(
    "encoder_decoders",
    {
        "T5": t5("T5ForConditionalGeneration"),
        "T5 v1.1": t5("T5ForConditionalGeneration", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        "UMT5": t5("UMT5ForConditionalGeneration"),
        "LongT5": t5("LongT5ForConditionalGeneration", local_radius=3),
        "BART": bart("BartForConditionalGeneration"),
        "mBART": bart("MBartForConditionalGeneration"),
        "Pegasus": bart("PegasusForConditionalGeneration"),
        "Pegasus-X": bart("PegasusXForConditionalGeneration", block_size=4, num_global_tokens=2),
        "Marian": bart("MarianMTModel", decoder_start_token_id=0),
        "Blenderbot": bart("BlenderbotForConditionalGeneration"),
        "M2M-100": bart("M2M100ForConditionalGeneration"),
        "PLBart": bart("PLBartForConditionalGeneration"),
        "LED": bart(
            "LEDForConditionalGeneration",
            attention_window=[4, 4],
            max_encoder_position_embeddings=64,
            max_decoder_position_embeddings=64,
        ),
        "ProphetNet": made(
            "ProphetNetForConditionalGeneration",
            batches(text(mask=False)),
            without(TEXT, "num_hidden_layers")
            | {
                "num_encoder_layers": 2,
                "num_decoder_layers": 2,
                "num_encoder_attention_heads": 4,
                "num_decoder_attention_heads": 4,
                "encoder_ffn_dim": 48,
                "decoder_ffn_dim": 48,
                "decoder_start_token_id": 0,
            },
        ),
        "two BERTs": two_berts,
        "T5Gemma": made("T5GemmaForConditionalGeneration", batches(text()), {"encoder": _GEMMA, "decoder": _GEMMA}),
    },
    sequence=True,
)
