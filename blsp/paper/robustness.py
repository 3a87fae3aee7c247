"""The stage `robustness`: what the cascade and the pipeline's own adapter answer to test audio that was made worse."""

from dataclasses import replace

import pandas as pd

from blsp.backbones import device_map
from blsp.evaluation.answers import ask, write_answers
from blsp.evaluation.conditions import conditions
from blsp.evaluation.systems import System, cascade_system, speech_system
from blsp.evaluation.tasks import heard_in_training, heard_languages, items_of, test_items
from blsp.params import Params, Task
from blsp.training.train import PIPELINE

ANSWERS = "reports/robustness.parquet"


def run(params: Params) -> None:
    """Nothing; afterwards reports/robustness.parquet has the answers under every condition of evaluate.conditions.

    Asked are the test utterances in languages that training heard, for the tasks that are about any of them.
    """
    from accelerate.utils import set_seed

    from blsp.model import BlspForConditionalGeneration, BlspProcessor

    set_seed(params.train.seed)
    settings, every = params.evaluate, test_items()
    heard = heard_in_training(every, heard_languages())
    items = [item for item in every if item.id in heard]
    tasks = {name: task for name, task in judged_tasks(params).items() if items_of(task, items)}
    processor = BlspProcessor.from_pretrained(PIPELINE.adapter)
    model = BlspForConditionalGeneration.from_pretrained(PIPELINE.adapter, device_map=device_map())
    systems: dict[str, System] = {
        "cascade": cascade_system(settings, params.train.precision),
        "speech": speech_system(settings, model, processor),
    }
    tables = []
    for name, alter in conditions(params, [item.samples for item in items]).items():
        altered = [replace(item, samples=alter(*item.as_heard, item.id)) for item in items]
        tables.append(ask(systems, tasks, altered, params.train.seed, name))
    write_answers(pd.concat(tables, ignore_index=True), ANSWERS)
    print(f"{ANSWERS}: {len(tables)} conditions, {len(items)} test utterances each")


def judged_tasks(params: Params) -> dict[str, Task]:
    """The tasks that have right answers, each with its first instruction."""
    return {
        name: task.model_copy(update={"instructions": task.instructions[:1]})
        for name, task in params.evaluate.tasks.items()
        if task.reference is not None
    }
