"""Every system's answers as one table: a row is one item under one instruction of one task.

Its columns: `system`, `seed` (of its adapter's training), `condition` (what was done to the audio; `clean`: nothing),
`task`, `instruction`, `id`, `language`, `speaker`, `audio_s`, `transcript`, `reference`, `answer`.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from blsp.errors import BlspError
from blsp.evaluation.systems import System
from blsp.evaluation.tasks import Item, items_of, reference_of
from blsp.files import write_bytes
from blsp.params import Task

CLEAN = "clean"


def ask(
    systems: Mapping[str, System],
    tasks: Mapping[str, Task],
    items: list[Item],
    seed: int,
    condition: str = CLEAN,
    limit: int | None = None,
) -> pd.DataFrame:
    """The table of all systems' answers to all tasks' instructions; what was done to the items is `condition`.

    At most `limit` items of a task are asked, where there is one (`items_of`).
    A task that no item has a reference for is left out and said so.
    """
    parts = []
    asked = {name: items_of(task, items, limit) for name, task in tasks.items()}
    total = len(systems) * sum(len(tasks[name].instructions) * len(judged) for name, judged in asked.items())
    with tqdm(total=total, desc=f"answers, {condition}", unit=" utterances", mininterval=1) as progress:
        for name, judged in asked.items():
            if not judged:
                print(f"evaluate: no test item has a reference for {name}; the task is left out")
                continue
            known = pd.DataFrame(
                {
                    "id": [item.id for item in judged],
                    "language": [item.language for item in judged],
                    "speaker": [item.speaker for item in judged],
                    "audio_s": [len(item.samples) / item.sampling_rate_hz for item in judged],
                    "transcript": [item.transcript for item in judged],
                    "reference": [reference_of(tasks[name], item) for item in judged],
                }
            )
            for instruction in tasks[name].instructions:
                prompt = tasks[name].prompt(instruction)
                for system, answer in systems.items():
                    progress.set_postfix_str(f"{name}, {system}")
                    own = known.assign(system=system, seed=seed, condition=condition, task=name)
                    answers = answer(prompt, judged, progress.update)
                    parts.append(own.assign(instruction=instruction, answer=answers))
    if not parts:
        raise BlspError(
            "no test item has a reference for any task of evaluate.tasks in params.yaml; give rows of the split `test` "
            "a translation, an intent or an answer, or look at the tasks' language and source"
        )
    return pd.concat(parts, ignore_index=True)


def write_answers(table: pd.DataFrame, path: str | Path) -> None:
    """Nothing; the table is at `path`, as parquet."""
    write_bytes(path, table.to_parquet(index=False))


def read_answers(path: str | Path, command: str) -> pd.DataFrame:
    """The table that `write_answers` left. Raises BlspError where there is none: `command` is what makes it."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise BlspError(f"{path}: no such file; run `{command}` first") from None
