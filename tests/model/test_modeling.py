"""The model: batches that change nothing, nothing lost of long audio, one prompt for speech and text."""

import torch

from blsp.model.chat import AUDIO_TOKEN, build_prompt, respond
from blsp.model.encoder import split_windows
from tests import tiny


def test_audio_beyond_the_window_is_cut_and_joined_not_lost(tiny_model, clips):
    model, processor = tiny_model
    features = processor.features(clips)
    assert features["input_features"].shape == (3, 80, 530)
    assert features["input_features_mask"].sum(-1).tolist() == [35, 110, 530]
    windows, _, windows_per_clip = split_windows(*features.values(), window=200)
    assert windows_per_clip.tolist() == [1, 1, 3] and windows.shape == (5, 80, 200)
    vectors = model.get_audio_features(**features).pooler_output
    counts = [processor.audio_token_count(len(clip)) for clip in clips]
    # 0.35 s: 35 mel frames -> 18 encoder frames -> 9 -> 5; 1.1 s: 110 -> 55 -> 28 -> 14
    # 5.3 s: windows of 200, 200 and 130 mel frames, 100 + 100 + 65 encoder frames, 265 -> 133 -> 67
    assert counts == [5, 14, 67] and len(vectors) == sum(counts)
    changed = clips[2].copy()
    changed[-tiny.SECOND // 4 :] *= -0.5
    last = model.get_audio_features(**processor.features([changed])).pooler_output
    assert not torch.allclose(last[-1], vectors[-1], atol=1e-4)


def test_batched_equals_single(tiny_model, clips):
    model, processor = tiny_model
    prompts = [
        build_prompt(processor.tokenizer, instruction, AUDIO_TOKEN)
        for instruction in (
            "Repeat the following text.",
            "Answer the question.",
            "Continue the following text.",
        )
    ]
    together = model(**processor(text=prompts, audio=clips)).logits
    for row, (prompt, clip) in enumerate(zip(prompts, clips, strict=True)):
        alone = model(**processor(text=[prompt], audio=[clip])).logits[0]
        torch.testing.assert_close(together[row, -len(alone) :], alone, atol=1e-4, rtol=1e-3)


def test_padded_left_equals_padded_right(tiny_model, clips):
    model, processor = tiny_model
    prompts = [build_prompt(processor.tokenizer, "Repeat the following text.", AUDIO_TOKEN)] * 3
    left, right = (processor(text=prompts, audio=clips, padding_side=side) for side in ("left", "right"))
    logits_left, logits_right = model(**left).logits, model(**right).logits
    for row in range(3):
        length = int(left["attention_mask"][row].sum())
        torch.testing.assert_close(logits_left[row, -length:], logits_right[row, :length], atol=1e-4, rtol=1e-3)


def test_generation_is_the_same_alone_and_in_a_batch(tiny_model, clips):
    model, processor = tiny_model
    together = respond(model, processor, "Repeat the following text.", clips, 8)
    alone = [respond(model, processor, "Repeat the following text.", [clip], 8)[0] for clip in clips]
    assert together == alone and any(together)


def test_generate_continues_the_models_own_forward(tiny_model, clips):
    model, processor = tiny_model
    inputs = processor(
        text=[build_prompt(processor.tokenizer, "Repeat the following text.", AUDIO_TOKEN)], audio=clips[:1]
    )
    written = model.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1]
    assert written == model(**inputs).logits[0, -1].argmax()


def test_speech_and_text_prompts_differ_in_nothing_but_the_content(tiny_model):
    tokenizer = tiny_model[1].tokenizer
    ids = {
        content: tokenizer(
            build_prompt(tokenizer, "Repeat the following text.", content), add_special_tokens=False
        ).input_ids
        for content in (AUDIO_TOKEN, " turn on the fan")
    }
    speech, text = ids[AUDIO_TOKEN], ids[" turn on the fan"]
    place = speech.index(tokenizer.convert_tokens_to_ids(AUDIO_TOKEN))
    after = len(speech) - place - 1
    assert text[:place] == speech[:place] and text[-after:] == speech[-after:]
    assert tokenizer.decode(text[place:-after]).strip() == "turn on the fan"


def test_backbones_stay_frozen_and_in_evaluation_mode(tiny_model):
    model = tiny_model[0].train()
    assert model.multi_modal_projector.training and not model.audio_tower.training and not model.language_model.training
    trained = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"multi_modal_projector"}
    model.eval()
