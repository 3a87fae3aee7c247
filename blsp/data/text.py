"""How transcripts are written: tags resolved, then one normaliser."""

import functools
import re
from collections.abc import Callable
from typing import Literal

from blsp.data.records import Unusable

Normalizer = Literal["whisper_english", "whisper_basic", "none"]

# Spoken punctuation as GigaSpeech writes it.
_PUNCTUATION = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
_PUNCTUATION_TAG = re.compile(rf"\s*<({'|'.join(_PUNCTUATION)})>", re.IGNORECASE)

# What corpora put where nothing was said: GigaSpeech <SIL>, TED-LIUM <unk> and {NOISE}, Kaldi [noise],
# captions (applause). Only these words, since brackets also hold words that were spoken.
_NOISES = (
    "noise|vocalized[-_ ]noise|background[-_ ]noise|sil|silence|music|other|unk|spn|nsn|cough|coughing|"
    "breath|breathing|laughter|laughing|applause|inaudible|unintelligible|crosstalk"
)
_NOISE_TAG = re.compile(
    "|".join(rf"{re.escape(left)}(?:{_NOISES}){re.escape(right)}" for left, right in ("<>", "[]", "()", "{}")),
    re.IGNORECASE,
)


# Corpora have many a text more than once, and Whisper's English normaliser takes 0.3 ms.
@functools.lru_cache(maxsize=65_536)
def normalise(text: str, normalizer: Normalizer) -> str:
    """The transcript as it is packed: punctuation tags written out, noise tags taken away, then `normalizer`.

    `whisper_english` and `whisper_basic` are Whisper's own (lower case, no punctuation; the English one also
    spells out contractions and writes numbers in digits); `none` only joins runs of white space.
    Raises Unusable where no word is left: `noise_only` where there were noise tags, otherwise `empty_text`.
    """
    spoken, noises = _NOISE_TAG.subn(" ", text)
    spoken = plain_words(_PUNCTUATION_TAG.sub(lambda tag: _PUNCTUATION[tag[1].upper()], spoken), normalizer)
    if not any(character.isalnum() for character in spoken):
        raise Unusable("noise_only" if noises else "empty_text", f"{text!r} has no words")
    return spoken


def plain_words(text: str, normalizer: Normalizer) -> str:
    """The text after `normalizer`, words separated by single spaces; possibly empty."""
    return " ".join(_function(normalizer)(text).split())


def sentence_key(text: str) -> str:
    """What two texts share when they are the same sentence: letters and digits, case and marks aside."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))


@functools.cache
def _function(normalizer: Normalizer) -> Callable[[str], str]:
    if normalizer == "none":
        return str
    if normalizer == "whisper_english":
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer()
    from whisper_normalizer.basic import BasicTextNormalizer

    return BasicTextNormalizer()
