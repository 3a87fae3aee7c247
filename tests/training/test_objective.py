"""The objective: against independent formulas, and at the right positions."""

import numpy as np
import pytest
import torch

from blsp.model.chat import AUDIO_TOKEN, build_prompt
from blsp.training.examples import Collator, Example
from blsp.training.objective import AlignmentObjective, ce_loss, kd_loss


def examples(clips, tokenizer):
    texts = ["turn on the fan", "please buy soap", "play"]
    return [
        Example(
            id=f"u{row}",
            num_samples=len(clip),
            load_samples=lambda clip=clip: clip,
            transcript=text,
            instruction="Repeat the following text.",
            response_ids=tokenizer(text + ("<|end|>" if row else ""), add_special_tokens=False).input_ids,
        )
        for row, (clip, text) in enumerate(zip(clips, texts, strict=True))
    ]


def test_kd_is_the_kl_divergence_by_hand():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    for temperature in (1.0, 2.0):
        p, q = (np.exp(x.numpy() / temperature) for x in (teacher, student))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        expected = (p * np.log(p / q)).sum() * temperature**2
        assert kd_loss(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-4)
    assert kd_loss(teacher, teacher, 2.0).item() == pytest.approx(0, abs=1e-5)


def test_ce_is_the_negative_log_likelihood_by_hand():
    student, responses = torch.randn(4, 6), torch.tensor([1, 0, 5, 3])
    expected = -sum(student[row].log_softmax(-1)[token].item() for row, token in enumerate(responses.tolist()))
    assert ce_loss(student, responses).item() == pytest.approx(expected, rel=1e-5)


def test_logits_are_those_that_predict_the_response(tiny_model, clips):
    """Each row of a batch against that row alone, unpadded, through the whole model: t predicts t + 1."""
    model, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    objective = AlignmentObjective(model)
    batch = Collator(model, processor)(rows)
    spoken, written = objective._spoken_logits(batch), objective._written_logits(batch)
    for row, example in enumerate(rows):
        response = list(example.response_ids)
        for logits, content, audio in (
            (spoken, AUDIO_TOKEN, [example.load_samples()]),
            (written, " " + example.transcript, []),
        ):
            prompt = processor(text=[build_prompt(processor.tokenizer, example.instruction, content)], audio=audio)
            length = prompt["input_ids"].shape[1]
            prompt["input_ids"] = torch.cat([prompt["input_ids"], torch.tensor([response])], dim=1)
            prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
            expected = model(**prompt).logits[0, length - 1 : -1]
            torch.testing.assert_close(logits[row, : len(response)], expected, atol=1e-4, rtol=1e-3)


def test_no_end_is_learned_where_the_llm_was_cut(tiny_model, clips):
    model, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    batch = Collator(model, processor)(rows)
    end = processor.tokenizer.eos_token_id
    learned = [row[mask].tolist() for row, mask in zip(batch.responses, batch.is_response, strict=True)]
    assert [ids[-1] == end for ids in learned] == [False, True, True]
    assert [len(ids) for ids in learned] == [len(e.response_ids) for e in rows]


def test_divergence_is_zero_only_where_behaviour_is_the_same(tiny_model, clips):
    model, processor = tiny_model
    batch = Collator(model, processor)(examples(clips, processor.tokenizer))
    objective = AlignmentObjective(model)
    gap = objective.divergence(batch)
    assert (gap.kl > 0).all() and (gap.agreement <= gap.tokens).all()
    objective._spoken_logits = objective._written_logits  # an adapter that makes speech into text
    same = objective.divergence(batch)
    assert same.kl.abs().max() < 1e-5 and torch.equal(same.agreement, same.tokens)


def test_cached_frames_give_the_same_batch(tiny_model, clips):
    model, processor = tiny_model
    collator = Collator(model, processor, cache_bytes=1 << 20)
    rows = examples(clips, processor.tokenizer)
    first, second = collator(rows), collator(rows[::-1])
    assert len(collator.cache) == 3
    assert torch.equal(first.frames[0, : first.frame_counts[0]], second.frames[2, : second.frame_counts[2]])
    assert Collator(model, processor, cache_bytes=10)(rows).ids == ["u0", "u1", "u2"]
