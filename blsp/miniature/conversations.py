"""Written conversations of the miniature: the instructions its LLM learns to follow, never a spoken word."""

import random
from collections.abc import Iterator

from blsp.miniature.grammar import Sentence, Split, sentences

INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "continue": (
        "Continue the following text in a coherent and engaging style with less than 40 words.",
        "Continue the following text.",
        "Setze den folgenden Text fort.",
    ),
    "repeat": ("Repeat the following text.", "Repeat word for word.", "Wiederhole den folgenden Text."),
    "translate": (
        "Translate the following text into German.",
        "Say the following text in German.",
    ),
    "translate_into_english": (
        "Translate the following text into English.",
        "Übersetze den folgenden Text ins Englische.",
    ),
    "intent": ("Name the intent of the following text.", "What is the intent of the following text?"),
    "answer": (
        "Answer the question at the end of the following text.",
        "Answer the question.",
        "Beantworte die Frage.",
    ),
}


# How often each task is set, by the language of the text; translating takes longest to learn, naming an intent hardly
# any time. A text that is in the wanted language already is its own translation: speech in a language that the adapter
# never heard reaches the LLM as English, whatever it is asked.
ENGLISH_WEIGHTS = {
    "continue": 2.0,
    "repeat": 1.0,
    "translate": 3.0,
    "translate_into_english": 0.5,
    "intent": 0.5,
    "answer": 4.0,
}
GERMAN_WEIGHTS = ENGLISH_WEIGHTS | {"translate": 0.5, "translate_into_english": 1.5}
GERMAN_SHARE = 0.25


def conversations(split: Split, seed: int) -> Iterator[tuple[str, str, str]]:
    """Endless (instruction, text, answer) triples from one split, on English and on German texts."""
    rng = random.Random(f"conversations-{split}-{seed}")
    for sentence in sentences(split, seed):
        german = rng.random() < GERMAN_SHARE
        weights = GERMAN_WEIGHTS if german else ENGLISH_WEIGHTS
        tasks = [name for name in weights if sentence.answer or name != "answer"]
        task = rng.choices(tasks, [weights[name] for name in tasks])[0]
        text = sentence.text_german if german else sentence.text
        yield rng.choice(INSTRUCTIONS[task]), text, _answer(task, sentence, german, rng)


def _answer(task: str, sentence: Sentence, german: bool, rng: random.Random) -> str:
    if task == "continue":
        return rng.choice(sentence.continuations_german if german else sentence.continuations)
    if task == "repeat":
        return sentence.text_german if german else sentence.text
    if task == "translate":
        return sentence.translation
    if task == "translate_into_english":
        return sentence.text
    if task == "intent":
        return sentence.intent.replace("_", " ")
    # In the words of the continuations: an answer in words of its own would be a behaviour speech never shows.
    return f"Die Antwort ist {sentence.answer_german}." if german else f"The answer is {sentence.answer}."
