"""What one shard is asked of one behaviour, as prompts for the LLM; and what becomes of the answers."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blsp.continuation import quality
from blsp.continuation.answers import Written
from blsp.data.records import Unusable
from blsp.data.shards import Shard
from blsp.data.text import Setting
from blsp.model.chat import answer_to, build_prompt
from blsp.params import Behaviour, Continuations
from blsp.prompts import Prompt


@dataclass(frozen=True)
class Question:
    """One utterance and what is asked about it; `text` is the prompt made of both, for the LLM.

    `language` is None where nobody knows.
    """

    id: str
    transcript: str
    language: str | None
    prompt: Prompt
    text: str


@dataclass(frozen=True)
class Sheet:
    """A shard's questions for one behaviour, and the rows that are not asked: outside its share, or dropped."""

    shard: Shard
    behaviour: str
    questions: list[Question]
    rows_not_asked: int
    dropped: list[dict[str, str]]

    @property
    def prompts(self) -> list[str]:
        """The prompts, in the questions' order."""
        return [question.text for question in self.questions]


def make_sheet(shard: Shard, behaviour: str, settings: Continuations, tokenizer: Any) -> Sheet:
    """The shard's sheet for a behaviour: which utterances it is written for, and in which words they are asked."""
    wanted = settings.behaviours[behaviour]
    questions, dropped, rows_not_asked = [], [], 0
    for cut in shard.cuts():
        if not is_asked(cut.id, behaviour, wanted):
            rows_not_asked += 1
            continue
        spoken = cut.supervisions[0]
        prompt = wanted.prompt(instruction_for(cut.id, wanted.instructions))
        text = build_prompt(tokenizer, prompt, spoken.text)
        length = len(tokenizer(text, add_special_tokens=False).input_ids)
        if length >= settings.max_prompt_tokens:
            detail = f"{length} tokens, limit {settings.max_prompt_tokens}"
            dropped.append(_dropped(cut.id, behaviour, "prompt_too_long", detail))
        else:
            questions.append(Question(cut.id, spoken.text, spoken.language, prompt, text))
    return Sheet(shard, behaviour, questions, rows_not_asked, dropped)


def fill_sheet(
    sheet: Sheet, answers: Iterable[Written], settings: Continuations, pin: dict[str, Any], normalizer: Setting
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """The rows of the sheet's field by cut id, and those that are left out, each with its reason."""
    rows, dropped = {}, list(sheet.dropped)
    behaviour = settings.behaviours[sheet.behaviour]
    for question, written in zip(sheet.questions, answers, strict=True):
        answer = written.answer
        try:
            quality.check(answer, question.transcript, question.language, behaviour, settings.quality, normalizer)
        except Unusable as fault:
            dropped.append(_dropped(question.id, sheet.behaviour, fault.reason, str(fault)))
            continue
        rows[question.id] = {
            "id": question.id,
            "transcript": question.transcript,
            "instruction": question.prompt.instruction,
            "prompt_sha256": hashlib.sha256(question.text.encode()).hexdigest(),
            "llm_revision": pin["revision"] or pin["sha256"],
            "sampling": {"do_sample": False, "max_new_tokens": settings.max_new_tokens},
            "token_ids": answer.token_ids,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
        }
        if (style := question.prompt.style) is not None:
            rows[question.id]["style"] = style
        if written.kept_ids is not None:
            rows[question.id] |= {
                "kept_ids": written.kept_ids,
                "kept_logprobs": written.kept_logprobs,
                "kept_temperature": written.kept_temperature,
            }
    return rows, dropped


def ended(sheet: Sheet, answers: Iterable[Written], tokenizer: Any) -> list[Written]:
    """The answers as they count to their prompts (see `answer_to`), what is kept of the teacher cut with them."""
    found = []
    for question, written in zip(sheet.questions, answers, strict=True):
        answer = answer_to(question.prompt, written.answer, tokenizer)
        end = len(answer.token_ids)
        ids = written.kept_ids[:end] if written.kept_ids else None
        logprobs = written.kept_logprobs[:end] if written.kept_logprobs else None
        found.append(replace(written, answer=answer, kept_ids=ids, kept_logprobs=logprobs))
    return found


def is_asked(id_: str, name: str, behaviour: Behaviour) -> bool:
    """Whether the behaviour is written for this utterance. A larger share asks for more, and for the same ones."""
    return _draw(name, id_) < behaviour.share


def instruction_for(id_: str, instructions: Sequence[str]) -> str:
    """The one of the instructions that this utterance gets; one more instruction takes utterances from all alike."""
    return max(instructions, key=lambda instruction: _draw(instruction, id_))


def _draw(*what: str) -> float:
    """A number from 0 to 1, always the same for the same texts."""
    digest = hashlib.sha256("\0".join(what).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _dropped(id_: str, behaviour: str, reason: str, detail: str) -> dict[str, str]:
    return {"id": id_, "behaviour": behaviour, "reason": reason, "detail": detail}
