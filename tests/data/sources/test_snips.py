import json

import pytest

from blsp.data import shards
from blsp.data.records import Dropped, Utterance
from blsp.data.sources.snips import read
from blsp.errors import BlspError
from tests.data.sources.trees import packed, spoken

LICENCE = "Sonos Crowdsourced Data License Terms"
LIGHTS = {"SwitchLightOn": ["Turn on the garden lights"], "SetLightColor": ["Make the kitchen blue", "Go red"]}
TRAINING, TEST = {"NextSong": ["Skip this song"]}, {"PlayMusic": ["Play some music by Abba"]}


def dataset(intents, language="en"):
    """Sentences in two chunks, as slots cut them."""
    return {
        "language": language,
        "intents": {
            intent: {
                "utterances": [{"data": [{"text": text[:3]}, {"text": text[3:], "entity": "e"}]} for text in texts]
            }
            for intent, texts in intents.items()
        },
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def recording(number, text, worker="w1"):
    return {"filename": f"{number}.wav", "text": text, "worker": {"id": worker, "age": 30}}


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "snips_slu_data_v1.0"
    lights, speaker = place / "smart-lights-en-close-field", place / "smart-speaker-en-far-field"
    write(lights / "dataset.json", dataset(LIGHTS))
    texts = [text for texts in LIGHTS.values() for text in texts]
    recordings = {str(number): recording(number, text + "\n", f"w{number}") for number, text in enumerate(texts)}
    write(lights / "speech_corpus" / "metadata.json", recordings)
    for number, text in enumerate(texts):
        spoken(lights / "speech_corpus" / "audio" / f"{number}.wav", text)
    write(speaker / "training_dataset.json", dataset(TRAINING))
    write(speaker / "test_dataset.json", dataset(TEST))
    (skip,), (play,) = TRAINING["NextSong"], TEST["PlayMusic"]
    entries = [{"text": play, "path_file": "audio/p.wav"}, {"text": skip, "path_file": "audio/s.wav", "worker": "?"}]
    write(speaker / "metadata.json", entries)
    spoken(speaker / "audio" / "p.wav", play)
    spoken(speaker / "audio" / "s.wav", skip)
    (place / "smart-nothing-field").mkdir()
    return place


def test_recordings_carry_intent_worker_and_split(place):
    rows = list(read(place))
    assert [(row.id, row.text, row.intent, row.split) for row in rows] == [
        ("smart-lights-en-close-field/0", "Turn on the garden lights", "SwitchLightOn", None),
        ("smart-lights-en-close-field/1", "Make the kitchen blue", "SetLightColor", None),
        ("smart-lights-en-close-field/2", "Go red", "SetLightColor", None),
        ("smart-speaker-en-far-field/p", "Play some music by Abba", "PlayMusic", "test"),
        ("smart-speaker-en-far-field/s", "Skip this song", "NextSong", "train"),
    ]
    assert all(isinstance(row, Utterance) for row in rows)
    assert [row.speaker for row in rows] == ["w0", "w1", "w2", None, None]
    assert rows[0].audio == place / "smart-lights-en-close-field/speech_corpus/audio/0.wav"
    assert rows[3].audio == place / "smart-speaker-en-far-field/audio/p.wav"
    assert {(row.language, row.licence) for row in rows} == {("en", LICENCE)}
    assert rows[0].source == "snips smart-lights-en-close-field"


def test_one_set_can_be_named(place):
    ids = [row.id for row in read(place / "smart-speaker-en-far-field")]
    assert ids == [row.id for row in read(place)][3:]


def test_a_sentence_of_training_and_test_is_of_test_and_one_of_neither_has_no_intent(place):
    speaker = place / "smart-speaker-en-far-field"
    write(speaker / "training_dataset.json", dataset({"Other": TEST["PlayMusic"]}, "fr"))
    write(speaker / "test_dataset.json", dataset(TEST, "fr"))
    play, skip = read(speaker)
    assert (play.intent, play.split, play.language) == ("PlayMusic", "test", "fr")
    assert (skip.intent, skip.split, skip.text) == (None, None, "Skip this song")


@pytest.mark.parametrize(
    ("bad", "reason", "detail"),
    [
        ({"text": "Hello", "worker": {"id": "w"}}, "missing_key", "filename"),
        ({"filename": "9.wav"}, "missing_key", "text"),
        ({"filename": 9, "text": "Hello"}, "wrong_type", "filename: expected a string, found 9 (int)"),
        ({"filename": "9.wav", "text": "half \ud800"}, "wrong_type", "text"),
        (["9.wav", "Hello"], "wrong_type", "expected an object"),
        (recording("../9", "Hello"), "bad_path", "'../9.wav'"),
        (recording("a\n", "Hello"), "bad_id", "cannot name a file"),
    ],
)
def test_a_bad_recording_is_dropped_with_its_key_and_the_others_stay(place, bad, reason, detail):
    lights = place / "smart-lights-en-close-field"
    recordings = {"1": recording(1, "Make the kitchen blue"), "9": bad, "2": recording(2, "Go red")}
    write(lights / "speech_corpus/metadata.json", recordings)
    first, dropped, last, unspoken = read(lights)
    assert isinstance(first, Utterance) and isinstance(last, Utterance) and isinstance(dropped, Dropped)
    assert (dropped.id, dropped.reason) == ("smart-lights-en-close-field/metadata.json, 9", reason)
    assert detail in dropped.detail
    assert (unspoken.reason, unspoken.id) == ("no_recording", "smart-lights-en-close-field: Turn on the garden lights")


def test_every_recording_is_packed_or_dropped(place, tmp_path):
    lights = place / "smart-lights-en-close-field"
    texts = [text for texts in LIGHTS.values() for text in texts]
    recordings = {str(number): recording(number, text) for number, text in enumerate(texts[:2])}
    recordings |= {"a": recording(1, "Again"), "b": recording(77, "Nobody"), "c": recording(2, ""), "d": 5}
    recordings["e"] = recording(9, "Broken")
    write(lights / "speech_corpus/metadata.json", recordings)
    (lights / "speech_corpus/audio/9.wav").write_bytes(b"RIFF but not really" * 20)
    write(place / "smart-lights-en-far-field/dataset.json", dataset({"SwitchLightOn": ["Light up the room"]}))
    spoken(place / "smart-lights-en-far-field/speech_corpus/audio/0.wav", "Light up the room")
    other = {"0": recording(0, "Light up the room", "w8")}
    write(place / "smart-lights-en-far-field/speech_corpus/metadata.json", other)
    report = packed(read, place, tmp_path / "corpus")
    reasons = "duplicate_id missing_file empty_text wrong_type no_recording undecodable"
    assert report["dropped"] == dict.fromkeys(reasons.split(), 1)
    assert report["rows_kept"] == 5
    intents = {cut.id: cut.custom["intent"] for cut in shards.load_cuts("train", corpus_dir=tmp_path / "corpus")}
    assert intents["smart-speaker-en-far-field/s"] == "NextSong"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset.json", "{half"),
        ("dataset.json", {"intents": {}}),
        ("dataset.json", {"language": "en", "intents": {"SwitchLightOn": [1]}}),
        ("speech_corpus/metadata.json", "5"),
        ("speech_corpus/metadata.json", "{half"),
    ],
)
def test_a_file_of_another_form_stops_the_run(place, name, content):
    write(place / "smart-lights-en-close-field" / name, content)
    with pytest.raises(BlspError, match=name.split("/")[-1]):
        list(read(place))


def test_text_that_is_not_utf8_stops_the_run(place):
    (place / "smart-lights-en-close-field/speech_corpus/metadata.json").write_bytes(b'{"1": {"text": "caf\xe9"}}')
    with pytest.raises(BlspError, match=r"metadata\.json is not JSON \(.*decode"):
        list(read(place))


def test_another_folder_is_named_with_what_was_looked_for(place, tmp_path):
    with pytest.raises(BlspError, match=r"snips: looked for a set .* in .*; name the folder snips_slu_data_v1\.0"):
        list(read(tmp_path))
    (place / "smart-lights-en-close-field/speech_corpus/metadata.json").unlink()
    with pytest.raises(BlspError, match=r"metadata\.json: No such file"):
        list(read(place))
