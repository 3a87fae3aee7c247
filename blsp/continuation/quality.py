"""Whether what the LLM wrote is fit to learn from: rules on an answer, each with the reason it is counted under."""

import functools
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from blsp.data.records import Unusable
from blsp.data.text import Setting, sentence_keys
from blsp.languages import primary
from blsp.model.decoding import Answer
from blsp.params import AnswerQuality, Behaviour

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SAYINGS = 3  # what is said twice may be meant so

# What chat LLMs say when they do not do as they are asked. What people say must not match ("I'm sorry, I can't answer
# the phone now"; "he works as an AI engineer"): the LLM speaks of itself as a machine, cannot do "that" or "this
# request", or asks for the text that it was to be given.
_TASK = (
    r"(?:assist|help|continu|fulfil|comply|complet|provid|creat|generat|writ|engag|respond|answer|repeat|translat)\w*"
)
_CANNOT = "can ?not|can't|unable to|not able to|won't"
_MACHINE = r"(?:ai|artificial intelligence|(?:large )?language model|virtual assistant|chat ?bot)"
_ITS_KIND = r"(?: (?:language model|model|assistant|chatbot|system|program))?"
_THE_TASK = (
    r"(?: (?:you|with|to|in|on))*"
    r"(?: (?:that|this)(?=[.!,;]|$)| (?:that|this|these|those|such|your|the|any)(?: \w+){0,2}?"
    r" (?:requests?|texts?|prompts?|sentences?|stor(?:y|ies)|tasks?|instructions?|content|topics?|statements?|"
    r"conversations?|queries|query|questions?)\b)"
)
_TEXT = "text|sentence|passage|prompt|context"
_REFUSALS = re.compile(
    "|".join(
        (
            rf"\bas an? {_MACHINE}{_ITS_KIND}\b,? (?:i|my|it's|it is)\b",
            rf"\bi(?:'m| am)(?: \w+)? an? {_MACHINE}{_ITS_KIND}"
            r"(?=[.,;!]| and | so | without | designed| trained| created|$)",
            rf"\b(?:sorry|afraid|apologi[sz]e)\b[^.!?]{{0,40}}\b(?:{_CANNOT}) {_TASK}{_THE_TASK}",
            rf"^i(?:'m| am)? (?:{_CANNOT}) {_TASK}{_THE_TASK}",
            rf"\bplease (?:provide|give|share|send)\b[^.!?]{{0,30}}\b(?:{_TEXT})(?=[.!?]|$)",
            rf"\bplease (?:provide|give|share|send)\b[^.!?]{{0,30}}\b(?:{_TEXT}|information|details)\b[^.!?]{{0,30}}"
            r"\b(?:(?:you(?:'d| would)? (?:like|want|wish)(?: me)?|you need(?: me)?)\b|so (?:that )?i can)",
            r"\bals (?:eine? )?(?:ki|künstliche intelligenz|sprachmodell|ki-(?:sprach)?modell|ki-assistent)\b"
            r"(?: \w+)? ich\b",
            r"\ben tant (?:que |qu')(?:ia|intelligence artificielle|modèle de langage|assistant)\b"
            r"[^.,]{0,20}, (?:je|j')",
            r"\bcomo (?:una? )?(?:ia|inteligencia artificial|modelo de lenguaje)\b[^.,]{0,20}, (?:no|yo|soy|mi)\b",
            r"作为(?:一个|一名|一款)?(?:人工智能|ai|大?语言模型)(?:语言模型|模型|助手|助理)?[,,]?我",
            r"(?:抱歉|对不起)[^。!?]{0,12}(?:无法|不能)[^。!?]{0,6}(?:回答|提供|继续|帮助|协助|翻译|完成|满足|生成|续写)",
        )
    ),
    re.IGNORECASE,
)


def check(
    answer: Answer,
    transcript: str,
    transcript_language: str | None,
    behaviour: Behaviour,
    limits: AnswerQuality,
    normalizer: Setting,
) -> None:
    """Raise Unusable: empty; not_a_copy, where one is wanted; otherwise refusal, loop, copy, wrong_language.

    Copies are found as they are scored, by corpus.normalizer. The language is judged where it is known what it must be.
    """

    def differs() -> float:
        return distance(answer, transcript, transcript_language, normalizer)

    if not any(character.isalnum() for character in answer.text):
        raise Unusable("empty", f"{answer.text!r} has no words")
    if behaviour.answer == "copy":
        if (found := differs()) > limits.copy_distance:
            raise Unusable("not_a_copy", f"{answer.text!r} differs by {found:.0%} from {transcript!r}")
        return
    if said := _REFUSALS.search(answer.text.replace("\u2019", "'")):
        raise Unusable("refusal", f"{said[0]!r} in {answer.text!r}")
    if (run := repeated_tokens(answer.token_ids)) > limits.max_repeated_tokens:
        raise Unusable("loop", f"{run} tokens only say again what came before, in {answer.text!r}")
    if behaviour.answer == "new" and differs() <= limits.copy_distance:
        raise Unusable("copy", f"{answer.text!r} is its transcript")
    _check_language(answer.text, transcript_language, behaviour, limits)


def distance(answer: Answer, transcript: str, language: str | None, normalizer: Setting) -> float:
    """The share of the transcript's characters that must be changed to make the answer of it; case and marks aside.

    Both are compared as written and as scored ("I'm 20", "I am twenty"), and the smaller share counts. An answer that
    was cut is compared with as much of its transcript.
    """
    from rapidfuzz.distance import Levenshtein

    shares = []
    keys = (sentence_keys(text, language, normalizer) for text in (transcript, answer.text))
    for expected, found in zip(*((own[0], own[-1]) for own in keys), strict=True):
        if answer.finish_reason == "length":
            expected = expected[: len(found)]
        shares.append(Levenshtein.distance(expected, found) / max(len(expected), 1))
    return min(shares)


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
