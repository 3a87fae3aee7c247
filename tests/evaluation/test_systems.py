"""The systems: an item is heard and recognised once, and its answer depends on nothing else that is asked about."""

from types import SimpleNamespace

import pytest

from blsp.data.recogniser import Whisper
from blsp.evaluation import systems
from blsp.evaluation.systems import all_systems, cascade_system, speech_system
from blsp.files import write_json
from blsp.model import loading
from blsp.model.chat import AUDIO_TOKEN, build_prompt, respond
from blsp.model.decoding import greedy
from blsp.params import load_params
from tests.trained import PARAMS

INSTRUCTIONS = ["Repeat the following text.", "Translate the following text into German."]


class Item(SimpleNamespace):
    """As test items are: each is itself alone."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


@pytest.fixture
def items(clips):
    return [
        Item(id=f"u{number}", samples=clip, language="en") for number, clip in enumerate([clips[2], clips[0], clips[1]])
    ]


def settings(batch_size):
    return load_params(PARAMS).evaluate.model_copy(update={"batch_size": batch_size, "max_new_tokens": 6})


def test_what_is_heard_is_what_the_model_gets_from_the_processor(tiny_model, clips):
    model, processor = tiny_model
    prompts = [build_prompt(processor.tokenizer, INSTRUCTIONS[0], AUDIO_TOKEN)] * len(clips)
    answers = greedy(model, processor.tokenizer, 8, **processor(text=prompts, audio=clips))
    assert respond(model, processor, INSTRUCTIONS[0], clips, 8) == [answer.text for answer in answers]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_answers_come_in_the_items_order_whatever_the_batches(tiny_model, items, batch_size):
    answer = speech_system(settings(batch_size), *tiny_model)
    for instruction in INSTRUCTIONS:
        alone = [respond(*tiny_model, instruction, [item.samples], 6)[0] for item in items]
        assert len(set(alone)) > 1
        assert answer(instruction, items) == alone and answer(instruction, items[::-1]) == alone[::-1]


def test_an_item_is_heard_once_whatever_is_asked(tiny_model, items, monkeypatch):
    heard = []
    hear = systems.hear
    monkeypatch.setattr(systems, "hear", lambda m, p, clips: heard.extend(map(len, clips)) or hear(m, p, clips))
    answer = speech_system(settings(2), *tiny_model)
    for instruction in INSTRUCTIONS:
        answer(instruction, items)
    assert heard == sorted(len(item.samples) for item in items), "shortest first"
    answer(INSTRUCTIONS[0], [Item(id=items[0].id, samples=items[0].samples / 2)])
    assert len(heard) == 4, "what was done to its audio makes another item of it"


def test_the_cascade_reads_what_was_recognised_once(items, monkeypatch):
    recognised = []

    def recognise(_whisper, clips, languages):
        assert languages == ["en"] * len(clips)
        recognised.extend(map(len, clips))
        return [f"samples {len(clip)}" for clip in clips]

    def read(_llm, _tokenizer, prompts, _batch_size, _max_new_tokens):
        return ((row, SimpleNamespace(text=prompts[row])) for row in reversed(range(len(prompts))))

    monkeypatch.setattr(systems, "recognise", recognise)
    monkeypatch.setattr(systems, "load_recogniser", lambda encoder: (None, None, None))
    monkeypatch.setattr(systems, "load_llm", lambda: (None, None))
    monkeypatch.setattr(systems, "build_prompt", lambda _tokenizer, prompt, content: f"{prompt} {content}")
    monkeypatch.setattr(systems, "write_answers", read)
    answer = cascade_system(settings(2))
    for instruction in INSTRUCTIONS:
        assert answer(instruction, items) == [f"{instruction} samples {len(item.samples)}" for item in items]
    assert recognised == sorted(len(item.samples) for item in items)


def test_all_systems_share_one_llm_and_one_encoder(pins, tiny_model, clips, tmp_path, monkeypatch):
    """Nothing but the speech model's decoder is loaded beside the model; answers are those of systems alone."""
    model, processor = tiny_model
    monkeypatch.chdir(tmp_path)
    write_json("models/backbones/backbones.json", pins)
    loaded, load = [], loading._load
    monkeypatch.setattr(
        loading, "_load", lambda kind, _, part, *rest: loaded.append(part) or load(kind, _, part, *rest)
    )
    found = {}
    monkeypatch.setattr(systems, "Whisper", lambda *parts: found.setdefault("whisper", Whisper(*parts)))
    items = [
        Item(id=f"u{number}", samples=clip, transcript="buy soap", language="en")
        for number, clip in enumerate(clips[:2])
    ]
    untrained = model.fresh_adapter()
    beside = all_systems(settings(2), model, processor, untrained)
    assert loaded == ["speech"]
    whisper = found["whisper"].model
    assert whisper.model.encoder is model.audio_tower
    assert next(whisper.parameters()).data_ptr() == next(model.audio_tower.parameters()).data_ptr()
    own, done = model.multi_modal_projector, []
    answers = {name: answer(INSTRUCTIONS[0], items, done.append) for name, answer in beside.items()}
    assert loaded == ["speech"] and model.multi_modal_projector is own
    assert sum(done) == len(items) * len(beside), "each answer is told of once"
    alone = {
        "text": systems.text_system(settings(2))(INSTRUCTIONS[0], items),
        "cascade": cascade_system(settings(2))(INSTRUCTIONS[0], items),
        "speech": [respond(model, processor, INSTRUCTIONS[0], [item.samples], 6)[0] for item in items],
    }
    assert loaded == ["speech", "llm", "speech", "llm"], "four loads, where each system stands alone"
    with model.hearing_through(untrained):
        alone["untrained"] = [respond(model, processor, INSTRUCTIONS[0], [item.samples], 6)[0] for item in items]
    assert answers == alone and answers["untrained"] != answers["speech"]
