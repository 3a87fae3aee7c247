"""What prompts begin with, read once: the same loss and the same gradients as with every row."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, BambaConfig, Qwen3NextConfig

from blsp.training.examples import Collator
from blsp.training.objective import AlignmentObjective
from blsp.training.prefixes import NONE, PrefixReader, prefix_number, prompt_prefixes, takes_prefixes
from blsp.training.switches import recompute
from tests import tiny
from tests.training.test_objective import examples

INSTRUCTIONS = ["Repeat the following text.", "Continue the following text in a coherent and engaging style."]


def mixed(clips, tokenizer):
    """Two known instructions of different lengths, and one that is not known."""
    rows = examples(clips, tokenizer)
    return [replace(rows[0], prompt=INSTRUCTIONS[1]), rows[1], replace(rows[2], prompt="What is this?")]


def gradients(objective, batch):
    adapter = objective.model.multi_modal_projector
    adapter.zero_grad()
    loss = objective(batch)
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in adapter.parameters()]


@pytest.mark.parametrize("llm", tiny.LLMS)
def test_loss_and_gradients_are_those_of_reading_it_with_every_row(tmp_path, clips, llm):
    model, processor = tiny.build(tiny.save_backbones(tmp_path, llm))
    rows = mixed(clips, processor.tokenizer)
    prefixes = prompt_prefixes(processor, INSTRUCTIONS)
    assert takes_prefixes(model.language_model)
    whole, cut = Collator(processor)(rows), Collator(processor, prefixes=prefixes)(rows)
    assert [len(prefixes[number]) for number in cut.prefix] == [len(prefixes[1]), len(prefixes[2]), 0]
    assert int(whole.spoken.mask.sum() - cut.spoken.mask.sum()) == sum(map(len, prefixes))
    expected_loss, expected = gradients(AlignmentObjective(model, "kd", 2.0), whole)
    for recomputes in (False, True):
        if recomputes:
            recompute(model.language_model)
        objective = AlignmentObjective(model, "kd", 2.0, prefixes=prefixes)
        model.train()
        loss, found = gradients(objective, cut)
        torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        model.eval()


def test_prefixes_end_before_the_speech_and_hold_all_that_is_the_same(tiny_model):
    _, processor = tiny_model
    prefixes = prompt_prefixes(processor, [*INSTRUCTIONS, INSTRUCTIONS[0]])
    assert len(prefixes) == 3
    texts = processor.tokenizer.batch_decode([list(prefix) for prefix in prefixes])
    assert texts[0] == ""
    assert sorted(text.rpartition("> ")[2] for text in texts[1:]) == sorted(INSTRUCTIONS)


def test_a_prompt_takes_the_longest_prefix_that_leaves_something():
    prefixes = ((), (1, 2), (1, 2, 3), (5,))
    assert prefix_number(prefixes, [1, 2, 3, 4], [1, 2, 3, 9]) == 2
    assert prefix_number(prefixes, [1, 2, 3, 4], [1, 2, 9]) == 1
    assert prefix_number(prefixes, [1, 2, 3], [1, 2, 3, 9]) == 1
    assert prefix_number(prefixes, [5], [5, 6]) == 0
    assert prefix_number(NONE, [1]) == 0


def test_llms_that_remember_otherwise_are_not_asked_to(monkeypatch, tiny_model):
    shape = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    hybrid = AutoModelForCausalLM.from_config(
        Qwen3NextConfig(**shape, layer_types=["linear_attention", "full_attention"], num_experts=0, head_dim=16)
    )
    mamba = AutoModelForCausalLM.from_config(
        BambaConfig(**shape, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16)
    )
    assert not takes_prefixes(hybrid.eval())
    assert not takes_prefixes(mamba.eval())
    llm = tiny_model[0].language_model
    assert takes_prefixes(llm)
    monkeypatch.setattr(PrefixReader, "_read", lambda *_: None)  # as one that takes keys and values, and ignores them
    assert not takes_prefixes(llm)
