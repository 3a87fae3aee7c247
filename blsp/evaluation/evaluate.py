"""The `evaluate` stage: every system on every task, on the same held-out items, and the behaviour gap."""

from collections.abc import Container, Sequence, Set
from typing import Any

import pandas as pd

from blsp import tracking
from blsp.backbones import device_map, pins
from blsp.evaluation import page, report
from blsp.evaluation.answers import ask, write_answers
from blsp.evaluation.gap import continued, floored_figures, floored_gaps, share_figure
from blsp.evaluation.judge import ASPECTS, judge
from blsp.evaluation.perplexity import with_perplexity
from blsp.evaluation.resampling import Figure, Resampling, ratio, resampling_of
from blsp.evaluation.scores import Measured, grade, measure, metrics_of, without_words
from blsp.evaluation.sensitivity import measure_sensitivity
from blsp.evaluation.systems import all_systems
from blsp.evaluation.tasks import heard_before, heard_in_training, heard_languages, some_of, test_items
from blsp.files import sha256_of
from blsp.params import Params
from blsp.training.train import ADAPTER_DIR

ANSWERS = "reports/answers.parquet"
COMPARED = (("speech", "cascade"), ("speech", "text"), ("speech", "untrained"))
EXAMPLES_PER_TASK = 5


def run(params: Params) -> None:
    """Write evaluation.json, evaluation.md, figures/ and every answer, answers.parquet, into reports/."""
    with tracking.mirror_after(params):  # MLflow is imported beside the evaluation, not after it
        evaluation = _evaluate(params)
        report.write(evaluation)
    print(report.table(evaluation))


def _evaluate(params: Params) -> dict[str, Any]:
    from accelerate.utils import set_seed

    from blsp.model import BlspForConditionalGeneration, BlspProcessor

    settings = params.evaluate
    items = test_items()
    known = {item.id: item for item in items}
    processor = BlspProcessor.from_pretrained(ADAPTER_DIR)
    model = BlspForConditionalGeneration.from_pretrained(ADAPTER_DIR, device_map=device_map())
    set_seed(params.train.seed)
    untrained = model.fresh_adapter()
    systems = all_systems(settings, model, processor, untrained)
    resampling = resampling_of(settings)
    answers = ask(systems, settings.tasks, items, params.train.seed, limit=settings.items)
    answers = with_perplexity(answers, settings.tasks, model.language_model, processor.tokenizer, settings)
    unscorable = answers[without_words(answers, settings.tasks, params.corpus.normalizer)]
    graded = grade(answers, settings.tasks, params.corpus.normalizer)
    write_answers(graded, ANSWERS)
    page.write_page(
        graded,
        page.Systems(ours="speech", against="cascade"),
        lambda id_, condition: known[id_].as_heard,
        about="The systems of reports/evaluation.md.",
    )
    heard = heard_languages()
    measured = measure_answers(graded, params, heard)
    return {
        "systems": figures(measured, resampling),
        "comparisons": comparisons(measured, COMPARED, resampling),
        "judge": judged(answers, params, resampling) if settings.judge else None,
        "alignment": alignment(model, processor, untrained, heard_in_training(items, heard), params, resampling),
        "test": {
            "utterances": len(items),
            "audio_s": sum(len(item.samples) / item.sampling_rate_hz for item in items),
            "items": settings.items,
            **heard_before(items),
            "without_reference_words": unscorable.groupby("task")["id"].nunique().to_dict(),
        },
        "confidence": settings.confidence,
        "tasks": tasks_of(measured, graded, heard),
        "instructions": {name: task.instructions for name, task in settings.tasks.items()},
        "examples": examples(graded),
        "adapter_sha256": sha256_of(ADAPTER_DIR),
        "backbones": pins(),
    }


def measure_answers(graded: pd.DataFrame, params: Params, heard: Set[str | None]) -> list[Measured]:
    """What is measured of the answers in this table; instruction sensitivity in the languages that training heard."""
    tasks = params.evaluate.tasks
    metrics = metrics_of(graded, tasks, params.corpus.normalizer)
    known = graded[graded["language"].isin(heard)] if heard else graded
    return [*measure(graded, tasks, metrics, params.evaluate.items), *measure_sensitivity(known, tasks)]


def figures(measured: Sequence[Measured], resampling: Resampling) -> dict[str, dict[str, dict[str, Figure]]]:
    """{system: {task: {metric: figure}}}."""
    found: dict[str, dict[str, dict[str, Figure]]] = {}
    for one in measured:
        for system in one.counts:
            found.setdefault(system, {}).setdefault(one.task, {})[one.metric] = one.figure(system, resampling)
    return found


def tasks_of(measured: Sequence[Measured], graded: pd.DataFrame, heard: Set[str | None]) -> list[dict[str, Any]]:
    """What is measured, in its order: of each task the name, the metric and whether more of it is better.

    `heard` is false where the graded answers are all to speech in languages that training never heard.
    """
    languages = {
        str(name): {None if pd.isna(language) else language for language in own}
        for name, own in graded.groupby("task")["language"]
    }
    return [
        {
            "name": one.task,
            "metric": one.metric,
            "higher_is_better": one.higher_is_better,
            "heard": not heard or one.task not in languages or bool(languages[one.task] & heard),
        }
        for one in measured
    ]


def comparisons(
    measured: Sequence[Measured], pairs: Sequence[Sequence[str]], resampling: Resampling
) -> list[dict[str, Any]]:
    """A row each pair of systems and metric that both have: how much more the first has, its interval and p."""
    return [
        {"system": ours, "than": theirs, "task": one.task, "metric": one.metric}
        | one.difference(ours, theirs, resampling)
        for ours, theirs in pairs
        for one in measured
        if ours in one.counts and theirs in one.counts
    ]


def judged(answers: pd.DataFrame, params: Params, resampling: Resampling) -> dict[str, Any]:
    """{"figures": {system: {aspect: mean grade}}, "questions", "unreadable"}: what the judge says of the answers."""
    assert params.evaluate.judge is not None
    found = judge(answers, params.evaluate.judge, params.execution.prompts_at_once, params.evaluate.seed)
    scores = found.scores
    return {
        "figures": {
            system: {
                aspect: ratio(own[aspect].tolist(), [1.0] * len(own), resampling, f"{aspect}|{found.signature}")
                for aspect in ASPECTS
            }
            for system, own in scores.groupby("system", sort=False)
        },
        "questions": found.questions,
        "unreadable": found.unreadable,
    }


def examples(graded: pd.DataFrame) -> list[dict[str, Any]]:
    """A few items of each task under its first instruction, from the shortest to the longest, with every answer."""
    found = []
    for task, rows in graded.groupby("task", sort=False):
        first = rows[rows["instruction"] == rows["instruction"].iloc[0]]
        answers = first.pivot(index="id", columns="system", values="answer")
        judged = first.drop_duplicates("id")
        for row in judged.iloc[:: max(len(judged) // EXAMPLES_PER_TASK, 1)].itertuples():
            found.append({"task": task, "id": row.id, "reference": row.reference, **answers.loc[row.id].to_dict()})
    return found


def alignment(
    model: Any, processor: Any, untrained: Any, ids: Container[str], params: Params, resampling: Resampling
) -> dict[str, Any]:
    """The behaviour gap on the test split's continuations of the utterances with these ids; empty without any.

    {"kl", "top1_agreement"}: of the first behaviour that was trained. {"share", "content_share"}: of all of them,
    weighted by their shares of the training. {behaviour: `floored_figures`}.
    """
    settings = params.evaluate
    shares = {name: share for name, share in params.train.shares.items() if share > 0}
    gaps = {}
    for name in shares:
        if examples := some_of(continued(name, ids, settings.batch_size), settings.items):
            gaps[name] = floored_gaps(model, processor, examples, settings.batch_size, untrained)
    if not gaps:
        return {}
    found = {name: floored_figures(own, resampling, name) for name, own in gaps.items()}
    first = next(iter(found.values()))
    whole = {f"{prefix}share": share_figure(gaps, shares, resampling, prefix) for prefix in ("", "content_")}
    return {
        **{key: first[key] for key in ("kl", "top1_agreement")},
        **{key: figure for key, figure in whole.items() if figure},
        **found,
    }
