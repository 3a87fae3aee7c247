import functools

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from blsp.data import corpus, recogniser, shards
from blsp.data.records import SPLITS, Utterance, Waveform
from blsp.errors import BlspError
from blsp.miniature.speech_model import END, NO_TIMESTAMPS, START, _train_tokenizer
from blsp.params import load_params
from tests.data.sources.trees import pack_all
from tests.tiny import SECOND
from tests.trained import PARAMS

WINDOW_S = 1
SAID = {"open the door": 300, "shut the window": 1100, "light a candle": 2500}
"""What each of three tones says, in Hz."""


def tone(sentence, seconds=1.0, rate_hz=SECOND):
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * SAID[sentence] * times) * (1 + np.sin(40 * times)) / 2).astype(np.float32)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A Whisper that has learned what three tones say."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("recogniser")
    tokenizer: WhisperTokenizer = _train_tokenizer(list(SAID))
    start, end, no_timestamps = tokenizer.convert_tokens_to_ids([START, END, NO_TIMESTAMPS])
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 50 * WINDOW_S}
    specials = {"decoder_start_token_id": start, "pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    config = WhisperConfig(vocab_size=len(tokenizer), max_target_positions=24, **sizes, **specials)
    model = WhisperForConditionalGeneration(config)
    model.generation_config.update(
        is_multilingual=False, no_timestamps_token_id=no_timestamps, return_timestamps=False, max_length=24
    )
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S)
    features = extractor([tone(said) for said in SAID], sampling_rate=SECOND, return_tensors="pt").input_features
    rows = [[no_timestamps, *tokenizer(f" {said}", add_special_tokens=False).input_ids, end] for said in SAID]
    labels = torch.full((len(rows), max(map(len, rows))), -100)
    for row, ids in zip(labels, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(input_features=features, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.01:
            break
    for part in (model.eval(), tokenizer, extractor):
        part.save_pretrained(folder)
    return folder


def settings(whisper, **changes):
    changes = {"recogniser": str(whisper), "max_recogniser_wer": 0.5, "max_silent_share": 1.0} | changes
    return load_params(PARAMS).corpus.model_copy(update=changes)


def rows(*transcripts):
    """One row for each (what is said, its transcript), all in train, after one a split that is right."""
    pairs = [(said, f"{said} now") for said in SAID] + list(transcripts)
    for number, (said, transcript) in enumerate(pairs):
        sound = functools.partial(Waveform, tone(said, 1 - number / 50, 2 * SECOND), 2 * SECOND)
        split = SPLITS[number] if number < len(SPLITS) else "train"
        yield Utterance(id=f"row{number}", audio=sound, text=transcript, language="en", split=split, source="made")


def test_a_row_whose_transcript_is_not_what_is_heard_is_dropped_with_both_texts(whisper, tmp_path, monkeypatch):
    monkeypatch.setattr(recogniser, "BATCH", 2)
    wrong = ("open the door", "close that window please")
    right = ("shut the window", "Shut the window, Ann!")
    source = functools.partial(rows, wrong, right)
    report = pack_all(settings(whisper), source, folder=tmp_path / "corpus")
    assert report["dropped_rows"] == [
        {
            "id": "row3",
            "source": "miniature",
            "reason": "recogniser_disagrees",
            "detail": "word error rate 1.00, more than 0.5: 'close that window please', heard as 'open the door'",
        }
    ]
    assert (report["rows_in"], report["rows_kept"]) == (5, 4)
    kept = [cut.id for cut in shards.load_cuts("train", corpus_dir=tmp_path / "corpus")]
    assert kept == ["row0", "row4"]
    alone = pack_all(settings(whisper, max_recogniser_wer=1.0), source, folder=tmp_path / "other")
    assert alone["rows_kept"] == 5


def test_longer_audio_is_heard_window_by_window(whisper):
    said = ["open the door", "light a candle"]
    clip = np.concatenate([tone(sentence) for sentence in said])
    loaded = recogniser._load(str(whisper), None)
    assert recogniser.recognise(loaded, [clip, clip[:SECOND]]) == [
        " ".join(said),
        said[0],
    ]


def test_another_recogniser_is_another_corpus(whisper, tmp_path):
    keys = [corpus.staging_key(settings(whisper))]
    keys.append(corpus.staging_key(settings(whisper, max_recogniser_wer=0.6)))
    commits = {"recogniser": "openai/whisper-tiny"}
    keys += [corpus.staging_key(settings(whisper, **commits, recogniser_revision=digit * 40)) for digit in "ab"]
    keys.append(corpus.staging_key(settings(None, recogniser=None, max_recogniser_wer=None)))
    (whisper / "notes.txt").write_text("another")
    recogniser._digest.cache_clear()
    keys.append(corpus.staging_key(settings(whisper)))
    (whisper / "notes.txt").unlink()
    recogniser._digest.cache_clear()
    assert len(set(keys)) == 6
    assert corpus.staging_key(settings(whisper)) == keys[0]


@pytest.fixture(scope="module")
def multilingual():
    """A random multilingual Whisper as converters leave it: no forced_decoder_ids, no ids of languages and tasks."""
    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["a", "b", "c", "d"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    special = [START, "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", NO_TIMESTAMPS, END]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    start, end = fast.convert_tokens_to_ids([START, END])
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 50 * WINDOW_S}
    specials = {"decoder_start_token_id": start, "pad_token_id": end, "bos_token_id": end, "eos_token_id": end}
    model = WhisperForConditionalGeneration(
        WhisperConfig(vocab_size=len(fast), max_target_positions=12, **sizes, **specials)
    ).eval()
    model.generation_config.is_multilingual = True
    model.generation_config.no_timestamps_token_id = fast.convert_tokens_to_ids(NO_TIMESTAMPS)
    model.generation_config.max_length = 12
    return recogniser.Whisper(model, WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S), fast)


def told(whisper, monkeypatch, languages, clips):
    """What the decoder begins with for each clip, in the order in which they are decoded."""
    begun, forward = [], whisper.model.forward

    def keep(*given, decoder_input_ids=None, **options):
        if decoder_input_ids is not None and decoder_input_ids.shape[1] >= 3:
            begun.extend(" ".join(whisper.tokenizer.convert_ids_to_tokens(row[:3])) for row in decoder_input_ids)
        return forward(*given, decoder_input_ids=decoder_input_ids, **options)

    monkeypatch.setattr(whisper.model, "forward", keep)
    recogniser.recognise(whisper, clips, languages)
    return begun


def test_a_multilingual_whisper_is_told_its_task_and_the_language_that_a_row_has(multilingual, monkeypatch):
    clips = [tone(said) for said in SAID] + [tone("open the door")]
    begun = told(multilingual, monkeypatch, ["en-GB", "German", "fr", "English"], clips)
    assert begun[0] == begun[1] == "<|startoftranscript|> <|en|> <|transcribe|>"
    assert begun[2] == "<|startoftranscript|> <|de|> <|transcribe|>"
    assert begun[3] in (begun[0], begun[2]), "a language that it does not know is found out"


def test_an_english_whisper_is_told_nothing(whisper):
    loaded = recogniser._load(str(whisper), None)
    assert recogniser.languages_of(loaded) == {}
    assert recogniser.recognise(loaded, [tone("open the door")], ["de"]) == ["open the door"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_whisper_stored_in_half_precision_recognises(whisper, dtype):
    loaded = recogniser._load(str(whisper), None)
    half = loaded._replace(model=WhisperForConditionalGeneration.from_pretrained(whisper, dtype=dtype).eval())
    assert recogniser.recognise(half, [tone(said) for said in SAID]) == list(SAID)


def test_an_empty_clip_has_no_words(whisper):
    loaded, empty = recogniser._load(str(whisper), None), np.zeros(0, np.float32)
    assert recogniser.recognise(loaded, [empty]) == [""]
    assert recogniser.recognise(loaded, [empty, tone("open the door"), empty]) == ["", "open the door", ""]


def test_what_is_no_recogniser_is_one_message(whisper, tmp_path, pins):
    def refused(message, **changes):
        with pytest.raises(BlspError, match=message):
            pack_all(settings(whisper, **changes), rows, folder=tmp_path / "corpus")
        assert not (tmp_path / "corpus").exists()

    refused("corpus.recogniser: nowhere: no such folder; name a folder with a Whisper", recogniser="nowhere")
    refused("is a llama; name a folder", recogniser=str(pins["llm"]["name"]))
    (tmp_path / "empty").mkdir()
    refused("empty cannot be loaded", recogniser=str(tmp_path / "empty"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    for file in whisper.iterdir():
        if file.suffix != ".safetensors":
            (pickled / file.name).write_bytes(file.read_bytes())
    torch.save({}, pickled / "pytorch_model.bin")
    refused("pickled cannot be loaded", recogniser=str(pickled))


def test_rows_are_heard_alike_in_any_batch(whisper):
    found = list(rows(("open the door", "x"), ("light a candle", "light a candle")))
    clips = [row.audio().samples[::2] for row in found]
    together = recogniser.faults(found, clips, settings(whisper))
    alone = [recogniser.faults([row], [clip], settings(whisper))[0] for row, clip in zip(found, clips, strict=True)]
    assert list(map(str, together)) == list(map(str, alone))
    assert [bool(fault) for fault in together] == [False, False, False, True, False]
