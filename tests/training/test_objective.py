"""The objective: against independent formulas, and at the right positions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blsp.continuation.teacher import keep, kept_logprobs
from blsp.model.chat import AUDIO_TOKEN, build_prompt
from blsp.model.decoding import Answer, logits_of
from blsp.training.examples import Collator, Example, with_others
from blsp.training.objective import CONTENT_NATS, AlignmentObjective, ce_loss, kd_loss, stored_kd_loss


def examples(clips, tokenizer):
    texts = ["turn on the fan", "please buy soap", "play"]
    return [
        Example(
            id=f"u{row}",
            num_samples=len(clip),
            load_samples=lambda clip=clip: clip,
            transcript=text,
            prompt="Repeat the following text.",
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


def test_states_are_those_that_predict_the_response(tiny_model, clips):
    """Each row of a batch against that row alone, unpadded, through the whole model: t predicts t + 1."""
    model, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    objective = AlignmentObjective(model)
    batch = Collator(processor)(rows)
    spoken, written = objective.spoken_states(batch), objective.written_states(batch)
    for row, example in enumerate(rows):
        response = list(example.response_ids)
        assert batch.targets[batch.utterance == row].tolist() == response
        for states, content, audio in (
            (spoken, AUDIO_TOKEN, [example.load_samples()]),
            (written, " " + example.transcript, []),
        ):
            prompt = processor(text=[build_prompt(processor.tokenizer, example.prompt, content)], audio=audio)
            length = prompt["input_ids"].shape[1]
            prompt["input_ids"] = torch.cat([prompt["input_ids"], torch.tensor([response])], dim=1)
            prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
            expected = model(**prompt).logits[0, length - 1 : -1]
            found = logits_of(model.language_model, states[batch.utterance == row])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_no_end_is_learned_where_the_llm_was_cut(tiny_model, clips):
    _, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    batch = Collator(processor)(rows)
    end = processor.tokenizer.eos_token_id
    learned = [batch.targets[batch.utterance == row].tolist() for row in range(len(rows))]
    assert [ids[-1] == end for ids in learned] == [False, True, True]


@pytest.mark.parametrize("objective", ["kd", "ce"])
def test_chunks_change_neither_the_loss_nor_its_gradient(tiny_model, clips, monkeypatch, objective):
    model, processor = tiny_model
    batch = Collator(processor)(examples(clips, processor.tokenizer))
    loss = AlignmentObjective(model, objective, 2.0)

    def gradients():
        model.zero_grad()
        total = loss(batch)
        total.backward()
        return total.detach(), [p.grad.clone() for p in model.multi_modal_projector.parameters()]

    whole, expected = gradients()
    monkeypatch.setattr("blsp.model.decoding.CHUNK_LOGITS", 3 * model.language_model.config.vocab_size)
    chunked, found = gradients()
    torch.testing.assert_close(chunked, whole, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    model.zero_grad()


def test_the_stored_teacher_is_the_live_one(tiny_model, clips):
    """With every token kept the two are one loss; with fewer, no farther than their number lets one expect."""
    model, processor = tiny_model
    rows = examples(clips, processor.tokenizer)
    collator = Collator(processor)
    live = AlignmentObjective(model, "kd", 2.0)(collator(rows)).item()
    tokenizer, llm = processor.tokenizer, model.language_model
    prompts = [build_prompt(tokenizer, e.prompt, e.transcript) for e in rows]
    ids = [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]
    answers = [Answer(list(e.response_ids), "", "stop") for e in rows]

    def stored(k):
        kept = kept_logprobs(llm, ids, answers, k, 2.0)
        with_kept = [replace(e, kept_ids=i, kept_logprobs=p) for e, (i, p) in zip(rows, kept, strict=True)]
        return AlignmentObjective(model, "kd", 2.0, "stored")(collator(with_kept)).item()

    assert stored(llm.config.vocab_size) == pytest.approx(live, rel=1e-3)
    assert stored(100) == pytest.approx(live, rel=0.1)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("distance", [0.1, 1.5])
def test_neither_the_stored_loss_nor_its_gradient_is_biased(temperature, distance):
    """The mean over many draws is the live teacher's; that of the likeliest alone is not."""
    torch.manual_seed(0)
    n, vocabulary, k, draws = 2, 100, 6, 40_000
    teacher = 1.5 * torch.randn(n, vocabulary)
    student = (teacher + distance * torch.randn(n, vocabulary)).requires_grad_()
    live = kd_loss(student, teacher, temperature)
    (expected,) = torch.autograd.grad(live, student)
    many = [some.repeat(draws, 1) for some in (student, teacher)]
    ids, logprobs = keep(many[1], k, temperature, torch.rand(n * draws, k))
    stored = stored_kd_loss(many[0], ids, logprobs, temperature) / draws
    (found,) = torch.autograd.grad(stored, student)
    assert stored.item() == pytest.approx(live.item(), rel=0.01)
    assert (found - expected).norm() < 0.02 * expected.norm()
    ratios = logprobs - many[0].div(temperature).log_softmax(-1).gather(-1, ids)
    likeliest = (logprobs.exp() * ratios)[:n, :k].sum() * temperature**2
    assert abs(likeliest - live) > 0.05 * live


def test_a_student_that_is_far_from_a_sure_teacher_is_not_thrown_about():
    """Next to nothing is left to the others, and the student says just those: draws must not weigh more for it."""
    torch.manual_seed(0)
    teacher = torch.randn(50, 300)
    teacher[:, :4] += torch.tensor([30.0, 14.0, 13.0, 12.0])
    student = torch.randn(50, 300).requires_grad_()
    live = kd_loss(student, teacher, 1.0)
    (expected,) = torch.autograd.grad(live, student)
    stored = stored_kd_loss(student, *keep(teacher, 4, 1.0, torch.rand(50, 4)), 1.0)
    (found,) = torch.autograd.grad(stored, student)
    assert stored.item() == pytest.approx(live.item(), rel=1e-3)
    assert (found - expected).norm() < 1e-3 * expected.norm()


def test_a_student_that_is_the_teacher_learns_nothing_from_what_was_drawn():
    torch.manual_seed(0)
    teacher = 2 * torch.randn(5, 300)
    student = teacher.clone().requires_grad_()
    loss = stored_kd_loss(student, *keep(teacher, 8, 2.0, torch.rand(5, 8)), 2.0)
    loss.backward()
    assert abs(loss.item()) < 1e-4 and student.grad.abs().max() < 1e-5


def test_divergence_is_zero_only_where_behaviour_is_the_same(tiny_model, clips):
    model, processor = tiny_model
    batch = Collator(processor)(examples(clips, processor.tokenizer))
    objective = AlignmentObjective(model)
    gap = objective.divergence(batch)["speech"]
    assert (gap.kl > 0).all() and (gap.agreement <= gap.tokens).all()
    assert gap.tokens.tolist() == [len(e.response_ids) for e in examples(clips, processor.tokenizer)]
    objective.spoken_states = objective.written_states  # an adapter that makes speech into text
    same = objective.divergence(batch)["speech"]
    assert same.kl.abs().max() < 1e-5 and torch.equal(same.agreement, same.tokens)


def test_the_floors_are_the_gap_of_anothers_speech_and_of_another_adapter(tiny_model, clips):
    """And content-dependent tokens are those that the LLM predicts otherwise after another's transcript."""
    model, processor = tiny_model
    rows, collate, objective = examples(clips, processor.tokenizer), Collator(processor), AlignmentObjective(model)
    others, fresh = with_others(rows), model.fresh_adapter()
    own = model.multi_modal_projector
    gap = objective.divergence(collate(rows), collate(others), fresh)
    assert model.multi_modal_projector is own
    swapped = [
        replace(row, load_samples=o.load_samples, num_samples=o.num_samples)
        for row, o in zip(rows, others, strict=True)
    ]
    torch.testing.assert_close(gap["other"].kl, objective.divergence(collate(swapped))["speech"].kl)
    with model.hearing_through(fresh):
        torch.testing.assert_close(gap["untrained"].kl, objective.divergence(collate(rows))["speech"].kl)
    text, wrong = (
        logits_of(model.language_model, objective.written_states(collate(some))).log_softmax(-1)
        for some in (rows, others)
    )
    depends = (text.exp() * (text - wrong)).sum(-1) > CONTENT_NATS
    assert 0 < depends.sum() < len(depends)
    by_row = [int(depends[collate(rows).utterance == row].sum()) for row in range(len(rows))]
    assert gap["speech"].content_tokens.tolist() == gap["other"].content_tokens.tolist() == by_row
    assert (gap["speech"].content_kl <= gap["speech"].kl).all()


def test_anothers_speech_is_the_nearest_in_length_that_says_something_else():
    def example(id_, samples, transcript):
        return Example(id_, samples, list, transcript, f"do {id_}", [len(id_)])

    rows = [example("a", 100, "x"), example("b", 300, "y"), example("c", 110, "x"), example("d", 130, "z")]
    others = with_others(rows)
    assert [one.id for one in others] == ["d", "d", "d", "c"]
    assert [one.transcript for one in others] == ["z", "z", "z", "x"] and others[1].num_samples == 130
    assert [one.prompt for one in others] == [one.prompt for one in rows]
    assert [one.id for one in with_others(rows[::-1])] == ["c", "d", "d", "d"]
    assert with_others([rows[0], rows[2]]) == []
