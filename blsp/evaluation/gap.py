"""The behaviour gap: how far the LLM is from itself when it hears instead of reads, by what it is asked and how long.

Both next-token distributions are compared along the response that the LLM gives to the transcript: KL(text || speech)
in nats a token, and how often the most likely token is the same.
"""

from collections.abc import Container, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypedDict

from blsp.continuation.engine import write_answers
from blsp.data.batches import evaluation_batches
from blsp.evaluation.lengths import length_bins
from blsp.evaluation.resampling import Figure, Resampling, ratio
from blsp.evaluation.tasks import Item
from blsp.model.chat import answer_to, build_prompt
from blsp.prompts import Prompt
from blsp.training.examples import Collator, Example
from blsp.training.objective import AlignmentObjective


class UtteranceGap(TypedDict):
    """The gap on one utterance, summed over its response: KL, tokens on which both agree most, all tokens."""

    id: str
    samples: int
    kl: float
    agreement: float
    tokens: float


def continued(behaviour: str, ids: Container[str], batch_size: int) -> list[Example]:
    """The test utterances with these ids, shortest first, each with what the LLM wrote for the corpus."""
    examples = chain.from_iterable(evaluation_batches("test", behaviour, batch_size))
    return [example for example in examples if example.id in ids]


def answered(
    model: Any, processor: Any, items: Sequence[Item], prompt: Prompt | str, batch_size: int, max_new_tokens: int
) -> list[Example]:
    """The items, shortest first, each with what the LLM itself answers to its transcript under the prompt."""
    items = sorted(items, key=lambda item: (len(item.samples), item.id))
    tokenizer = processor.tokenizer
    prompts = [build_prompt(tokenizer, prompt, item.transcript) for item in items]
    answers = dict(write_answers(model.language_model, tokenizer, prompts, batch_size, max_new_tokens))
    return [
        Example(
            id=item.id,
            num_samples=len(item.samples),
            load_samples=partial(getattr, item, "samples"),
            transcript=item.transcript,
            prompt=prompt,
            response_ids=answer_to(prompt, answers[row], tokenizer).token_ids,
        )
        for row, item in enumerate(items)
    ]


def utterance_gaps(model: Any, processor: Any, examples: Sequence[Example], batch_size: int) -> list[UtteranceGap]:
    """The gap on each of these utterances, in their order."""
    collate, objective = Collator(processor), AlignmentObjective(model)
    rows: list[UtteranceGap] = []
    for start in range(0, len(examples), batch_size):
        some = examples[start : start + batch_size]
        gap = objective.divergence(collate(some).to(model.device))
        measured = zip(some, gap.kl.tolist(), gap.agreement.tolist(), gap.tokens.tolist(), strict=True)
        rows += [
            UtteranceGap(id=example.id, samples=example.num_samples, kl=kl, agreement=agreement, tokens=tokens)
            for example, kl, agreement, tokens in measured
        ]
    return rows


def gap_figures(rows: Sequence[UtteranceGap], resampling: Resampling, label: str) -> dict[str, Figure]:
    """{"kl": nats a token, "top1_agreement": a share of tokens}; `label` says in the signatures what was asked."""
    tokens = [row["tokens"] for row in rows]
    kl, agreement = [row["kl"] for row in rows], [row["agreement"] for row in rows]
    return {
        "kl": ratio(kl, tokens, resampling, f"KL(text || speech), nats a token|{label}|temperature:1"),
        "top1_agreement": ratio(agreement, tokens, resampling, f"same most likely token|{label}"),
    }


def gap_by_length(
    rows: Sequence[UtteranceGap], sampling_rate_hz: int, resampling: Resampling, label: str
) -> list[dict[str, Any]]:
    """{"from_s", "to_s", "kl", "top1_agreement"} of each of `length_bins`, shortest audio first."""
    return [
        {"from_s": some.from_s, "to_s": some.to_s}
        | gap_figures([rows[at] for at in some.members.tolist()], resampling, f"{label}|{some.name}")
        for some in length_bins([row["samples"] / sampling_rate_hz for row in rows])
    ]
