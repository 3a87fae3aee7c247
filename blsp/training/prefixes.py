"""What prompts begin with: read by the frozen LLM once, not with every utterance.

Template, examples and instruction stand before the speech. They attend to nothing after them, and no gradient flows to
them, so their keys and values are the same in every row and at every step.

Axes: B utterances, P prefixes, C tokens of the longest prefix, L tokens, H heads, E a head's width, D LLM width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from blsp.model.chat import PROBE, build_prompt, spoken_around
from blsp.model.decoding import has_keys_alone
from blsp.model.processing import BlspProcessor
from blsp.model.responses import positions_of
from blsp.prompts import Prompt

Prefixes = Sequence[tuple[int, ...]]  # token ids, by number; number 0 is the empty one
NONE: Prefixes = ((),)
CHECKED_TOKENS = 12


def prompt_prefixes(processor: BlspProcessor, prompts: Sequence[Prompt | str]) -> Prefixes:
    """What these prompts begin with, spoken and written alike: up to the content, examples and all."""
    prefixes = set()
    for prompt in prompts:
        spoken, _ = spoken_around(processor.tokenizer, prompt)
        text = build_prompt(processor.tokenizer, prompt, PROBE)
        written = processor.tokenizer(text, add_special_tokens=False).input_ids
        pairs = zip(spoken, written, strict=False)
        same = next((at for at, pair in enumerate(pairs) if len(set(pair)) > 1), min(len(spoken), len(written)))
        prefixes.add(tuple(spoken[:same]))
    return (*NONE, *sorted(prefixes - {()}))


def prefix_number(prefixes: Prefixes, *prompts: Sequence[int]) -> int:
    """The number of the longest prefix with which all these prompts (token ids) begin, and after which each goes on."""
    fitting = [
        number
        for number, prefix in enumerate(prefixes)
        if all(len(prompt) > len(prefix) and tuple(prompt[: len(prefix)]) == prefix for prompt in prompts)
    ]
    return max(fitting, key=lambda number: len(prefixes[number]))


class PrefixReader:
    """The LLM's decoder, which has read the prefixes and goes on after any of them."""

    def __init__(self, llm: PreTrainedModel, prefixes: Prefixes = NONE) -> None:
        self.decoder = llm.base_model
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        if any(prefixes):
            self._read(llm, prefixes)

    @torch.no_grad()
    def _read(self, llm: PreTrainedModel, prefixes: Prefixes) -> None:
        """Keys and values (P, H, C, E) of each layer, and their mask (P, C): prefixes are padded on the left."""
        longest = max(map(len, prefixes))
        ids = torch.tensor([[0] * (longest - len(prefix)) + list(prefix) for prefix in prefixes], device=llm.device)
        starts = torch.tensor([longest - len(prefix) for prefix in prefixes], device=llm.device)[:, None]
        self.mask = (torch.arange(longest, device=llm.device) >= starts).long()
        seen = self.mask.masked_fill(starts == longest, 1)  # the empty one: a row of padding alone would give NaN
        cache = DynamicCache()  # not told of sliding windows: it keeps everything, and masks say what is too far away
        self.decoder(
            inputs_embeds=llm.get_input_embeddings()(ids),
            attention_mask=seen,
            position_ids=positions_of(seen),
            past_key_values=cache,
            use_cache=True,
        )
        self.layers = [(layer.keys, layer.values) for layer in cache.layers]

    def states(self, embeddings: torch.Tensor, mask: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """The LLM's last states (B, L, D) of what comes after the prefixes of `numbers` (B,); mask (B, L)."""
        options: dict[str, Any] = {"attention_mask": mask}
        if self.layers:
            whole = torch.cat([self.mask[numbers], mask], dim=1)
            options = {
                "attention_mask": whole,
                "position_ids": positions_of(whole)[:, -mask.shape[1] :],
                "past_key_values": Cache(layers=[_Known(*layer, numbers) for layer in self.layers]),
            }
        output = self.decoder(inputs_embeds=embeddings, use_cache=False, **options)
        return output.last_hidden_state


class _Known(DynamicLayer):
    """Keys and values (P, H, C, E), to be followed by others in rows that begin with `numbers` (B,) of them.

    It keeps none of those that follow: a layer may be computed again.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, numbers: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values, self.numbers = keys, values, numbers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self.keys[self.numbers], self.values[self.numbers]
        return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)


@torch.no_grad()
def takes_prefixes(llm: PreTrainedModel) -> bool:
    """Whether the LLM says the same after a prefix that it has read before as after one that it reads along."""
    if not has_keys_alone(llm):
        return False
    vocabulary = llm.config.get_text_config().vocab_size
    ids = torch.arange(0, vocabulary, -(-vocabulary // CHECKED_TOKENS), device=llm.device)
    half = len(ids) // 2
    embeddings = llm.get_input_embeddings()(ids[None])
    mask, number = torch.ones_like(ids)[None], torch.tensor([1], device=llm.device)
    expected = PrefixReader(llm).states(embeddings, mask, number)[:, half:]
    reader = PrefixReader(llm, ((), tuple(ids[:half].tolist()), tuple(ids[1:half].tolist())))
    found = reader.states(embeddings[:, half:], mask[:, half:], number)
    error = float((found - expected).float().norm() / expected.float().norm())
    return error < torch.finfo(llm.dtype).eps ** 0.5
