"""Transcripts: as they are written, which is what the LLM reads, and as they are compared, after a normaliser."""

import functools
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Literal, NamedTuple

import regex

from blsp.data.records import Unusable, quoted
from blsp.languages import primary
from blsp.plain_text import count_taken_apart

Setting = Literal["whisper", "whisper_english", "whisper_basic", "none"]
Normalizer = Literal["whisper_english", "whisper_basic", "none"]
Case = Literal["as_written", "lower"]

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
# Entities with their semicolon alone: "AT&T" and "Q&A" are none.
_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[\da-f]{1,6}|[a-z]\w{1,31});", re.IGNORECASE)

DIGIT_CHARS = 4
"""Characters that a digit stands for when it is spoken: "three", "zwei"."""

_PRONOUN = re.compile(r"\bi(?=$|[^\w'\u2019.-]|[.](?!\w)|['\u2019](?:m|d|ll|ve)\b)")
_BEGINNING = re.compile(r"^[^\w]*\w|(?<=[.!?] )\w")
_CLOSED = re.compile(r"[.!?\u2026,;:\u2013\u2014-][\"')\]}\u00bb\u201d\u2019]*$")
_AUXILIARY = (
    "is|are|am|was|were|do|does|did|can|could|will|would|shall|should|may|might|must|have|has|had|isn't|aren't|wasn't|"
    "weren't|don't|doesn't|didn't|can't|couldn't|won't|wouldn't|shouldn't|haven't|hasn't|hadn't"
)
_SUBJECT = (
    "i|you|he|she|it|we|they|there|this|that|these|those|the|a|an|any|my|your|his|her|our|their|anyone|anybody|"
    "anything|someone|somebody|something|everyone|everybody|everything"
)
_QUESTION = re.compile(
    rf"(?:{_AUXILIARY}) (?:{_SUBJECT})\b"
    rf"|(?:who|whom|whose|what|which|where|when|why|how)"
    rf"(?:'s|'re|'d|'ll|(?! (?:i|you|he|she|it|we|they)\b)(?: [\w']+){{0,2}}? (?:{_AUXILIARY}))\b",
    re.IGNORECASE,
)

_KEY = regex.compile(r"(?:(?<![\p{L}\p{M}\p{N}])[-\u2212](?=\p{N}))?[\p{L}\p{M}\p{N}]+|[\p{Sc}+=<>%]|(?<=\p{L})\#")
# They shape letters, or allow a hyphen, and are not typed by everybody.
_JOINERS = re.compile(r"[\u00ad\u200c\u200d]")
# Whisper's normaliser drops what stands in them.
_BRACKETS = re.compile(r"[\[\](){}<>]")


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


class Written(NamedTuple):
    """A transcript as the LLM reads it, and how often each thing was cleaned: CLEANED says of what."""

    text: str
    cleaned: "Counter[str]"


CLEANED = ("html_entities", "control_tokens", "noise_tags", "punctuation_tags")


def as_written(text: str, language: str | None = None, case: Case = "as_written") -> Written:
    """The transcript as it is packed: case, punctuation, digits, brackets and script are the corpus's own.

    HTML entities are resolved, punctuation tags written out, noise tags taken away, control tokens of LLMs taken
    apart; then Unicode's NFC and single spaces. Under `case` "lower" it gets sentence case (`sentence_case`).
    Raises Unusable where no word is left: `noise_only` where there were noise tags, otherwise `empty_text`; where
    letters were lost before, `not_utf8`; beyond LONGEST, `text_too_long`.
    """
    if len(text) > LONGEST:
        raise Unusable("text_too_long", f"{len(text)} characters, more than {LONGEST}: {quoted(text)}")
    entities = sum(html.unescape(entity) != entity for entity in _ENTITY.findall(text))
    spoken = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    if "\ufffd" in spoken:
        raise Unusable("not_utf8", f"{quoted(text)}: U+FFFD stands for letters that were lost")
    spoken, noises = _NOISE_TAG.subn(" ", _CONTROL.sub(" ", spoken))
    spoken, marks = _PUNCTUATION_TAG.subn(lambda tag: _PUNCTUATION[tag[1].upper()], spoken)
    spoken, tokens = count_taken_apart(spoken)
    spoken = " ".join(unicodedata.normalize("NFC", spoken).split())
    if not any(character.isalnum() for character in spoken):
        raise Unusable("noise_only" if noises else "empty_text", f"{quoted(text)} has no words")
    counts = +Counter(dict(zip(CLEANED, (entities, tokens, noises, marks), strict=True)))
    return Written(sentence_case(spoken, language) if case == "lower" else spoken, counts)


def sentence_case(text: str, language: str | None) -> str:
    """The text as one writes a sentence: lower case, a capital at the beginning and a mark at the end.

    A capital follows . ! ? too. The mark is a full stop; in English a question mark where it begins as a question
    does ("what is", "did you"), and the pronoun I is a capital with its contractions. Names and German nouns stay in
    lower case: nobody knows them any more. Scripts without capitals stay as they are.
    """
    if text.upper() == text.lower():
        return text
    english = primary(language) == "en"
    text = text.lower()
    if english:
        text = _PRONOUN.sub("I", text)
    text = _BEGINNING.sub(lambda letter: letter[0].upper(), text)
    if not _CLOSED.search(text):
        text += "?" if english and _QUESTION.match(text) else "."
    return text


def chars_per_s(text: str, duration_s: float) -> float:
    """How fast the text was spoken: a digit counts as the word that is said for it, infinite where nothing lasts."""
    spoken = len(text) + (DIGIT_CHARS - 1) * sum(character.isdigit() for character in text)
    return spoken / duration_s if duration_s else float("inf")


# Corpora have many a text more than once, and Whisper's English normaliser takes 0.3 ms.
@functools.lru_cache(maxsize=65_536)
def plain_words(text: str, normalizer: Normalizer) -> str:
    """The text after `normalizer`, words separated by single spaces; possibly empty.

    `whisper_english` and `whisper_basic` are Whisper's own (lower case, no punctuation; the English one also
    spells out contractions and writes numbers in digits); `none` only joins runs of white space. For scoring, keys and
    comparisons: never for what an LLM reads.
    """
    return " ".join(_function(normalizer)(unicodedata.normalize("NFC", text)).split())


def sentence_key(text: str) -> str:
    """What two texts share when they are the same sentence, case and punctuation aside, in any script.

    Letters with their marks, digits, and signs that are read: a minus before a digit, + = < > %, currencies, and #
    after a letter. Of a text that has none of these, all of it.
    """
    text = _JOINERS.sub("", text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(_KEY.findall(text)).replace("\u2212", "-") or " ".join(text.split())


def sentence_keys(text: str, language: str | None, setting: Setting) -> tuple[str, ...]:
    """The keys of a sentence: as written and, where that leaves words, as scored. Equal sentences share one.

    So "I'm 20" is "I am twenty" under Whisper's English normaliser. What stands in brackets counts here.
    """
    scored = plain_words(_BRACKETS.sub(" ", text), normalizer_of(language, setting))
    return tuple(dict.fromkeys(sentence_key(words) for words in (text, scored) if words))


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
