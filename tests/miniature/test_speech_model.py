"""The miniature's Whisper: what its encoder is taught at each frame, and that it is a Whisper of two languages."""

import random

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

from blsp.data.recogniser import Whisper, recognise
from blsp.miniature.mel import HOP
from blsp.miniature.speech_model import (
    _label,
    _labels,
    _lessons,
    _text_loss,
    _word_at_each_frame,
    train_speech_model,
)
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, speak
from blsp.params import load_params
from tests.trained import PARAMS


@pytest.fixture(scope="module")
def small():
    """The miniature of a few sentences, its Whisper a few steps old."""
    settings = load_params(PARAMS).miniature
    sizes = {"width": 32, "encoder_layers": 1, "steps": 2, "batch_size": 4}
    counts = {"train_utterances": 6, "german_train_utterances": 5, "speech": settings.speech.model_copy(update=sizes)}
    return settings.model_copy(update=counts)


@pytest.fixture(scope="module")
def whisper(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    train_speech_model(small, folder)
    parts = (WhisperForConditionalGeneration, WhisperFeatureExtractor, WhisperTokenizer)
    return Whisper(*(part.from_pretrained(folder) for part in parts))


def test_each_frame_has_the_word_at_its_middle():
    # Five frames of 40 ms, their middles at 20, 60, 100, 140 and 180 ms; the ninth mel frame fills half of the last.
    timed = (("stop", 0.03), ("it", 0.09), ("stop", 0.15))
    assert _word_at_each_frame(timed, ["it", "stop"], mel_frames=9).tolist() == [0, 2, 1, 1, 2]
    assert _word_at_each_frame(timed, ["it", "stop"], mel_frames=4).tolist() == [0, 2]


def test_a_word_that_begins_after_the_audio_is_at_no_frame():
    assert _word_at_each_frame((("stop", 0.0), ("it", 0.5)), ["it", "stop"], mel_frames=6).tolist() == [2, 2, 2]


def test_spoken_words_follow_each_other_to_the_end():
    speech = speak("start a timer of 50 minutes", "en-us", Prosody("f2", 180, 50, 50))
    said = [word for word, _ in speech.words]
    numbers = _word_at_each_frame(speech.words, sorted(said), mel_frames=-(-len(speech.samples) // HOP))
    assert [sorted(said)[number - 1] for number in torch.unique_consecutive(numbers)] == said
    # A frame lasts 40 ms: each word has as many as it is long.
    starts = [start_s for _, start_s in speech.words]
    first = {word: numbers.tolist().index(sorted(said).index(word) + 1) for word in said}
    assert all(abs((first[word] + 0.5) * 0.04 - start_s) <= 0.04 for word, start_s in zip(said, starts, strict=True))


def test_its_tokens_are_where_whispers_own_tools_look_for_them(whisper):
    label = _label(whisper.tokenizer, "buche einen zug", "de", "translate")
    assert whisper.tokenizer.decode(label) == (
        "<|startoftranscript|><|de|><|translate|><|notimestamps|> buche einen zug<|endoftext|>"
    )
    whisper.tokenizer.set_prefix_tokens(language="german", task="translate", predict_timestamps=False)
    assert whisper.tokenizer(" buche einen zug").input_ids == label


def test_it_is_told_a_language_and_a_task_or_finds_the_language_out(whisper):
    samples = speak("buche einen zug", "de", Prosody("f2", 180, 50, 50)).samples
    features = whisper.extractor(samples, sampling_rate=SAMPLING_RATE_HZ, return_tensors="pt").input_features
    prompts = {}
    for told in ({}, {"language": "de", "task": "translate"}, {"language": "en", "task": "transcribe"}):
        generated = whisper.model.generate(features, return_dict_in_generate=True, **told).sequences[0]
        prompts[tuple(told.values())] = whisper.tokenizer.convert_ids_to_tokens(generated[:4])
    found = whisper.tokenizer.convert_ids_to_tokens(whisper.model.detect_language(features))
    assert found[0] in ("<|en|>", "<|de|>")
    assert prompts[()] == ["<|startoftranscript|>", *found, "<|transcribe|>", "<|notimestamps|>"]
    assert prompts["de", "translate"][1:3] == ["<|de|>", "<|translate|>"]
    assert prompts["en", "transcribe"][1:3] == ["<|en|>", "<|transcribe|>"]
    assert len(recognise(whisper, [samples, np.concatenate([samples, samples])], ["de", "de"])) == 2


def test_german_frames_are_named_by_english_words_of_their_translation(small, whisper):
    _, words, lessons = _lessons(small, whisper.extractor)
    said = [
        [words[number - 1] for number in torch.unique_consecutive(lesson.english_words).tolist() if number]
        for lesson in lessons
    ]
    for english, german in zip(said[:5], said[6:], strict=True):  # the same requests
        assert german and set(german) <= set(english)


def test_german_is_transcribed_and_translated_english_only_transcribed(small, whisper):
    tokenizer, _, lessons = _lessons(small, whisper.extractor)
    tasks = [set(lesson.labels) for lesson in lessons]
    assert tasks == 6 * [{"transcribe"}] + 5 * [{"transcribe", "translate"}]
    english, german = (
        [tokenizer.decode(lesson.labels[task], skip_special_tokens=True) for lesson in lessons[6:]]
        for task in ("translate", "transcribe")
    )
    same_requests = [tokenizer.decode(lesson.labels["transcribe"], skip_special_tokens=True) for lesson in lessons[:5]]
    assert english == same_requests and not set(english) & set(german)
    rng = random.Random(1)
    asked = [_labels(lessons[6], rng) for _ in range(100)]
    assert 30 < asked.count(lessons[6].labels["translate"]) < 70


def test_the_task_is_not_guessed_from_the_speech(whisper):
    frames = torch.randn(1, 20, whisper.model.config.d_model)
    label = _label(whisper.tokenizer, "buche einen zug", "de", "transcribe")
    losses = [_text_loss(whisper.model, frames, [label])]
    logits = whisper.model(encoder_outputs=(frames,), decoder_input_ids=torch.tensor([label[:-1]])).logits[0]
    each = torch.nn.functional.cross_entropy(logits, torch.tensor(label[1:]), reduction="none")
    losses.append((each.sum() - each[1]) / (len(each) - 1))
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
