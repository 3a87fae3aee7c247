"""Seeded sentences of the miniature, split so that what is tested was never read or heard in training."""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from blsp.miniature.associations import ASSOCIATIONS
from blsp.miniature.lexicon import CARRIERS, INTENTS, QUESTIONS, SLOTS

Split = Literal["train", "dev", "test"]
TEST_PERCENT = 12
DEV_PERCENT = 6
QUESTION_SHARE = 0.45
THOUGHT = "That makes me think of {}."


@dataclass(frozen=True)
class Sentence:
    """A request, in English and German, with what a listener should make of it.

    `question` is the slot asked about at the end of the sentence (None: nothing is asked), `answer` its value.
    """

    text: str
    translation: str
    intent: str
    answer: str | None
    answer_german: str | None
    continuations: tuple[str, ...]
    continuations_german: tuple[str, ...]

    @property
    def text_german(self) -> str:
        """The German as it is spoken and read: `translation` as the corpus's normaliser leaves it."""
        return self.translation.lower()


def split_of(intent: str, values: dict[str, str]) -> Split:
    """The split a request belongs to, decided by its intent and slot values alone.

    Every wording, question and translation of one request is in the same split, so a test request is new to
    the LLM, the speech model and the adapter in any form.
    """
    key = "|".join([intent, *(f"{slot}={values[slot]}" for slot in sorted(values))])
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "dev" if bucket < TEST_PERCENT + DEV_PERCENT else "train"


def sentences(split: Split, seed: int) -> Iterator[Sentence]:
    """Endless random sentences of one split, intents in equal shares; the same seed gives the same sentences."""
    rng = random.Random(f"{split}-{seed}")
    names = sorted(INTENTS)
    while True:
        intent = rng.choice(names)
        slots = re.findall(r"{(\w+)}", INTENTS[intent].english)
        values = {slot: rng.choice(sorted(SLOTS[slot])) for slot in slots}
        if split_of(intent, values) == split:
            asked = rng.choice(slots) if rng.random() < QUESTION_SHARE else None
            yield compose(intent, values, rng.randrange(len(CARRIERS)), asked)


def distinct_sentences(split: Split, seed: int, count: int) -> list[Sentence]:
    """`count` sentences of one split, no two with the same text. Raises ValueError where the grammar has too few."""
    found: dict[str, Sentence] = {}
    known_in_a_row = 0
    for sentence in sentences(split, seed):
        known_in_a_row = known_in_a_row + 1 if sentence.text in found else 0
        found.setdefault(sentence.text, sentence)
        if len(found) == count:
            return list(found.values())
        if known_in_a_row == 1000:
            break
    raise ValueError(f"the grammar gave {len(found)} distinct {split} sentences, {count} were asked for")


def compose(intent: str, values: dict[str, str], carrier_index: int, asked: str | None) -> Sentence:
    """The sentence with these slot values, this carrier and, where `asked` names a slot, a question at its end."""
    wording, carrier = INTENTS[intent], CARRIERS[carrier_index]
    german = {slot: SLOTS[slot][value] for slot, value in values.items()}
    frames = {"imperative": wording.imperative, "infinitive": wording.infinitive}
    text = carrier.english + wording.english.format(**values)
    translation = carrier.german.format(**frames).format(**german)
    opening = opening_german = ""
    if asked:
        text, translation = f"{text} {QUESTIONS[asked][0]}", f"{translation} {QUESTIONS[asked][1]}"
        opening, opening_german = f"The answer is {values[asked]}. ", f"Die Antwort ist {german[asked]}. "
    return Sentence(
        text=text,
        translation=translation,
        intent=intent,
        answer=values[asked] if asked else None,
        answer_german=german[asked] if asked else None,
        continuations=tuple(
            f"{opening}{carrier.answer_english} {line.format(**values)} {THOUGHT.format(ASSOCIATIONS[slot][value])}"
            for line in wording.continuations_english
            for slot, value in values.items()
        ),
        continuations_german=tuple(
            f"{opening_german}{carrier.answer_german} {_capital(line.format(**german))}"
            for line in wording.continuations_german
        ),
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
