"""The `continuations` stage: for each transcript and behaviour, what the LLM writes, as one more Shar field."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from tqdm import tqdm

from blsp.backbones import llm_pin, load_llm, load_tokenizer
from blsp.continuation.engine import Engine, write_answers
from blsp.continuation.openai_server import ask_server, check_server
from blsp.continuation.teacher import top_logprobs
from blsp.data.records import SPLITS
from blsp.data.shards import CONTINUATIONS_DIR, Shard, iter_shards, write_field
from blsp.errors import BlspError
from blsp.files import replace_dir, write_json
from blsp.model.chat import build_prompt
from blsp.model.decoding import Answer
from blsp.params import Continuations, Params

REPORT = "reports/continuations.json"
SAMPLES_PER_BEHAVIOUR = 10


def run(params: Params) -> None:
    """Nothing; afterwards every shard of the corpus has one field a behaviour, and the report says what is in them.

    Raises BlspError where there is nothing to write from.
    """
    settings = params.continuations
    model, tokenizer, engine = _open(settings)
    shards = [shard for split in SPLITS for shard in iter_shards(split)]
    rows_wanted = sum(1 for shard in shards for _ in shard.cuts()) * len(settings.behaviours)
    if not rows_wanted:
        raise BlspError("data/corpus holds no utterance to write from; run `blsp corpus`")
    report = _Report(settings)
    with (
        replace_dir(CONTINUATIONS_DIR) as folder,
        tqdm(total=rows_wanted, desc="continuations", unit="row", mininterval=2) as progress,
    ):
        for shard in shards:
            for behaviour in settings.behaviours:
                rows = _write_shard(shard, behaviour, settings, model, tokenizer, engine, report, progress)
                write_field(shard, behaviour, rows, folder)
    write_json(REPORT, report.as_dict())
    print(report.summary())


def _open(settings: Continuations) -> tuple[Any, Any, Engine]:
    """The LLM (None where a server has it), its tokenizer, and the engine that writes."""
    if settings.engine == "openai":
        tokenizer = load_tokenizer()
        check_server(settings, tokenizer)
        return None, tokenizer, partial(ask_server, settings, tokenizer)
    model, tokenizer = load_llm()
    engine = partial(
        write_answers, model, tokenizer, batch_size=settings.batch_size, max_new_tokens=settings.max_new_tokens
    )
    return model, tokenizer, engine


def _write_shard(
    shard: Shard,
    behaviour: str,
    settings: Continuations,
    model: Any,
    tokenizer: Any,
    engine: Engine,
    report: "_Report",
    progress: tqdm,
) -> dict[str, dict[str, Any]]:
    instruction = settings.behaviours[behaviour]
    rows: dict[str, dict[str, Any]] = {}
    prompts: list[str] = []
    prompt_ids: list[list[int]] = []
    for cut in shard.cuts():
        transcript = cut.supervisions[0].text
        prompt = build_prompt(tokenizer, instruction, " " + transcript)
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        if len(ids) >= settings.max_prompt_tokens:
            report.drop(cut.id, behaviour, "prompt_too_long", f"{len(ids)} tokens, limit {settings.max_prompt_tokens}")
            progress.update()
            continue
        prompts.append(prompt)
        prompt_ids.append(ids)
        rows[cut.id] = {
            "id": cut.id,
            "transcript": transcript,
            "instruction": instruction,
            "prompt_sha256": hashlib.sha256(prompt.encode()).hexdigest(),
            "llm_revision": report.llm["revision"] or report.llm["sha256"],
            "sampling": {"do_sample": False, "max_new_tokens": settings.max_new_tokens},
        }
    answered: dict[int, Answer] = {}
    for number, answer in engine(prompts):
        answered[number] = answer
        progress.update()
    answers = [answered[number] for number in range(len(prompts))]
    for row, answer in zip(rows.values(), answers, strict=True):
        row |= {"token_ids": answer.token_ids, "text": answer.text, "finish_reason": answer.finish_reason}
        report.keep(shard.split, behaviour, row, answer)
    if settings.top_logprobs:
        for row, (top_ids, logprobs) in zip(rows.values(), _teacher(prompt_ids, answers, settings, model), strict=True):
            row |= {"top_ids": top_ids, "top_logprobs": logprobs}
    return rows


def _teacher(
    prompt_ids: list[list[int]], answers: list[Answer], settings: Continuations, model: Any
) -> Iterator[tuple[list[list[int]], list[list[float]]]]:
    for start in range(0, len(answers), settings.batch_size):
        rows = slice(start, start + settings.batch_size)
        yield from top_logprobs(model, prompt_ids[rows], answers[rows], settings.top_logprobs)


class _Report:
    """Counts of everything written and dropped, with the first rows of the test split to read."""

    def __init__(self, settings: Continuations) -> None:
        self.llm, self.engine = llm_pin(), settings.engine
        self.rows: dict[str, Counter[str]] = {name: Counter() for name in settings.behaviours}
        self.finish: dict[str, Counter[str]] = {name: Counter() for name in settings.behaviours}
        self.dropped: dict[str, Counter[str]] = {name: Counter() for name in settings.behaviours}
        self.dropped_rows: list[dict[str, str]] = []
        self.samples: list[dict[str, str]] = []

    def keep(self, split: str, behaviour: str, row: dict[str, Any], answer: Answer) -> None:
        self.rows[behaviour].update(rows=1, tokens=len(answer.token_ids))
        self.finish[behaviour][answer.finish_reason] += 1
        if split == "test" and self.rows[behaviour]["samples"] < SAMPLES_PER_BEHAVIOUR:
            self.rows[behaviour]["samples"] += 1
            shown = {key: row[key] for key in ("id", "transcript", "text")}
            self.samples.append({"behaviour": behaviour, **shown})

    def drop(self, cut_id: str, behaviour: str, reason: str, detail: str) -> None:
        self.dropped[behaviour][reason] += 1
        self.dropped_rows.append({"id": cut_id, "behaviour": behaviour, "reason": reason, "detail": detail})

    def as_dict(self) -> dict[str, Any]:
        behaviours = {
            name: {
                "rows": self.rows[name]["rows"],
                "tokens": self.rows[name]["tokens"],
                "finish_reason": {reason: self.finish[name][reason] for reason in ("stop", "length")},
                "dropped": dict(self.dropped[name]),
            }
            for name in self.rows
        }
        return {
            "llm": self.llm,
            "engine": self.engine,
            "behaviours": behaviours,
            "dropped_rows": self.dropped_rows,
            "samples": self.samples,
        }

    def summary(self) -> str:
        lines = []
        for name, count in self.rows.items():
            mean = count["tokens"] / max(count["rows"], 1)
            lines.append(
                f"{name}: {count['rows']} rows of {mean:.1f} tokens, {self.finish[name]['length']} cut at the limit, "
                f"{self.dropped[name].total()} dropped"
            )
        return "\n".join(lines)
