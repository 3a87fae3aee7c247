"""The `continuations` stage: for each transcript and behaviour, what the LLM writes, as one more Shar field."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from blsp.backbones import load_tokenizer, pins
from blsp.continuation import text_side
from blsp.continuation.answers import Asker, answer_prompts, read_answers
from blsp.continuation.openai_server import SETTINGS, check_server
from blsp.continuation.page import write_page
from blsp.continuation.sheets import Sheet, ended, fill_sheet, make_sheet
from blsp.data.drops import DROPPED, write_drops
from blsp.data.records import SPLITS
from blsp.data.shards import CONTINUATIONS_DIR, iter_shards, write_field
from blsp.errors import BlspError
from blsp.executor import run_each
from blsp.files import replace_dir, write_json
from blsp.params import Continuations, Params
from blsp.servers import Server
from blsp.staging import Staging, staging_of

REPORT = "reports/continuations.json"
EXAMPLES_PER_REASON = 3


def run(params: Params) -> None:
    """Nothing; afterwards every shard of the corpus has one field a behaviour; report and page say what is there.

    A run that was killed keeps the answers of its finished shards: run again, it asks for the rest.
    Raises BlspError where there is nothing to write from.
    """
    report = _Report(params.continuations, pins()["llm"])
    with replace_dir(CONTINUATIONS_DIR) as folder:
        write_drops(folder / DROPPED, _write_fields(params, folder, report))
        if not report.utterances:
            raise BlspError("data/corpus holds no utterance to write from; run `blsp corpus`")
    _staging(params).forget()
    write_json(REPORT, report.as_dict())
    write_page(report.as_dict())
    print(report.summary())


def _write_fields(params: Params, folder: Path, report: "_Report") -> Iterator[dict[str, str]]:
    """The rows that are left out, while the fields of all shards are written into `folder`."""
    settings, tokenizer, asker = params.continuations, load_tokenizer(), _asker(params)
    if asker.server is not None:
        check_server(asker.server, tokenizer)
    shards = [shard for split in SPLITS for shard in iter_shards(split)]
    asked: deque[Sheet] = deque()

    def prompts() -> Iterator[list[str]]:
        for shard in shards:
            for behaviour in settings.behaviours:
                asked.append(make_sheet(shard, behaviour, settings, tokenizer))
                yield asked[-1].prompts

    chosen = text_side.dev_items()
    looked_at = {name: text_side.Asked() for name in settings.behaviours}
    staging = _staging(params)
    answer = partial(answer_prompts, asker=asker, staging=staging)
    total, finished = sum(map(len, shards)) * len(settings.behaviours), 0
    with tqdm(total=total, desc="continuations", unit=" utterances", mininterval=0.5) as progress:
        if params.execution.executor == "local" and params.execution.processes == 1:
            answer = partial(answer, done=progress.update)  # other processes tell of whole shards
        for name in run_each(answer, prompts(), params.execution, gpus=0 if asker.server else 1):
            sheet = asked.popleft()
            answers = ended(sheet, read_answers(name, staging), tokenizer)
            if sheet.shard.split == "dev":
                looked_at[sheet.behaviour].add(sheet, [written.answer for written in answers], chosen)
            rows, dropped = fill_sheet(sheet, answers, settings, asker.pin, params.corpus.normalizer)
            write_field(sheet.shard, sheet.behaviour, rows, folder)
            report.add(sheet, rows, dropped)
            finished += len(rows) + len(dropped) + sheet.rows_not_asked
            progress.update(finished - progress.n)
            yield from dropped
    report.text_side = text_side.look(looked_at, chosen, params, asker, staging)


def _asker(params: Params) -> Asker:
    """How prompts are answered, here and by workers whose working directory is another."""
    settings, execution = params.continuations, params.execution
    pin = pins()["llm"]
    pin = {**pin, "name": str(Path(pin["name"]).resolve())}
    server = None
    if settings.engine == "openai":
        at_once, timeout_s = execution.prompts_at_once, execution.timeout_s
        server = Server(str(execution.server_url), str(settings.server_model), at_once, timeout_s, SETTINGS)
    kept = settings.top_logprobs, params.train.temperature
    return Asker(pin, params.train.precision, settings.max_new_tokens, *kept, execution.prompts_at_once, server)


def _staging(params: Params) -> Staging:
    return staging_of(params.execution).at("answers")


class _Report:
    """Counts of everything written and dropped, by behaviour."""

    def __init__(self, settings: Continuations, llm: Mapping[str, Any]) -> None:
        self.settings, self.llm, self.utterances = settings, llm, 0
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in settings.behaviours}
        self.finish: dict[str, Counter[str]] = {name: Counter() for name in settings.behaviours}
        self.dropped: dict[str, Counter[str]] = {name: Counter() for name in settings.behaviours}
        self.examples: list[dict[str, str]] = []
        self.text_side: dict[str, Any] = {}

    def add(self, sheet: Sheet, rows: Mapping[str, Mapping[str, Any]], dropped: list[dict[str, str]]) -> None:
        """Counts one shard of one behaviour."""
        name = sheet.behaviour
        self.utterances += len(rows) + len(dropped) + sheet.rows_not_asked
        self.counts[name].update(
            rows=len(rows),
            rows_not_asked=sheet.rows_not_asked,
            tokens=sum(len(row["token_ids"]) for row in rows.values()),
        )
        self.finish[name].update(row["finish_reason"] for row in rows.values())
        for row in dropped:
            self.dropped[name][row["reason"]] += 1
            if self.dropped[name][row["reason"]] <= EXAMPLES_PER_REASON:
                self.examples.append(row)

    def as_dict(self) -> dict[str, Any]:
        behaviours = {
            name: {
                "share": behaviour.share,
                "instructions": behaviour.instructions,
                **(behaviour.prompt("").style or {}),
                **{key: self.counts[name][key] for key in ("rows", "rows_not_asked", "tokens")},
                "finish_reason": {reason: self.finish[name][reason] for reason in ("stop", "length")},
                "dropped": dict(self.dropped[name]),
            }
            for name, behaviour in self.settings.behaviours.items()
        }
        return {
            "llm": self.llm,
            "engine": self.settings.engine,
            "behaviours": behaviours,
            "text_side": self.text_side,
            "dropped_examples": self.examples,
        }

    def summary(self) -> str:
        """For the terminal: one line a behaviour, and below it one a reason."""
        lines = []
        for name, count in self.counts.items():
            mean, cut = count["tokens"] / max(count["rows"], 1), self.finish[name]["length"]
            lines.append(
                f"{name}: {count['rows']:,} rows of {mean:.1f} tokens, {cut:,} cut at the limit, "
                f"{self.dropped[name].total():,} dropped, {count['rows_not_asked']:,} not asked for"
            )
            lines += [f"  {reason:22}{number:>10,}" for reason, number in sorted(self.dropped[name].items())]
        return "\n".join([*lines, text_side.summary(self.text_side)])
