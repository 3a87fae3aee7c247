"""Whether what the LLM wrote is fit to learn from: rules on an answer, each with the reason it is counted under."""

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from blsp.data.records import Unusable
from blsp.data.text import sentence_key
from blsp.languages import primary
from blsp.model.decoding import Answer
from blsp.params import AnswerQuality, Behaviour

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SAYINGS = 3  # what is said twice may be meant so

# What chat LLMs say when they do not do as they are asked. Words of a story must not match ("I'm sorry, but I can't
# come tomorrow"): each speaks of being a machine, of the task, or asks for the text.
_TASK = "assist|help|continu|fulfil|comply|complet|provid|creat|generat|writ|engag|respond|answer|repeat|translat"
_CANNOT = "can ?not|can't|unable|not able"
_SENT = "text|sentence|context|information|details|prompt"
_REFUSALS = re.compile(
    "|".join(
        (
            r"\bas an? (?:ai|artificial intelligence|large language model|language model|virtual assistant)\b",
            rf"\b(?:sorry|afraid|apologi[sz]e)\b[^.!?]{{0,40}}\b(?:{_CANNOT})\b[^.!?]{{0,30}}\b(?:{_TASK})",
            rf"^i (?:can ?not|can't|am unable to|am not able to|'m unable to|'m not able to|won't) (?:{_TASK})",
            rf"\bplease (?:provide|give|share|send)\b[^.!?]{{0,30}}\b(?:{_SENT})\b",
            r"\bals (?:ki|künstliche intelligenz|sprachmodell|ki-\w+)\b",
            r"\ben tant (?:que |qu')(?:ia|intelligence artificielle|modèle de langage|assistant)",
            r"\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje)\b",
            r"作为(?:一个|一名|一款)?(?:人工智能|ai|语言模型)",
            r"(?:抱歉|对不起)[^。!?]{0,12}(?:无法|不能)",
        )
    ),
    re.IGNORECASE,
)


def check(
    answer: Answer, transcript: str, transcript_language: str | None, behaviour: Behaviour, limits: AnswerQuality
) -> None:
    """Nothing. Raises Unusable: empty; not_a_copy, where one is wanted; otherwise refusal, loop, copy, wrong_language.

    The language is judged where it is known what it must be.
    """
    if not any(character.isalnum() for character in answer.text):
        raise Unusable("empty", f"{answer.text!r} has no words")
    if behaviour.answer == "copy":
        if (found := distance(answer, transcript)) > limits.copy_distance:
            raise Unusable("not_a_copy", f"{answer.text!r} differs by {found:.0%} from {transcript!r}")
        return
    if said := _REFUSALS.search(answer.text.replace("\u2019", "'")):
        raise Unusable("refusal", f"{said[0]!r} in {answer.text!r}")
    if (run := repeated_tokens(answer.token_ids)) > limits.max_repeated_tokens:
        raise Unusable("loop", f"{run} tokens only say again what came before, in {answer.text!r}")
    if behaviour.answer == "new" and distance(answer, transcript) <= limits.copy_distance:
        raise Unusable("copy", f"{answer.text!r} is its transcript")
    _check_language(answer.text, transcript_language, behaviour, limits)


def distance(answer: Answer, transcript: str) -> float:
    """The share of the transcript's characters that must be changed to make the answer of it; case and marks aside.

    An answer that was cut is compared with as much of its transcript.
    """
    from rapidfuzz.distance import Levenshtein

    expected, found = sentence_key(transcript), sentence_key(answer.text)
    if answer.finish_reason == "length":
        expected = expected[: len(found)]
    return Levenshtein.distance(expected, found) / max(len(expected), 1)


def repeated_tokens(token_ids: Sequence[int]) -> int:
    """How many tokens the longest loop adds to what it says first; 0 where nothing is said three times in a row."""
    ids = np.array(token_ids)
    longest = 0
    for period in range(1, len(ids) // SAYINGS + 1):
        breaks = np.flatnonzero(ids[period:] != ids[:-period])
        run = int(np.diff(breaks, prepend=-1, append=len(ids) - period).max()) - 1
        if run >= (SAYINGS - 1) * period:
            longest = max(longest, run)
    return longest


def _check_language(text: str, transcript_language: str | None, behaviour: Behaviour, limits: AnswerQuality) -> None:
    wanted = transcript_language if behaviour.language == "transcript" else behaviour.language
    wanted = primary(wanted)
    identifier = _identifier()
    if wanted not in identifier.labels:
        return
    found, confidence = identifier.classify(text)
    if found != wanted and confidence > limits.language_confidence:
        raise Unusable("wrong_language", f"{found}, not {wanted} (confidence {confidence:.2f}): {text!r}")


@functools.cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
