"""The rules on answers: what is dropped, for which reason, and what must not be."""

import pytest

from blsp.continuation.quality import check, repeated_tokens
from blsp.data.records import Unusable
from blsp.model.decoding import Answer
from blsp.params import Behaviour, load_params
from tests.trained import PARAMS

LIMITS = load_params(PARAMS).continuations.quality


def reason(text, spoken="play some jazz in the attic", spoken_in="en", finish="stop", tokens=(), **behaviour):
    """What the answer is dropped for; None where it is kept."""
    asked = {"instructions": ["Go on."], "share": 1.0, "answer": "new", "language": "transcript"}
    try:
        answer = Answer(list(tokens) or list(range(9)), text, finish)
        check(answer, spoken, spoken_in, Behaviour(**asked | behaviour), LIMITS, "whisper")
    except Unusable as fault:
        return fault.reason
    return None


@pytest.mark.parametrize("text", ["", " \n ", "...", "?!", "😀"])
@pytest.mark.parametrize("answer", ["new", "copy", "any"])
def test_an_answer_without_words_is_empty(text, answer):
    assert reason(text, answer=answer) == "empty"


@pytest.mark.parametrize(
    "text",
    [
        "As an AI language model, I do not listen to music.",
        "I'm sorry, but I can't help with that.",
        "I\u2019m sorry, but I cannot continue this text.",
        "I apologize, but I am not able to fulfill this request.",
        "I cannot assist with that request.",
        "Sure! Please provide the text you would like me to continue.",
        "Als KI habe ich keine Meinung dazu.",
        "En tant qu'IA, je ne peux pas écouter de la musique.",
        "Como modelo de lenguaje, no puedo escuchar música.",
        "作为一个人工智能语言模型,我无法听音乐。",
        "抱歉,我无法回答这个问题。",
        "I'm sorry for your loss, but as a chatbot, I cannot feel.",
        "I'm just an AI, so I have no plans for tonight.",
        "I'm sorry, I can't help you with that.",
        "I can't answer that question.",
        "I am unable to provide such content.",
        "Could you please provide more context so that I can help you?",
        "Please provide the sentence.",
        "I'm sorry, but I won't write this story.",
    ],
)
def test_a_refusal_is_dropped(text):
    assert reason(text, spoken_in=None) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't come tomorrow, she said, and closed the door.",
        "The model was as helpful as an assistant could be.",
        "He was afraid that the band would not play, and he could not help laughing.",
        "Please send my regards to your mother.",
        "Please send me a text when you arrive.",
        "Could you please give me more information about the trains to Leeds?",
        "I'm sorry, I can't answer the phone now.",
        "I can't help it, I love chocolate.",
        "He works as an AI engineer in Berlin.",
        "I'm sorry, I can't help you with the dishes tonight.",
        "I'm an AI engineer, and I like it.",
        "I can't write with my left hand.",
        "She was hired as a virtual assistant by a small firm.",
        "Please share the details of your flight with my wife.",
        "I'm afraid I can't complete the marathon this year.",
        "I can't provide for a family of five.",
        "Please give the sentence another look, he told the judge.",
        "Ai was a song that everybody knew.",
    ],
)
def test_what_a_story_says_is_no_refusal(text):
    assert reason(text) is None


def test_what_is_said_three_times_in_a_row_and_more_is_a_loop():
    assert repeated_tokens([1, 2, 3] * 5) == 12
    assert repeated_tokens([9, 8, *[1, 2, 3] * 5, 7]) == 12, "wherever it stands"
    assert repeated_tokens([4] * 12) == 11
    assert repeated_tokens(list(range(20)) * 2) == 0, "twice may be meant so"
    assert repeated_tokens([5, 5, 5]) == 2
    assert repeated_tokens([]) == 0 and repeated_tokens([1]) == 0
    assert reason("la la la", tokens=[7, 7, 7, 2]) is None, "so little of it is speech"
    assert reason("and on and on and on and on and on", tokens=[3, 4] * 6) == "loop"
    assert reason("no " * 12, "no " * 12, tokens=[7] * 12, answer="copy") is None, "so it was said"


@pytest.mark.parametrize(
    "text", ["Play some jazz in the attic.", "play some jazz in the attic", "Play some jazz in the attics!"]
)
def test_a_copy_is_dropped_where_it_is_not_wanted_and_all_else_where_it_is(text):
    assert reason(text) == "copy"
    assert reason(text, answer="any") is None
    assert reason(text, answer="copy") is None
    assert reason("Play some rock in the kitchen.", answer="copy") == "not_a_copy"
    assert reason("Play some rock in the kitchen.") is None


def test_copies_are_compared_as_they_are_scored():
    assert reason("Lisa got the boots.", "lisa got the boots", answer="copy") is None
    assert reason("I am twenty, and it is 7 o'clock.", "I'm 20 and it's seven o'clock", answer="copy") is None
    assert reason("I am twenty, and it is 7 o'clock.", "I'm 20 and it's seven o'clock") == "copy"
    assert reason("लड़की घर गयी", "लड़का घर गया", "hi", answer="copy") == "not_a_copy"


def test_an_answer_that_was_cut_is_a_copy_of_what_it_had_room_for():
    assert reason("Play some jazz", finish="length", answer="copy") is None
    assert reason("Play some jazz", finish="stop", answer="copy") == "not_a_copy"
    assert reason("Play some jazz", finish="length") == "copy"


def test_another_language_is_dropped_where_one_is_asked_for():
    german = "Die Musik spielt schon im Dachgeschoss, und alle tanzen dazu."
    english = "The music is playing in the attic, and everybody dances to it."
    assert reason(german) == "wrong_language"
    assert reason(german, spoken_in="en-GB") == "wrong_language"
    assert reason(german, spoken_in="de") is None and reason(german, spoken_in=None) is None
    assert reason(german, spoken_in="Klingon") is None, "what it must be is not known"
    assert reason(german, answer="any", language="de") is None
    assert reason(english, answer="any", language="de") == "wrong_language"
    assert reason(german, language=None) is None
    assert reason("Paris!") is None, "too little to tell"
