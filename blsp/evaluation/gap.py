"""The behaviour gap: how far the LLM is from itself when it hears instead of reads, by what it is asked and how long.

Both next-token distributions are compared along the response that the LLM gives to the transcript: KL(text || speech)
in nats a token, and how often the most likely token is the same. Most tokens of a response follow from its own
beginning, so that speech which says nothing agrees on most of them too. The gap therefore stands beside its floors, an
untrained adapter and another utterance's speech; `share` is how much of the way from the latter to text is gone; and
all of it is told of the tokens alone that depend on the content (blsp.training.objective.CONTENT_NATS).

Axes: I utterances, K behaviours.
"""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypedDict

import numpy as np
from tqdm import tqdm

from blsp.continuation.engine import write_answers
from blsp.data.batches import evaluation_batches
from blsp.evaluation.lengths import length_bins
from blsp.evaluation.resampling import Figure, Resampling, bootstrap, ratio
from blsp.evaluation.tasks import Item
from blsp.model.chat import answer_to, build_prompt
from blsp.prompts import Prompt
from blsp.training.examples import Collator, Example, with_others
from blsp.training.objective import CONTENT_NATS, AlignmentObjective

CONTENT = f"tokens that depend on the content: KL(text || another's text) > {CONTENT_NATS:g} nats"


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
    return _measured(model, processor, examples, [], batch_size, None)["speech"]


def floored_gaps(
    model: Any, processor: Any, examples: Sequence[Example], batch_size: int, untrained: Any
) -> dict[str, list[UtteranceGap]]:
    """The gap on each of these utterances and its floors, each a row an utterance, in their order.

    {"speech", "untrained" (through that adapter), "other" (another's speech)}, and "content_speech" and so on: over the
    tokens that depend on the content. Where all utterances say the same there is no other, and no content is known.
    """
    return _measured(model, processor, examples, with_others(examples), batch_size, untrained)


def _measured(
    model: Any,
    processor: Any,
    examples: Sequence[Example],
    others: Sequence[Example],
    batch_size: int,
    untrained: Any,
) -> dict[str, list[UtteranceGap]]:
    collate, objective = Collator(processor), AlignmentObjective(model)
    rows: dict[str, list[UtteranceGap]] = defaultdict(list)
    with tqdm(total=len(examples), desc="gap", unit=" utterances", disable=not examples) as progress:
        for start in range(0, len(examples), batch_size):
            some, theirs = (part[start : start + batch_size] for part in (examples, others))
            batch = collate(some).to(model.device)
            other = collate(theirs).to(model.device) if theirs else None
            for name, gap in objective.divergence(batch, other, untrained).items():
                rows[name] += _rows(some, gap.kl, gap.agreement, gap.tokens)
                if others:
                    rows[f"content_{name}"] += _rows(some, gap.content_kl, gap.content_agreement, gap.content_tokens)
            progress.update(len(some))
    return rows


def _rows(examples: Sequence[Example], *counts: Any) -> list[UtteranceGap]:
    return [
        UtteranceGap(id=example.id, samples=example.num_samples, kl=kl, agreement=agreement, tokens=tokens)
        for example, kl, agreement, tokens in zip(examples, *(count.tolist() for count in counts), strict=True)
    ]


def floored_figures(gaps: Mapping[str, list[UtteranceGap]], resampling: Resampling, label: str) -> dict[str, Any]:
    """What `floored_gaps` gives as figures, of the behaviour `label`.

    "kl" and "top1_agreement" as `gap_figures`, "share" of the way from another's speech to text, "content_tokens" the
    share of tokens that depend on the content, the former three of these alone under "content_..."; and under "other"
    and "untrained" what these floors have. What nobody can tell is left out.
    """
    found: dict[str, Any] = {}
    for name in ("speech", "other", "untrained"):
        own: dict[str, Figure] = {}
        for prefix in ("", "content_"):
            if rows := [row for row in gaps.get(f"{prefix}{name}", []) if row["tokens"]]:
                which = {"": label, "content_": f"{label}|{CONTENT}"}[prefix]
                figures = gap_figures(rows, resampling, which if name == "speech" else f"{which}|{name}")
                own |= {f"{prefix}{key}": figure for key, figure in figures.items()}
        found |= own if name == "speech" else {name: own} if own else {}
    for prefix in ("", "content_"):
        if figure := share_figure({label: gaps}, {label: 1.0}, resampling, prefix):
            found[f"{prefix}share"] = figure
    if "content_speech" in gaps:
        content, tokens = ([row["tokens"] for row in gaps[name]] for name in ("content_speech", "speech"))
        found["content_tokens"] = ratio(content, tokens, resampling, f"share of tokens|{label}|{CONTENT}")
    return found


def share_figure(
    gaps: Mapping[str, Mapping[str, list[UtteranceGap]]],
    weights: Mapping[str, float],
    resampling: Resampling,
    prefix: str = "",
) -> Figure | None:
    """1 - KL(text || speech) / KL(text || another's speech) of each behaviour, their mean by these weights.

    With the prefix `content_`, of the tokens that depend on the content. None where no floor was measured.
    """
    names = [name for name in gaps if any(row["kl"] > 0 for row in gaps[name].get(f"{prefix}other", []))]
    if not names:
        return None
    ids = {row["id"] for name in names for row in gaps[name][f"{prefix}other"]}
    places = {id_: place for place, id_ in enumerate(sorted(ids))}
    counts = np.zeros((len(places), 2, len(names)))  # KL with its own speech, with another's (I, 2, K)
    for column, name in enumerate(names):
        for side, heard in enumerate(("speech", "other")):
            for row in gaps[name][f"{prefix}{heard}"]:
                counts[places[row["id"]], side, column] = row["kl"]
    of = np.array([weights[name] for name in names])

    def compute(total: np.ndarray) -> float:
        speech, other = total.reshape(2, -1)
        known = other > 0  # a resample may have none of a behaviour's utterances
        return float((of[known] * (1 - speech[known] / other[known])).sum() / of[known].sum())

    signature = "1 - KL(text || speech) / KL(text || another's speech)|" + ",".join(
        f"{name}:{weight:g}" for name, weight in zip(names, of, strict=True)
    )
    return bootstrap(
        counts.reshape(len(places), -1), compute, resampling, signature + (f"|{CONTENT}" if prefix else "")
    )


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
