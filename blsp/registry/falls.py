"""Whether any task fell: the adapter's answers against the champion's, task by task, on the same test items."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blsp.errors import BlspError
from blsp.gates import Check
from blsp.params import Params
from blsp.tracking.local import ANSWERS
from blsp.tracking.store import Store

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import Run

LLM_TAG = "blsp.backbone.llm.sha256"
SYSTEM = "speech"
# Two rows are the same question where all of this is the same; an id alone may have got other audio since.
QUESTION = ["task", "instruction", "id", "transcript", "reference", "audio_s"]
SHARED = 0.5  # of the questions of a task; on fewer, an interval is too wide to show a fall


@dataclass(frozen=True)
class Falls:
    """A check for each task that both were asked, and the tasks that cannot be compared, each with the reason."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def check_falls(ours: "pd.DataFrame", theirs: "pd.DataFrame", params: Params, *, same_llm: bool) -> Falls:
    """What became of every task's own metric, from both tables of answers (blsp.evaluation.answers).

    A task fell where the whole paired interval of the difference lies beyond what promote.tolerated_falls bears: then
    it is not the choice of test items that makes it look worse. Raises BlspError where a task's items are, for the most
    part, not those that the champion answered: a comparison that can show nothing must not pass.
    """
    import pandas as pd

    from blsp.evaluation.resampling import resampling_of
    from blsp.evaluation.scores import grade, measure, metrics_of

    tasks = params.evaluate.tasks
    ours, theirs = _own(ours), _own(theirs)
    notes = list(_not_compared(ours, theirs, params, same_llm))
    compared = [
        name for name in tasks if not any(note.startswith(f"{name}: ") for note in notes) and name in set(ours["task"])
    ]
    ours = ours[ours["task"].isin(compared)]
    pairs = ours.merge(theirs, on=QUESTION, suffixes=("", "_theirs"))
    _refuse_strangers(ours, pairs)
    if pairs.empty:
        return Falls((), tuple(notes))
    columns = [*QUESTION, "language", "answer", "counts"]
    table = pd.concat(
        [
            pairs[columns].assign(system="ours"),
            pairs[columns].assign(answer=pairs["answer_theirs"], counts=pairs["counts_theirs"], system="theirs"),
        ],
        ignore_index=True,
    ).assign(seed=0)
    graded = grade(table, tasks, params.corpus.normalizer)
    resampling = resampling_of(params.evaluate)
    checks = []
    for one in measure(graded, tasks, metrics_of(graded, tasks, params.corpus.normalizer)):
        found = one.difference("ours", "theirs", resampling)
        tolerated = params.promote.tolerated_falls.get(one.task, 0.0)
        asked = ours.loc[ours["task"] == one.task, "id"].nunique()
        checks.append(
            Check(
                metric=f"{SYSTEM}.{one.task}.{one.metric} less champion's",
                value=found["high"] if one.higher_is_better else found["low"],
                bound=-tolerated if one.higher_is_better else tolerated,
                lowest=one.higher_is_better,
                source=(
                    f"{found['value']:+.4g} [{found['low']:+.4g}, {found['high']:+.4g}] on {found['n']} of {asked} "
                    f"items, p {found['p']:.3f}"
                ),
            )
        )
    return Falls(tuple(checks), tuple(notes))


def champions_answers(opened: Store, runs: "list[Run]", version: str) -> "pd.DataFrame":
    """The champion's answers, from the first of its runs that has them. Raises BlspError where none does."""
    import pandas as pd

    name = Path(ANSWERS).name
    for run in runs:
        if any(item.path == name for item in opened.client.list_artifacts(run.info.run_id)):
            with tempfile.TemporaryDirectory() as folder:
                return pd.read_parquet(opened.client.download_artifacts(run.info.run_id, name, folder))
    log_it = f"mlflow artifacts log-artifact --run-id {runs[0].info.run_id} --local-file reports/{name}"
    raise BlspError(
        f"promote.no_task_may_fall: the run of the champion (version {version}) has no {name} to compare with. Log the "
        f"file that its evaluation left (`{log_it}`), or evaluate it again (docs/registry.md); or set "
        "promote.no_task_may_fall to false"
    )


def _own(table: "pd.DataFrame") -> "pd.DataFrame":
    from blsp.evaluation.answers import CLEAN

    return table[(table["system"] == SYSTEM) & (table["condition"] == CLEAN)].drop_duplicates(QUESTION)


def _not_compared(ours: "pd.DataFrame", theirs: "pd.DataFrame", params: Params, same_llm: bool) -> Iterator[str]:
    tasks, asked, answered = params.evaluate.tasks, set(ours["task"]), set(theirs["task"])
    for name in [*tasks, *sorted(answered - set(tasks))]:
        if name in asked and name not in answered:
            yield f"{name}: the champion was never asked it"
        elif name in answered and name not in asked:
            yield f"{name}: asked of the champion alone"
        elif name in asked and tasks[name].metric == "perplexity" and not same_llm:
            yield f"{name}: its perplexity is that of another LLM than the champion's"


def _refuse_strangers(ours: "pd.DataFrame", pairs: "pd.DataFrame") -> None:
    shared = pairs.groupby("task").size().to_dict()
    for task, count in ours.groupby("task").size().items():
        if shared.get(task, 0) < SHARED * count:
            raise BlspError(
                f"promote.no_task_may_fall: of {count} answers to {task} only {shared.get(task, 0)} are to what the "
                "champion was asked too: its evaluation is of other test items or other instructions. Evaluate it "
                "again on these (docs/registry.md), or set promote.no_task_may_fall to false"
            )
