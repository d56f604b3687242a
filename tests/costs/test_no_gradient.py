"""A function of the program may give no gradient for what has one: nothing behind it computes any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import PhimoeConfig, PhimoeForCausalLM

import galvatron
from galvatron.costs.estimate import estimate_plan
from galvatron.forms import with_costs
from galvatron.ir.cluster import Cluster
from galvatron.ir.planned import read_plan, with_plan


@pytest.mark.slow
def test_a_backward_without_a_gradient_is_priced() -> None:
    """The router takes the gradient of an estimate, and none for the probabilities beside it."""
    told: dict[str, Any] = {
        "vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "num_local_experts": 4, "experts_implementation": "batched_mm", "use_cache": False,
    }  # fmt: skip
    config = PhimoeConfig(**told)
    ids = torch.zeros(4, 4, dtype=torch.int64)
    program = galvatron.capture(PhimoeForCausalLM(config), {"input_ids": ids, "labels": ids})
    planned = with_plan(with_costs(program, Cluster.parse("a100-80g:1x2"), 4), read_plan("dp2"))
    step_s, stages = estimate_plan(planned, planned.required_plan)
    assert step_s > 0 and len(stages) == 1
