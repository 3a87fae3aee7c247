"""Greedy answers by continuous batching: an answer that ends leaves at once, and the next prompt takes its place.

Rows write their keys and values side by side into the columns of one buffer. Whoever joins is laid so that its prompt
ends where the others are, so that all rows write into the same column:

    . . 4 5 6 7 8      a row that began long ago       . is another's column, or nobody's: it is masked
    . . . . 3 4 5      one that has just joined
          ^     ^
          |     +----- end: the next column, for all
          +----------- a row's columns are next to each other, so that sliding windows count right

Axes: B slots, C columns, H heads, E a head's width, D LLM width.
"""

import inspect
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from blsp.model.decoding import Answer, answer_of, end_token_ids, has_keys_alone, logits_of

SPARE_COLUMNS = 32  # between two moves of the buffer's contents
CHECKED_TOKENS = 12
PARTS = 8  # so many times is a full batch joined; fewer: more slots wait empty, more: smaller passes over prompts


@torch.inference_mode()
def can_join(llm: PreTrainedModel) -> bool:
    """Whether rows of this LLM may join a batch: what it keeps are keys and values, it takes positions as told, and it
    writes the same beside others as it writes alone."""
    if not has_keys_alone(llm) or "position_ids" not in inspect.signature(llm.base_model.forward).parameters:
        return False
    vocabulary = llm.config.get_text_config().vocab_size
    ids = list(range(0, vocabulary, -(-vocabulary // CHECKED_TOKENS)))
    prompts = [ids[: CHECKED_TOKENS // 2], ids[:2], ids[2:]]
    joined = dict(_written(llm, prompts, batch_size=2, max_new_tokens=3, ends=set()))
    return all(joined[row] == _written_alone(llm, prompt, 3) for row, prompt in enumerate(prompts))


def _written_alone(llm: PreTrainedModel, prompt: list[int], max_new_tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(max_new_tokens):
        logits = llm(input_ids=torch.tensor([ids], device=llm.device), use_cache=False).logits
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def continuous_greedy(
    llm: PreTrainedModel, tokenizer: Any, prompt_ids: Sequence[Sequence[int]], batch_size: int, max_new_tokens: int
) -> Iterator[tuple[int, Answer]]:
    """The number of each prompt with its greedy answer, as they end; at most `batch_size` are written at a time.

    Longest prompts come first. The tokens with which all of them begin are read once.
    """
    ends = end_token_ids(llm)
    for row, written in _written(llm, prompt_ids, batch_size, max_new_tokens, ends):
        yield row, answer_of(written, tokenizer, ends)


@torch.inference_mode()
def _written(
    llm: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], batch_size: int, max_new_tokens: int, ends: set[int]
) -> Iterator[tuple[int, list[int]]]:
    if not prompt_ids:
        return
    waiting = deque(sorted(range(len(prompt_ids)), key=lambda row: (-len(prompt_ids[row]), row)))
    batch = _Batch(llm, _Reader(llm, prompt_ids), min(batch_size, len(waiting)), max_new_tokens)
    part = -(-batch_size // PARTS)
    while waiting or batch.rows:
        while waiting and batch_size - len(batch.rows) >= min(part, len(waiting)):
            rows = [waiting.popleft() for _ in range(min(part, len(waiting)))]
            batch.join({row: prompt_ids[row] for row in rows})
            yield from batch.ended(ends)
        if batch.rows:
            batch.step()
            yield from batch.ended(ends)


class _Batch:
    """The rows that are being written, and what is written of each, by slot: every slot below their number is taken."""

    def __init__(self, llm: PreTrainedModel, reader: "_Reader", slots: int, max_new_tokens: int) -> None:
        self.llm, self.reader, self.slots, self.max_new_tokens = llm, reader, slots, max_new_tokens
        self.rows: list[int] = []
        self.written: list[list[int]] = []
        self.starts = torch.zeros(slots, dtype=torch.long)
        self.last = torch.zeros(slots, dtype=torch.long, device=llm.device)
        self.span = _Span(reader.longest, reader.longest)
        self.cache = Cache(layers=[])

    def ended(self, ends: set[int]) -> Iterator[tuple[int, list[int]]]:
        """The rows that are written to their end, with their tokens; they leave, and the last take their slots."""
        slots = [
            slot
            for slot, written in enumerate(self.written)
            if written[-1] in ends or len(written) == self.max_new_tokens
        ]
        yield from [(self.rows[slot], self.written[slot]) for slot in slots]
        count = len(self.rows) - len(slots)
        free = [slot for slot in slots if slot < count]
        moved = sorted(set(range(count, len(self.rows))) - set(slots))
        if moved:
            start = int(self.starts[moved].min())
            for layer in self.cache.layers:
                layer.move_rows(moved, free, start)
            for by_slot in (self.starts, self.last):
                by_slot[free] = by_slot[moved]
        for old, new in zip(moved, free, strict=True):
            self.rows[new], self.written[new] = self.rows[old], self.written[old]
        del self.rows[count:], self.written[count:]

    def join(self, prompts: dict[int, Sequence[int]]) -> None:
        """Reads the prompts (by row), and writes their first tokens."""
        slots = slice(len(self.rows), len(self.rows) + len(prompts))
        read, states = self.reader.read(list(prompts.values()))
        if not self.cache.layers:
            columns = self.reader.longest + self.max_new_tokens + SPARE_COLUMNS
            self.cache = Cache(layers=[_Columns(layer, self.slots, columns, self.span) for layer in read])
        lengths = torch.tensor([len(prompt) for prompt in prompts.values()])
        for layer, own in zip(read, self.cache.layers, strict=True):
            own.lay(slots, layer, lengths)
        self.starts[slots] = self.span.end - lengths
        self.rows += prompts
        self.written += ([] for _ in prompts)
        self._write(slots, states)

    def step(self) -> None:
        """Writes one more token of every row."""
        taken = slice(len(self.rows))
        if self.span.end == self.cache.layers[0].columns:
            self._move()
        self.span.start = int(self.starts[taken].min())
        starts = self.starts[taken].to(self.llm.device)[:, None]
        states = self.llm.base_model(
            input_ids=self.last[taken, None],
            attention_mask=torch.arange(self.span.start, self.span.end + 1, device=self.llm.device) >= starts,
            position_ids=self.span.end - starts,
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        self.span.end += 1
        self._write(taken, states)

    def _write(self, slots: slice, states: torch.Tensor) -> None:
        """Appends the likeliest token after these states (one a slot, D) to what is written in the slots."""
        self.last[slots] = logits_of(self.llm, states).argmax(-1)
        for written, token in zip(self.written[slots], self.last[slots].tolist(), strict=True):
            written.append(token)

    def _move(self) -> None:
        """Moves all that is still attended to towards the buffer's beginning, with room for the longest prompt."""
        width = self.span.end - int(self.starts[: len(self.rows)].min())
        by = self.span.end - max(width, self.reader.longest)
        for layer in self.cache.layers:
            layer.move(by)
        self.starts -= by
        self.span.end -= by


class _Span:
    """The columns that rows attend to, `start` to `end`; the next one that is written is `end`."""

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end


class _Columns(DynamicLayer):
    """One layer's keys and values (B, H, C, E), written in place. The model sees the columns of the span alone."""

    def __init__(self, like: DynamicLayer, slots: int, columns: int, span: _Span) -> None:
        super().__init__()
        self.lazy_initialization(like.keys, like.values)
        self.columns, self.span = columns, span
        self.keys, self.values = (
            some.new_zeros(slots, some.shape[1], columns, some.shape[3]) for some in (like.keys, like.values)
        )

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, start, end = len(key_states), self.span.start, self.span.end
        self.keys[:rows, :, end], self.values[:rows, :, end] = key_states[:, :, 0], value_states[:, :, 0]
        return self.keys[:rows, :, start : end + 1], self.values[:rows, :, start : end + 1]

    def get_seq_length(self) -> int:
        return self.span.end - self.span.start

    def lay(self, slots: slice, layer: DynamicLayer, lengths: torch.Tensor) -> None:
        """Copies prompts that are padded on the right, so that each ends before `end`."""
        width = layer.keys.shape[2]
        source = (torch.arange(width) - (width - lengths[:, None])).clamp(min=0).to(layer.keys.device)
        for own, some in ((self.keys, layer.keys), (self.values, layer.values)):
            columns = source[:, None, :, None].expand(-1, some.shape[1], -1, some.shape[3])
            own[slots, :, self.span.end - width : self.span.end] = some.gather(2, columns)

    def move_rows(self, old: Sequence[int], new: Sequence[int], start: int) -> None:
        """Copies the columns from `start` on into other slots."""
        for own in (self.keys, self.values):
            own[new, :, start : self.span.end] = own[old, :, start : self.span.end]

    def move(self, by: int) -> None:
        """Moves the columns before `end` towards the beginning."""
        for own in (self.keys, self.values):
            own[:, :, : self.span.end - by] = own[:, :, by : self.span.end].clone()


class _Reader:
    """Reads prompts; the tokens with which all of them begin are read once."""

    def __init__(self, llm: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.llm, self.longest = llm, max(map(len, prompts))
        self.shared = _shared_length(prompts)
        self.prefix = _new_cache()
        if self.shared:
            llm.base_model(
                input_ids=torch.tensor([prompts[0][: self.shared]], device=llm.device),
                past_key_values=self.prefix,
                use_cache=True,
            )

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[list[Any], torch.Tensor]:
        """The layers' keys and values of prompts, padded on the right, and the state (D) of each prompt's last token.

        Nothing is masked: a token attends to none that come after it, and padding is never read.
        """
        device, rows = self.llm.device, len(prompts)
        cache = _new_cache()
        for number, layer in enumerate(self.prefix.layers):
            cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), number)
        rests = pad_sequence([torch.tensor(prompt[self.shared :]) for prompt in prompts], batch_first=True).to(device)
        positions = torch.arange(self.shared, self.shared + rests.shape[1], device=device).expand_as(rests)
        states = self.llm.base_model(
            input_ids=rests, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        lasts = torch.tensor([len(prompt) - self.shared - 1 for prompt in prompts], device=device)
        return cache.layers, states[torch.arange(rows, device=device), lasts]


def _new_cache() -> DynamicCache:
    return DynamicCache()  # not told of sliding windows: it keeps everything, and masks say what is too far away


def _shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """With how many tokens all prompts begin, so that each goes on; none where there is one prompt alone."""
    if len(prompts) == 1:
        return 0
    alike = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*(prompt[:-1] for prompt in prompts), strict=False))
    return sum(1 for _ in alike)
