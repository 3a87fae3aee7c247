"""The text side alone, looked at before anything is trained: can the LLM do its tasks when it reads, and do its
answers depend on what was said?

A task at whose ceiling the LLM fails can teach nothing and measure nothing, and a behaviour whose answers are alike
whatever was said teaches no hearing. Both are measured on some utterances of dev, always the same ones.

Axes: N tokens of all answers of a batch, D LLM width.
"""

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from blsp.continuation import quality
from blsp.continuation.answers import Asker, answer_prompts, loaded_llm, loaded_tokenizer, read_answers
from blsp.continuation.sheets import Question, Sheet
from blsp.data.records import Unusable
from blsp.data.shards import load_cuts
from blsp.data.text import normalizer_of_all, sentence_key
from blsp.evaluation.metrics import Metric, new_metric, without
from blsp.evaluation.tasks import Item, items_of, reference_of
from blsp.executor import run_each
from blsp.model.chat import answer_to, build_prompt
from blsp.model.decoding import Answer, chunk_rows, logits_of
from blsp.model.responses import prompted
from blsp.params import Params, Task
from blsp.prompts import Prompt
from blsp.staging import Staging
from blsp.training.prefixes import NONE, Prefixes, PrefixReader, prefix_number, takes_prefixes

ITEMS = 100  # utterances of dev that are looked at
ITEMS_OF_A_TASK = 50  # of them, under each instruction
BATCH = 16
# Beyond these the LLM that reads does not do the task: the highest error rate, or the lowest score.
BROKEN = {"wer": 0.5, "bleu": 10.0, "chrf": 20.0, "accuracy": 0.5, "contains": 0.5}
MIN_KL = 0.5  # nats a token; below it, answers hardly depend on the transcript
CHANGED = math.log(2)  # a token's probability that changes by this factor has changed much
OPENING_WORDS = 4
SHARED_BY = 0.05  # of the answers begin alike: an opening that many share
SHOWN_OPENINGS = 5
MAX_SHARED = 0.3  # of the answers, beyond the transcripts' own share, may begin like many others


@dataclass(frozen=True)
class Pair:
    """An answer's tokens, what it was an answer to, and another transcript."""

    prompt: Prompt
    own: str
    other: str
    answer: list[int]


@dataclass(frozen=True)
class Asked:
    """One behaviour's answers to utterances of dev, as the LLM gave them, before any rule on their quality."""

    questions: list[Question] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def add(self, sheet: Sheet, answers: Sequence[Answer], chosen: Mapping[str, Item]) -> None:
        """Keep the answers to those utterances that were chosen."""
        for question, answer in zip(sheet.questions, answers, strict=True):
            if question.id in chosen:
                self.questions.append(question)
                self.answers.append(answer)


def dev_items() -> dict[str, Item]:
    """By id ITEMS utterances of dev, without their audio, in an order of their ids' hashes: always the same ones."""
    cuts = sorted(load_cuts("dev"), key=lambda cut: hashlib.sha256(cut.id.encode()).digest())
    return {
        cut.id: Item(
            id=cut.id,
            samples=np.zeros(0, dtype=np.float32),
            sampling_rate_hz=cut.sampling_rate,
            transcript=cut.supervisions[0].text,
            language=cut.supervisions[0].language,
            speaker=cut.supervisions[0].speaker,
            **{name: cut.custom.get(name) for name in ("translation", "intent", "answer", "source")},
        )
        for cut in cuts[:ITEMS]
    }


def look(
    asked: Mapping[str, Asked], items: Mapping[str, Item], params: Params, asker: Asker, staging: Staging
) -> dict[str, Any]:
    """{"items", "tasks": {name: ceiling or None}, "behaviours": {name: figures}, "warnings"}.

    What is None was not measured: no utterance of dev has what the task needs; servers give no distribution.
    """
    tasks = _ceilings(list(items.values()), params, asker, staging)
    behaviours: dict[str, dict[str, Any]] = {name: _figures(own, name, params) for name, own in asked.items()}
    if asker.server is None:
        pairs = [_pairs(own) for own in asked.values()]
        measured = run_each(partial(dependence, asker=asker), pairs, params.execution, gpus=1)
        for figures, own in zip(behaviours.values(), measured, strict=True):
            figures |= own
    found: dict[str, Any] = {"items": len(items), "tasks": tasks, "behaviours": behaviours}
    return found | {"warnings": list(_warnings(found))}


def summary(found: Mapping[str, Any]) -> str:
    """For the terminal: one line a task and a behaviour, then what is wrong and what to do about it."""
    lines = [f"text side, {found['items']} utterances of dev, read by the LLM:"]
    for name, task in found["tasks"].items():
        shown = f"{task['metric']} {task['value']:.2f} ({task['n']} answers)" if task else "not measured"
        lines.append(f"  task {name}: {shown}")
    for name, own in found["behaviours"].items():
        kl = f"KL {own['kl']:.2f} nats a token under another transcript" if own["kl"] is not None else "not measured"
        lines.append(f"  behaviour {name}: {kl}, {own['shared_openings']:.0%} begin like many others")
    return "\n".join([*lines, *(f"WARNING {warning}" for warning in found["warnings"])])


def _ceilings(items: list[Item], params: Params, asker: Asker, staging: Staging) -> dict[str, dict[str, Any] | None]:
    """{"metric", "value", "n"} of each task that has references, for the LLM reading transcripts."""
    settings = params.evaluate
    asker = replace(asker, max_new_tokens=settings.max_new_tokens, top_k=0)
    tokenizer = loaded_tokenizer(asker)
    judged = {
        name: [(task.prompt(instruction), item) for instruction in task.instructions for item in own]
        for name, task in settings.tasks.items()
        if task.reference is not None and (own := items_of(task, items)[:ITEMS_OF_A_TASK])
    }
    prompts = [[build_prompt(tokenizer, prompt, item.transcript) for prompt, item in own] for own in judged.values()]
    names = run_each(partial(answer_prompts, asker=asker, staging=staging), prompts, params.execution, gpus=1)
    ceilings: dict[str, dict[str, Any] | None] = {
        name: None for name, task in settings.tasks.items() if task.reference is not None
    }
    for (name, asked), answers in zip(judged.items(), names, strict=True):
        written = [one.answer for one in read_answers(answers, staging)]
        texts = [answer_to(prompt, answer, tokenizer).text for (prompt, _), answer in zip(asked, written, strict=True)]
        ceilings[name] = _ceiling(settings.tasks[name], [item for _, item in asked], texts, params)
    return ceilings


def _ceiling(task: Task, items: Sequence[Item], answers: Sequence[str], params: Params) -> dict[str, Any]:
    normalizer = normalizer_of_all({item.language for item in items}, params.corpus.normalizer)
    metric = new_metric(task.metric, normalizer, [str(reference_of(task, item)) for item in items])
    assert metric.count is not None
    total = sum(
        metric.count(without(task.drop, answer), str(reference_of(task, item)))
        for item, answer in zip(items, answers, strict=True)
    )
    value = float(metric.compute(np.asarray(total)))
    return {"metric": metric.name, "value": value, "n": len(items), "broken": _is_broken(metric, value)}


def _is_broken(metric: Metric, value: float) -> bool:
    limit = BROKEN[metric.name]
    return value < limit if metric.higher_is_better else value > limit


def _figures(asked: Asked, name: str, params: Params) -> dict[str, Any]:
    """What the answers of a behaviour themselves show: shares of them that are dropped, cut, begin alike."""
    settings, count = params.continuations, len(asked.answers)
    reasons: Counter[str] = Counter()
    for question, answer in zip(asked.questions, asked.answers, strict=True):
        try:
            quality.check(
                answer,
                question.transcript,
                question.language,
                settings.behaviours[name],
                settings.quality,
                params.corpus.normalizer,
            )
        except Unusable as fault:
            reasons[fault.reason] += 1
    cut = sum(answer.finish_reason == "length" for answer in asked.answers)
    many = _shared_openings([answer.text for answer in asked.answers])
    spoken = _shared_openings([question.transcript for question in asked.questions])
    return {
        "answers": count,
        "mean_tokens": sum(len(answer.token_ids) for answer in asked.answers) / max(count, 1),
        "cut": cut / max(count, 1),
        "dropped": {reason: rows / count for reason, rows in sorted(reasons.items())},
        "shared_openings": sum(many.values()) / max(count, 1),
        "shared_openings_of_transcripts": sum(spoken.values()) / max(count, 1),
        "openings": dict(many.most_common(SHOWN_OPENINGS)),
        "kl": None,
        "changed_tokens": None,
    }


def _shared_openings(texts: Sequence[str]) -> Counter[str]:
    """The openings that many of these texts share, with how many begin so."""
    openings = Counter(_opening(text) for text in texts)
    least = max(SHARED_BY * len(texts), 3)
    return Counter({opening: rows for opening, rows in openings.items() if opening and rows >= least})


def _opening(text: str) -> str:
    return " ".join(sentence_key(text).split()[:OPENING_WORDS])


def _pairs(asked: Asked) -> list[Pair]:
    """Each answer with the transcript of the next question that says something else."""
    count, pairs = len(asked.questions), []
    for row, (question, answer) in enumerate(zip(asked.questions, asked.answers, strict=True)):
        others = (asked.questions[(row + step) % count].transcript for step in range(1, count))
        other = next((one for one in others if sentence_key(one) != sentence_key(question.transcript)), None)
        if other is not None and answer.token_ids:
            pairs.append(Pair(question.prompt, question.transcript, other, answer.token_ids))
    return pairs


def dependence(pairs: Sequence[Pair], asker: Asker) -> dict[str, float | None]:
    """{"kl", "changed_tokens"}: how much the LLM's distribution along its answers hangs on what was said.

    KL in nats a token from the distribution given the utterance's own transcript to the one given another's, and the
    share of tokens whose probability changes by a factor of 2 or more. None where there is nothing to compare.
    """
    if not pairs:
        return {"kl": None, "changed_tokens": None}
    llm, tokenizer = loaded_llm(asker)
    texts = [build_prompt(tokenizer, pair.prompt, said) for pair in pairs for said in (pair.own, pair.other)]
    ids = tokenizer(texts, add_special_tokens=False).input_ids
    prefixes = _common_prefixes([pair.prompt for pair in pairs for _ in range(2)], ids) if takes_prefixes(llm) else NONE
    reader = PrefixReader(llm, prefixes)
    kl = changed = tokens = 0.0
    for start in range(0, len(pairs), BATCH):
        answers = [pair.answer for pair in pairs[start : start + BATCH]]
        mine, others = (ids[2 * start + side : 2 * (start + BATCH) : 2] for side in (0, 1))
        one, other = (_states(llm, reader, prefixes, prompts, answers) for prompts in (mine, others))
        targets = torch.tensor([token for answer in answers for token in answer], device=llm.device)
        rows = chunk_rows(llm)
        for *states, wanted in zip(one.split(rows), other.split(rows), targets.split(rows), strict=True):
            own, found = (logits_of(llm, some).float().log_softmax(-1) for some in states)
            kl += float((own.exp() * (own - found)).sum())
            change = (own - found).gather(-1, wanted[:, None]).abs()
            changed += int((change >= CHANGED).sum())
            tokens += len(wanted)
    return {"kl": kl / tokens, "changed_tokens": changed / tokens}


@torch.inference_mode()
def _states(
    llm: Any,
    reader: PrefixReader,
    prefixes: Prefixes,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> torch.Tensor:
    """The LLM's states (N, D) that predict the tokens of these answers to these prompts."""
    numbers = [prefix_number(prefixes, prompt) for prompt in prompts]
    rest = [prompt[len(prefixes[number]) :] for prompt, number in zip(prompts, numbers, strict=True)]
    read = prompted(rest, answers)
    embeddings = llm.get_input_embeddings()(read.ids.to(llm.device))
    states = reader.states(embeddings, read.mask.to(llm.device), torch.tensor(numbers, device=llm.device))
    return states[read.predicts.to(llm.device)]


def _common_prefixes(prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> Prefixes:
    """What all written prompts of each kind begin with."""
    found: dict[Prompt, tuple[int, ...]] = {}
    for prompt, own in zip(prompts, ids, strict=True):
        known = found.setdefault(prompt, tuple(own[:-1]))
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(known, own[:-1], strict=False))
        found[prompt] = tuple(token for token, _ in alike)
    return (*NONE, *sorted(set(found.values()) - {()}))


def _warnings(found: Mapping[str, Any]) -> Iterator[str]:
    advice = "give it examples, another joint (an empty line, quotes, the content first) or other words"
    for name, task in found["tasks"].items():
        if task and task["broken"]:
            yield (
                f"task {name}: the LLM that reads the transcripts has {task['metric']} {task['value']:.2f} on dev, "
                f"limit {BROKEN[task['metric']]:g}: such a task measures nothing; {advice} under evaluate.tasks.{name}"
            )
    for name, own in found["behaviours"].items():
        if own["kl"] is not None and own["kl"] < MIN_KL:
            yield (
                f"behaviour {name}: the answers hardly depend on what was said (KL {own['kl']:.2f} nats a token under "
                f"another transcript, limit {MIN_KL:g}): they teach no hearing; {advice} under "
                f"continuations.behaviours.{name}"
            )
        if own["shared_openings"] > own["shared_openings_of_transcripts"] + MAX_SHARED:
            shown = ", ".join(f"{words!r} {rows} times" for words, rows in own["openings"].items())
            yield (
                f"behaviour {name}: {own['shared_openings']:.0%} of the answers begin like many others ({shown}): "
                f"{advice} under continuations.behaviours.{name}"
            )
