"""Initial values: taken over from real tensors, or drawn by the model's own initialisers whatever the plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from galvatron import runtime as rt
from galvatron.errors import GalvatronError
from tests.ranks import run_ranks
from tests.runtime import small_model as small


def on_meta(build):
    with torch.device("meta"):
        return build()


def read_all(model: nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    state = rt.ModelState(model, seed)
    return dict(state.read(set(state.canonical.values())))


class Partly(small.Model):
    """Parameters on meta, the computed buffer real: what a user of a plain module does."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((small.WIDTH,), 0.5, device="cpu")


def sharded_values(world: rt.World, pp: int, dp: int, tp: int) -> dict[str, torch.Tensor]:
    stages = small.make_stages(small.make_mesh(world, pp, dp, tp), dp, tp, torch.float32)
    state = rt.ModelState(on_meta(Partly), seed=5)
    assert all(parameter.is_meta for parameter in state.model.parameters())
    return rt.Executor(stages, model=state).full_state_dict()


def test_initial_values_do_not_depend_on_the_plan():
    model = on_meta(Partly)
    expected = read_all(model, seed=5)
    for plan in ((1, 1, 1), (1, 1, 2), (2, 1, 1), (2, 2, 1), (1, 1, 4)):
        for values in run_ranks(sharded_values, plan[0] * plan[1] * plan[2], *plan):
            assert values.keys() == model.state_dict().keys()
            assert torch.equal(values["head.weight"], values["embedding.weight"])
            for name, value in expected.items():
                assert torch.equal(values[name], value), (plan, name)


def test_values_follow_the_seed_and_differ_between_modules():
    first, again, other = (
        read_all(on_meta(lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))), s) for s in (0, 0, 1)
    )
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])
    assert not torch.equal(first["0.weight"], first["1.weight"])


def test_the_training_generator_is_left_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    read_all(on_meta(lambda: nn.Linear(4, 4)))
    assert torch.equal(torch.rand(3), expected)


def test_a_model_initialises_its_modules_and_may_overwrite_them_from_around():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 3), nn.Linear(3, 3)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Residual()

        def _init_weights(self, module: nn.Module) -> None:
            if isinstance(module, nn.Linear):
                nn.init.constant_(module.weight, 1.0)  # and leaves the bias as the constructor made it
            if isinstance(module, Residual):
                nn.init.constant_(module.down.weight, 2.0)

    values = read_all(on_meta(Model))
    assert values["body.up.weight"].eq(1).all() and values["body.down.weight"].eq(2).all()
    assert values["body.up.bias"].isfinite().all()


@pytest.mark.parametrize("kind", ["parameter", "buffer", "integer buffer"])
def test_what_cannot_be_initialised_is_named(kind):
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if kind == "parameter":
                self.value = nn.Parameter(torch.ones(3))
            else:
                self.register_buffer("value", torch.ones(3) if kind == "buffer" else torch.arange(3))

    with pytest.raises(GalvatronError) as error:
        read_all(on_meta(lambda: nn.Sequential(nn.Linear(3, 3), Scale())))
    word = "parameter" if kind == "parameter" else "buffer"
    assert f"{word} '1.value' of Scale is on the meta device" in str(error.value)
    assert "reset_parameters" in str(error.value)


@pytest.mark.parametrize("name", ["Llama", "GPT2", "Bert"])
def test_transformers_models_are_initialised_as_they_initialise_themselves(name):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = transformers.AutoConfig.for_model(name.lower(), vocab_size=256, bos_token_id=1, eos_token_id=2, **sizes)
    kind = transformers.AutoModelForMaskedLM if name == "Bert" else transformers.AutoModelForCausalLM
    real = kind.from_config(config)
    values = read_all(on_meta(lambda: kind.from_config(config)))
    buffers = dict(real.named_buffers())
    for tensor_name, expected in [*real.named_parameters(), *buffers.items()]:
        value = values[tensor_name]
        assert value.dtype == expected.dtype and value.isfinite().all()
        if tensor_name in buffers or expected.unique().numel() == 1:
            assert torch.equal(value, expected), tensor_name
        else:
            assert abs(value.std() / expected.std() - 1) < 0.1, tensor_name
