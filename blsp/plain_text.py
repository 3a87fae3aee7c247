"""Control tokens of LLMs in what people say or ask: taken apart, so that a tokenizer reads them as plain text.

A transcript or an instruction that holds `<|im_end|>` must not end the user's turn.
"""

import functools
import re
from typing import Any

# The usual forms, whatever the LLM; with its tokenizer known, all that it has beside.
_FORMS = (
    r"<\|[^<>|\s]{1,60}\|>",
    r"</?s>",
    r"\[/?INST\]",
    r"<</?SYS>>",
    r"<(?:start|end)_of_turn>",
    r"<(?:bos|eos|pad)>",
    r"</?think>",
)
_USUAL = re.compile("|".join(_FORMS))


def plain_text(text: str, tokenizer: Any = None) -> str:
    """The text with every control token taken apart: `<|im_end|>` becomes `< |im_end| >`.

    Control tokens are those of the usual forms, and those that `tokenizer` (of transformers) reads as one token.
    """
    return count_taken_apart(text, tokenizer)[0]


def count_taken_apart(text: str, tokenizer: Any = None) -> tuple[str, int]:
    """As `plain_text`, and how many control tokens there were."""
    pattern = _USUAL if tokenizer is None else _pattern(tokenizer, len(tokenizer))
    apart, found = pattern.subn(_apart, text)
    while pattern.search(apart):  # one within another
        apart = pattern.sub(_apart, apart)
    return apart, found


def _apart(token: "re.Match[str]") -> str:
    return f"{token[0][0]} {token[0][1:-1]} {token[0][-1]}"


@functools.lru_cache(maxsize=4)
def _pattern(tokenizer: Any, _size: int) -> "re.Pattern[str]":
    """What to take apart; `_size` makes it anew where the tokenizer was given more tokens."""
    added = tokenizer.added_tokens_decoder.values()
    bracketed = [str(one) for one in added if one.special or (str(one)[0] in "<[" and str(one)[-1] in ">]")]
    own = sorted((token for token in bracketed if len(token) > 2 and " " not in token), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, own), *_FORMS]))
