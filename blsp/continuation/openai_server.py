"""The LLM on an OpenAI-compatible server (vLLM, SGLang, llama.cpp, `transformers serve`), asked for plain completions.

/v1/completions takes the prompt as it is. /v1/chat/completions would put it into the server's own template, which may
not be the pinned one. What is sent is the text of `build_prompt`, but for the start token that the server's tokenizer
puts before every text itself; how many tokens the server says it read is compared with the pinned tokenizer's count.

The answer comes back as text. Its token ids are the pinned tokenizer's of that text, and the end token where the LLM
stopped by itself. Where the LLM spelled a text in other tokens than the tokenizer would ("th" "e" for "the"), the row
has the tokenizer's: the same text, on which training is as sound. But they are not what the LLM chose, nor do servers
give ids beside log-probabilities, so these are left to the engine in process.
"""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from blsp.errors import BlspError
from blsp.model.chat import build_prompt, end_of_turn
from blsp.model.decoding import Answer
from blsp.servers import Server, ask_each, new_client, post

HALF_A_CHARACTER = "\ufffd"
SETTINGS = ("execution.server_url", "continuations.server_model", "execution.timeout_s")
PROBE = "Repeat the following text."


def check_server(server: Server, tokenizer: Any) -> None:
    """Nothing; the server has the model, lets us in, and reads a prompt as the tokenizer does.

    Raises BlspError where it does not, or where nobody is there.
    """

    async def probe() -> None:
        async with new_client(server) as client:
            await _ask(client, server, tokenizer, build_prompt(tokenizer, PROBE, "a"), max_tokens=1, is_first=True)

    asyncio.run(probe())


def ask_server(
    server: Server, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int
) -> Iterator[tuple[int, Answer]]:
    """The number of each prompt with the server's greedy answer, as they come.

    Raises BlspError where the server refuses one, or does not answer it after several attempts.
    """

    async def ask(client: httpx.AsyncClient, prompt: str) -> Answer:
        return await _ask(client, server, tokenizer, prompt, max_new_tokens)

    yield from ask_each(server, prompts, ask)


async def _ask(
    client: httpx.AsyncClient,
    server: Server,
    tokenizer: Any,
    prompt: str,
    max_tokens: int,
    is_first: bool = False,
) -> Answer:
    token_ids = tokenizer(prompt, add_special_tokens=False).input_ids
    body = {
        "prompt": _as_sent(tokenizer, prompt, token_ids),
        "max_tokens": max_tokens,
        "temperature": 0,
        "frequency_penalty": 0,  # `transformers serve` takes a checkpoint's own repetition penalty otherwise
    }
    answer = await post(client, "completions", body, server, is_first)
    read = answer.get("usage", {}).get("prompt_tokens", len(token_ids))
    if read != len(token_ids):
        raise BlspError(
            f"{server.url} reads {read} tokens where the pinned LLM's tokenizer reads {len(token_ids)}, in "
            f"{prompt!r}; serve the checkpoint that params.yaml names under backbones"
        )
    return _answer(answer["choices"][0], tokenizer, max_tokens)


def _as_sent(tokenizer: Any, prompt: str, token_ids: list[int]) -> str:
    """The text that becomes `token_ids` where the tokenizer adds what it puts before every text."""
    start = tokenizer.bos_token or ""
    for text in (prompt, prompt.removeprefix(start)):
        if tokenizer(text).input_ids == token_ids:
            return text
    raise BlspError(
        f"the LLM's tokenizer puts {start!r} before every text and its chat template does not, so a server would not "
        "read the prompts as they are; set continuations.engine to transformers"
    )


def _answer(choice: dict[str, Any], tokenizer: Any, max_tokens: int) -> Answer:
    text, finish_reason = choice["text"], choice["finish_reason"]
    if finish_reason not in ("stop", "length"):
        raise BlspError(f"the server ended an answer for {finish_reason!r}; it must be 'stop' or 'length': {text!r}")
    if finish_reason == "length":
        text = text.rstrip(HALF_A_CHARACTER)  # cut between the tokens of one character
        token_ids = tokenizer(text, add_special_tokens=False).input_ids[:max_tokens]
        return Answer(token_ids, text.strip(), "length")
    # vLLM says which of several end tokens it was.
    named = choice.get("stop_reason")
    end = named if isinstance(named, int) else end_of_turn(tokenizer)
    return Answer([*tokenizer(text, add_special_tokens=False).input_ids, end], text.strip(), "stop")
