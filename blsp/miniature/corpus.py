"""The miniature's spoken corpus: distinct sentences, each spoken once by a random voice of its split.

German is in its test split alone: what the adapter learns from is English.
"""

import random
from collections.abc import Iterator
from functools import partial

from blsp.data.records import SPLITS, Utterance, Waveform
from blsp.miniature.grammar import Sentence, distinct_sentences
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, random_prosody, speak
from blsp.params import Miniature

ENGLISH, GERMAN = "en", "de"
ESPEAK_LANGUAGES = {ENGLISH: "en-us", GERMAN: "de"}
LICENCE = "Apache-2.0"


def spoken_sentences(settings: Miniature, split: str, language: str = ENGLISH) -> list[tuple[Sentence, Prosody]]:
    """The sentences of one split, each with the voice, rate and pitch that speak it; the same every time.

    Those of both languages are the same requests, as far as there are as many of them.
    """
    german = language == GERMAN
    count = getattr(settings, f"german_{split}_utterances" if german else f"{split}_utterances")
    rng = random.Random(f"voices-{'german-' if german else ''}{split}-{settings.seed}")
    return [
        (sentence, random_prosody(split, rng))
        for sentence in distinct_sentences(split, settings.seed, count)  # type: ignore[arg-type]
    ]


def utterances(settings: Miniature) -> Iterator[Utterance]:
    """Every utterance of the miniature, split by split; its audio is made when it is asked for."""
    for split in SPLITS:
        for index, (sentence, prosody) in enumerate(spoken_sentences(settings, split)):
            yield _utterance(f"miniature-{split}-{index:05d}", split, ENGLISH, sentence, prosody)
    for index, (sentence, prosody) in enumerate(spoken_sentences(settings, "test", GERMAN)):
        yield _utterance(f"miniature-german-test-{index:05d}", "test", GERMAN, sentence, prosody)


def _utterance(utterance_id: str, split: str, language: str, sentence: Sentence, prosody: Prosody) -> Utterance:
    text, translation, answer = (
        (sentence.text_german, sentence.text, sentence.answer_german)
        if language == GERMAN
        else (sentence.text, sentence.translation, sentence.answer)
    )
    return Utterance(
        id=utterance_id,
        audio=partial(_waveform, text, language, prosody),
        text=text,
        speaker=prosody.voice,
        language=language,
        split=split,
        licence=LICENCE,
        translation=translation,
        intent=sentence.intent,
        answer=answer,
        source="miniature",
    )


def _waveform(text: str, language: str, prosody: Prosody) -> Waveform:
    return Waveform(speak(text, ESPEAK_LANGUAGES[language], prosody).samples, SAMPLING_RATE_HZ)
