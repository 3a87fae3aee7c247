"""How transcripts are written: tags resolved, then one normaliser."""

import functools
import re
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Literal

from blsp.data.records import Unusable, quoted
from blsp.languages import primary

Setting = Literal["whisper", "whisper_english", "whisper_basic", "none"]
Normalizer = Literal["whisper_english", "whisper_basic", "none"]

LONGEST = 100_000  # characters; nobody says so many in one utterance

# Spoken punctuation as GigaSpeech writes it.
_PUNCTUATION = {"COMMA": ",", "PERIOD": ".", "QUESTIONMARK": "?", "EXCLAMATIONPOINT": "!"}
_PUNCTUATION_TAG = re.compile(rf"\s*<({'|'.join(_PUNCTUATION)})>", re.IGNORECASE)

# What corpora put where nothing was said: GigaSpeech <SIL>, TED-LIUM <unk> and {NOISE}, Kaldi [noise],
# captions (applause). Only these words, since brackets also hold words that were spoken.
_NOISES = (
    "noise|vocalized[-_ ]noise|background[-_ ]noise|spoken[-_ ]noise|sil|silence|music|other|unk|spn|nsn|cough|"
    "coughing|breath|breathing|sigh|sneeze|smack|lipsmack|laughter|laughing|laughs|cheers|cheering|applause|"
    "inaudible|unintelligible|crosstalk"
)
_NOISE_TAG = re.compile(
    "|".join(rf"{re.escape(left)}(?:{_NOISES}){re.escape(right)}" for left, right in ("<>", "[]", "()", "{}")),
    re.IGNORECASE,
)
# Left by broken tools, and no part of a sentence; the last is a byte order mark.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufeff]")


def normalizer_of(language: str | None, setting: Setting) -> Normalizer:
    """The normaliser of a row: under `whisper` the English one where the row says so, else the one for any language.

    The English one would spoil another language ("im" would become "i am"); the other leaves English readable.
    """
    if setting != "whisper":
        return setting
    return "whisper_english" if primary(language) == "en" else "whisper_basic"


def normalizer_of_all(languages: Iterable[str | None], setting: Setting) -> Normalizer:
    """The normaliser that rows of these languages share; `whisper_basic` where they have several."""
    found = {normalizer_of(language, setting) for language in languages}
    return found.pop() if len(found) == 1 else "whisper_basic"


def normalizer_version(normalizer: Normalizer) -> str:
    """The package that writes so, and its version."""
    return "blsp" if normalizer == "none" else f"whisper-normalizer {version('whisper-normalizer')}"


# Corpora have many a text more than once, and Whisper's English normaliser takes 0.3 ms.
@functools.lru_cache(maxsize=65_536)
def normalise(text: str, normalizer: Normalizer) -> str:
    """The transcript as it is packed: punctuation tags written out, noise tags taken away, then `normalizer`.

    `whisper_english` and `whisper_basic` are Whisper's own (lower case, no punctuation; the English one also
    spells out contractions and writes numbers in digits); `none` only joins runs of white space.
    Raises Unusable where no word is left: `noise_only` where there were noise tags, otherwise `empty_text`; where
    letters were lost before, `not_utf8`; beyond LONGEST, `text_too_long`.
    """
    if len(text) > LONGEST:
        raise Unusable("text_too_long", f"{len(text)} characters, more than {LONGEST}: {quoted(text)}")
    if "\ufffd" in text:
        raise Unusable("not_utf8", f"{quoted(text)}: U+FFFD stands for letters that were lost")
    spoken, noises = _NOISE_TAG.subn(" ", _CONTROL.sub(" ", text))
    spoken = plain_words(_PUNCTUATION_TAG.sub(lambda tag: _PUNCTUATION[tag[1].upper()], spoken), normalizer)
    if not any(character.isalnum() for character in spoken):
        raise Unusable("noise_only" if noises else "empty_text", f"{quoted(text)} has no words")
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

    # Whisper's own takes combining marks for signs: of Hindi's vowels and Thai's tones nothing would be left.
    return BasicTextNormalizer(preserve_marks=True)
