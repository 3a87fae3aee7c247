"""The switches of training: recomputation, half precision and compilation change the cost, not what is learned."""

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers.modeling_layers import GradientCheckpointingLayer

from blsp.training.examples import Collator
from blsp.training.objective import AlignmentObjective
from blsp.training.switches import set_switches
from tests import tiny
from tests.training.test_loop import SETTINGS, training
from tests.training.test_objective import examples


def switched(pins, **switches):
    model, processor = tiny.build(pins)
    set_switches(model, SETTINGS.model_copy(update=switches))
    return model.train(), processor


def step(model, processor, clips, utterances=3):
    """The loss on a batch, and the adapter's gradients."""
    model.zero_grad()
    batch = Collator(processor)(examples(clips, processor.tokenizer)[:utterances])
    loss = AlignmentObjective(model, "kd", 2.0)(batch)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in model.multi_modal_projector.parameters()]


def noise(*seconds):
    rng = np.random.default_rng(2)
    return [rng.normal(0, 0.1, int(each * tiny.SECOND)).astype(np.float32) for each in seconds]


@pytest.fixture
def fresh_accelerate():
    """accelerate allows a process one precision."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_recomputation_gives_the_same_gradients_for_another_forward_and_less_memory(pins, clips):
    def measured(is_on):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # nothing deprecated
            model, processor = switched(pins, gradient_checkpointing=is_on)
        calls, saved = Counter(), []
        for number, layer in enumerate(model.language_model.model.layers):
            layer.self_attn.attention_dropout = 0.5  # in train mode it would change the gradients
            layer.mlp.register_forward_pre_hook(lambda *_, number=number: calls.update([number]))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: saved.append(tensor.nbytes) or tensor, lambda tensor: tensor
        ):
            loss, gradients = step(model, processor, clips)
        in_train_mode = [module for module in model.language_model.modules() if module.training]
        assert all(isinstance(module, GradientCheckpointingLayer) for module in in_train_mode)
        assert not model.get_input_embeddings()(torch.tensor([1])).requires_grad
        return loss, gradients, calls, sum(saved)

    loss, gradients, calls, saved_bytes = measured(False)
    its_loss, its_gradients, its_calls, its_bytes = measured(True)
    torch.testing.assert_close(its_loss, loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(its_gradients, gradients, rtol=1e-6, atol=1e-6)
    assert calls == {0: 2, 1: 2}  # one reads, one hears
    assert its_calls == {0: 3, 1: 3}  # and hears again
    assert its_bytes < saved_bytes / 2


def test_half_precision_is_the_backbones_and_training_learns_with_it(pins, clips, tmp_path, fresh_accelerate):
    half = SETTINGS.model_copy(update={"precision": "bfloat16"})
    model, _ = switched(pins, precision="bfloat16")
    for part in (model.language_model, model.audio_tower):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.bfloat16}
    _, log, _ = training(pins, clips, tmp_path / "half", half, model=model)
    assert log[-1]["loss"] < log[0]["loss"] and log[-1]["dev_kl"] < log[0]["dev_kl"]
    model.save_pretrained(tmp_path / "adapter")
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter/model.safetensors").values()} == {torch.float32}


def test_half_precision_starts_with_the_loss_of_full_precision(pins, clips, tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        settings = SETTINGS.model_copy(update={"precision": precision, "steps": 1})
        model, _ = switched(pins, precision=precision)
        _, log, _ = training(pins, clips, tmp_path / precision, settings, model=model)
        losses.append(log[0]["loss"])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.03)


@pytest.fixture
def compiler_without_cpp():
    """The graphs that torch.compile makes, run as they are: a bare machine has no C++ compiler."""
    torch._dynamo.reset()
    counters.clear()
    torch.compiler.set_default_backend("eager")
    yield
    torch.compiler.set_default_backend(None)
    torch._dynamo.reset()


@pytest.mark.parametrize("with_recomputation", [False, True])
def test_compilation_gives_the_same_step_and_happens_once_for_all_lengths(
    pins, compiler_without_cpp, with_recomputation
):
    batches = [(noise(0.35, 1.1, 5.3), 3), (noise(0.5, 0.9, 1.7), 3), (noise(3.1, 0.4, 0.7), 2)]
    model, processor = switched(pins)
    expected = [step(model, processor, *batch) for batch in batches]
    assert not counters["stats"]
    model, processor = switched(pins, compile=True, gradient_checkpointing=with_recomputation)
    model.encode_audio(**processor.features(batches[0][0]))
    assert counters["stats"]["unique_graphs"] == 1  # of the encoder's layers, all together
    graphs = []
    for batch, (loss, gradients) in zip(batches, expected, strict=True):
        its_loss, its_gradients = step(model, processor, *batch)
        torch.testing.assert_close(its_loss, loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(its_gradients, gradients, rtol=1e-4, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == graphs[:1] * 3 and not counters["graph_break"]
