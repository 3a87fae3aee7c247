"""The miniature's spoken corpus: distinct sentences, each spoken once by a random voice of its split."""

import random
from collections.abc import Iterator
from functools import partial

from blsp.data.records import SPLITS, Utterance, Waveform
from blsp.miniature.grammar import Sentence, distinct_sentences
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, random_prosody, speak
from blsp.params import Miniature

ESPEAK_LANGUAGE = "en-us"
LICENCE = "Apache-2.0"


def spoken_sentences(settings: Miniature, split: str) -> list[tuple[Sentence, Prosody]]:
    """The sentences of one split, each with the voice, rate and pitch that speak it; the same every time."""
    count = getattr(settings, f"{split}_utterances")
    rng = random.Random(f"voices-{split}-{settings.seed}")
    return [
        (sentence, random_prosody(split, rng))
        for sentence in distinct_sentences(split, settings.seed, count)  # type: ignore[arg-type]
    ]


def utterances(settings: Miniature) -> Iterator[Utterance]:
    """Every utterance of the miniature, split by split; its audio is made when it is asked for."""
    for split in SPLITS:
        for index, (sentence, prosody) in enumerate(spoken_sentences(settings, split)):
            yield Utterance(
                id=f"miniature-{split}-{index:05d}",
                audio=partial(_waveform, sentence.text, prosody),
                text=sentence.text,
                speaker=prosody.voice,
                language="en",
                split=split,
                licence=LICENCE,
                translation=sentence.translation,
                intent=sentence.intent,
                answer=sentence.answer,
                source="miniature",
            )


def _waveform(text: str, prosody: Prosody) -> Waveform:
    return Waveform(speak(text, ESPEAK_LANGUAGE, prosody).samples, SAMPLING_RATE_HZ)
