"""States by layer: those of the very tokens they are said to be of, whatever else is in the batch."""

from typing import Any

import numpy as np
import pytest
import torch

from blsp.evaluation import states as module
from blsp.evaluation.states import content_masks, layer_states, sample
from blsp.model.chat import AUDIO_TOKEN, build_prompt
from blsp.training.examples import Collator, Example
from blsp.training.objective import AlignmentObjective

TEXTS = ["turn on the fan", "please buy soap", "play"]
INSTRUCTION = "Repeat the following text."


@pytest.fixture
def examples(clips: list[np.ndarray], tiny_model: Any) -> list[Example]:
    tokenizer = tiny_model[1].tokenizer
    return [
        Example(
            id=f"u{row}",
            num_samples=len(clip),
            load_samples=lambda clip=clip: clip,
            transcript=text,
            prompt=INSTRUCTION,
            response_ids=tokenizer(text + "<|end|>", add_special_tokens=False).input_ids,
        )
        for row, (clip, text) in enumerate(zip(clips, TEXTS, strict=True))
    ]


def alone(model: Any, processor: Any, example: Example, side: str) -> tuple[list[torch.Tensor], torch.Tensor, int]:
    """The layers (L, D) of one example unpadded, through the whole model; its ids, and where its response starts."""
    is_spoken = side == "spoken"
    content, audio = (AUDIO_TOKEN, [example.load_samples()]) if is_spoken else (" " + example.transcript, [])
    inputs = processor(text=[build_prompt(processor.tokenizer, example.prompt, content)], audio=audio)
    start = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([list(example.response_ids)])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    return [layer[0] for layer in output.hidden_states], inputs["input_ids"][0], start


@pytest.mark.parametrize("side", ["spoken", "written"])
def test_states_are_those_of_each_utterance_alone(tiny_model, examples, side):
    model, processor = tiny_model
    found = layer_states(model, processor, examples, side, batch_size=2, seed=1, places=99)
    assert found.ids == ["u0", "u1", "u2"]
    for row, example in enumerate(examples):
        layers, ids, start = alone(model, processor, example, side)
        if side == "spoken":
            content = (ids == processor.audio_token_id).nonzero().flatten()
        else:  # the transcript's own tokens, found in the prompt
            own = processor.tokenizer(" " + example.transcript, add_special_tokens=False).input_ids
            at = next(at for at in range(len(ids)) if ids[at : at + len(own)].tolist() == own)
            content = torch.arange(at, at + len(own))
        for k, layer in enumerate(layers):
            response = layer[start - 1 : -1].numpy()  # the state at t predicts t + 1
            np.testing.assert_allclose(found.responses[k, found.utterance == row], response, atol=1e-4)
            np.testing.assert_allclose(found.prompt_end[k, row], response[0], atol=1e-4)
            np.testing.assert_allclose(found.content[k, row], layer[content].mean(0).numpy(), atol=1e-4)


def test_the_last_layer_is_what_the_objective_compares(tiny_model, examples):
    model, processor = tiny_model
    batch = Collator(processor)(examples)
    expected = AlignmentObjective(model).spoken_states(batch).detach().numpy()
    found = layer_states(model, processor, examples, "spoken", batch_size=8, seed=1, places=99)
    np.testing.assert_allclose(found.responses[-1], expected, atol=1e-4)


def test_of_many_places_the_same_are_taken_on_both_sides(tiny_model, examples):
    model, processor = tiny_model
    whole = layer_states(model, processor, examples, "written", batch_size=3, seed=1, places=99)
    spoken, written = (
        layer_states(model, processor, examples, side, batch_size=batch_size, seed=1, places=5)
        for side, batch_size in (("spoken", 1), ("written", 3))
    )
    assert spoken.responses.shape[1] == 5 and spoken.utterance.tolist() == written.utterance.tolist()
    # At the embeddings both are given the very same tokens there.
    np.testing.assert_array_equal(spoken.responses[0], written.responses[0])
    rows = {tuple(row) for row in whole.responses[-1].round(3).tolist()}
    assert all(tuple(row) in rows for row in written.responses[-1].round(3).tolist())


def test_contents_are_what_the_prompts_do_not_share(tiny_model, examples):
    _, processor = tiny_model
    batch = Collator(processor)(examples)
    masks = content_masks(batch, processor.audio_token_id)
    for row, example in enumerate(examples):
        words = processor.tokenizer.decode(batch.written.ids[row][masks["written"][row]])
        assert words.strip() == example.transcript
        assert int(masks["spoken"][row].sum()) == processor.audio_token_count(example.num_samples)


def test_of_many_utterances_a_few_are_taken(examples, monkeypatch):
    assert sample(examples, 1) == examples
    monkeypatch.setattr(module, "UTTERANCES", 2)
    few = sample(examples, 1)
    assert len(few) == 2 and few == sample(examples, 1) and [example for example in examples if example in few] == few


def test_states_of_some_utterances_are_theirs(tiny_model, examples):
    model, processor = tiny_model
    whole = layer_states(model, processor, examples, "spoken", batch_size=3, seed=1, places=99)
    part = whole.of(np.array([0, 2]))
    assert part.ids == ["u0", "u2"] and set(part.utterance.tolist()) == {0, 1}
    for row, old in enumerate((0, 2)):
        np.testing.assert_array_equal(
            part.responses[:, part.utterance == row], whole.responses[:, whole.utterance == old]
        )
        np.testing.assert_array_equal(part.content[:, row], whole.content[:, old])
        np.testing.assert_array_equal(part.prompt_end[:, row], whole.prompt_end[:, old])
