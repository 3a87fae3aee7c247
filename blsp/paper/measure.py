"""The stage `measure`: all that is asked of one trained variant, kept item by item, to be compared later.

In models/variants/NAME-SEED/measured: answers.parquet (blsp.evaluation.answers), gaps.parquet (the behaviour gap of
each test utterance by what was asked), similarity.json (speech and text states, layer by layer) and clusters.parquet
(where utterances lie in the last layer).
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from blsp.backbones import device_map
from blsp.evaluation.answers import ask, write_answers
from blsp.evaluation.clusters import cluster_points
from blsp.evaluation.gap import answered, continued, utterance_gaps
from blsp.evaluation.perplexity import with_perplexity
from blsp.evaluation.resampling import resampling_of
from blsp.evaluation.similarity import similarity
from blsp.evaluation.states import States, layer_states, sample
from blsp.evaluation.systems import speech_system
from blsp.evaluation.tasks import Item, heard_in_training, items_of, test_items
from blsp.files import replace_dir, write_bytes, write_json
from blsp.params import Params
from blsp.training.places import Places, places_of

ANSWERS, GAPS, SIMILARITY, CLUSTERS = "answers.parquet", "gaps.parquet", "similarity.json", "clusters.parquet"


def run(params: Params, places: Places) -> None:
    """Nothing; afterwards `places.measured` holds what was measured of the adapter that lies in `places.adapter`."""
    from accelerate.utils import set_seed

    from blsp.model import BlspForConditionalGeneration, BlspProcessor

    assert places.variant is not None and places.seed is not None and places.measured is not None
    set_seed(places.seed)
    settings, items = params.evaluate, test_items()
    processor = BlspProcessor.from_pretrained(places.adapter)
    model = BlspForConditionalGeneration.from_pretrained(places.adapter, device_map=device_map())
    systems = {places.variant: speech_system(settings, model, processor)}
    with replace_dir(places.measured) as folder:
        answers = ask(systems, settings.tasks, items, places.seed)
        answers = with_perplexity(answers, settings.tasks, model.language_model, processor.tokenizer, settings)
        write_answers(answers, folder / ANSWERS)
        gaps = pd.concat(gaps_by_task(model, processor, params, items), ignore_index=True)
        gaps = gaps.assign(system=places.variant, seed=places.seed)
        write_bytes(folder / GAPS, gaps.to_parquet(index=False))
        spoken, written = states(model, processor, params, items)
        write_json(folder / SIMILARITY, similarity(spoken, written, resampling_of(settings)))
        write_bytes(folder / CLUSTERS, cluster_points(spoken, written).to_parquet(index=False))
    print(f"{places.measured}: {len(items)} test utterances measured")


def gaps_by_task(model: Any, processor: Any, params: Params, items: list[Item]) -> Iterator[pd.DataFrame]:
    """A table a task: id, samples, kl, agreement, tokens (blsp.evaluation.gap), task.

    First the behaviour of training, along what the LLM wrote for the corpus; then each task's first instruction,
    along what the LLM now answers to the transcript.
    """
    settings, behaviour = params.evaluate, first_behaviour(params)
    written = continued(behaviour, heard_in_training(items), settings.batch_size)
    yield pd.DataFrame(utterance_gaps(model, processor, written, settings.batch_size)).assign(task=behaviour)
    for name, task in settings.tasks.items():
        if judged := items_of(task, items):
            instruction = task.instructions[0]
            examples = answered(model, processor, judged, instruction, settings.batch_size, settings.max_new_tokens)
            yield pd.DataFrame(utterance_gaps(model, processor, examples, settings.batch_size)).assign(task=name)


def states(model: Any, processor: Any, params: Params, items: list[Item]) -> tuple[States, States]:
    """The LLM's states on speech and on text, along the continuations of the test split."""
    settings = params.evaluate
    written_for = continued(first_behaviour(params), heard_in_training(items), settings.batch_size)
    examples = sample(written_for, settings.seed)
    spoken, written = (
        layer_states(model, processor, examples, side, settings.batch_size, settings.seed)
        for side in ("spoken", "written")
    )
    return spoken, written


def first_behaviour(params: Params) -> str:
    """The behaviour on which gaps are measured: the first that continuations.behaviours names."""
    return next(iter(params.continuations.behaviours))


def places_of_all(params: Params, name: str) -> list[Places]:
    """Those of a variant or an ablation, a seed after the other."""
    group = "variants" if name in params.experiments.variants else "ablations"
    return [places_of(name, seed, group) for seed in params.experiments.seeds]
