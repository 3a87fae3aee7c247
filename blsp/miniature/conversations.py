"""Written conversations of the miniature: the instructions its LLM learns to follow, never a spoken word."""

import random
from collections.abc import Iterator

from blsp.miniature.grammar import Sentence, Split, sentences

SHUFFLED_SHARE = 0.2  # of random words to repeat: nothing to guess from, so copying is learned early
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


def conversations(split: Split, seed: int) -> Iterator[tuple[str, str, str]]:
    """Endless (instruction, text, answer) triples from one split: English texts twice as often as German."""
    rng = random.Random(f"conversations-{split}-{seed}")
    words = sorted(
        {
            word
            for _, sentence in zip(range(2000), sentences(split, seed), strict=False)
            for word in f"{sentence.text} {sentence.translation}".split()
        }
    )
    for sentence in sentences(split, seed):
        if rng.random() < SHUFFLED_SHARE:
            text = " ".join(rng.choices(words, k=rng.randint(2, 10)))
            yield rng.choice(INSTRUCTIONS["repeat"]), text, text
            continue
        german = rng.random() < 1 / 3
        task = rng.choice(_tasks(sentence, german))
        text = sentence.translation if german else sentence.text
        yield rng.choice(INSTRUCTIONS[task]), text, _answer(task, sentence, german, rng)


def _tasks(sentence: Sentence, german: bool) -> list[str]:
    tasks = ["continue", "continue", "repeat", "translate_into_english" if german else "translate", "intent"]
    return [*tasks, "answer", "answer"] if sentence.answer else tasks


def _answer(task: str, sentence: Sentence, german: bool, rng: random.Random) -> str:
    if task == "continue":
        return rng.choice(sentence.continuations_german if german else sentence.continuations)
    if task == "repeat":
        return sentence.translation if german else sentence.text
    if task == "translate":
        return sentence.translation
    if task == "translate_into_english":
        return sentence.text
    if task == "intent":
        return sentence.intent.replace("_", " ")
    answer = sentence.answer_german if german else sentence.answer
    assert answer is not None
    return answer
