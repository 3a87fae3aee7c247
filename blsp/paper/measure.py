"""The stage `measure`: all that is asked of one trained variant, kept item by item, to be compared later.

In models/variants/NAME-SEED/measured: answers.parquet (blsp.evaluation.answers), gaps.parquet (the behaviour gap of
each test utterance by what was asked), similarity.json (speech and text states: by layer, and in the last one by task
and by length of the audio) and clusters.parquet (where utterances lie in the last layer).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from blsp.backbones import device_map
from blsp.evaluation.answers import ask, write_answers
from blsp.evaluation.clusters import cluster_points
from blsp.evaluation.gap import answered, continued, utterance_gaps
from blsp.evaluation.perplexity import with_perplexity
from blsp.evaluation.resampling import resampling_of
from blsp.evaluation.similarity import last_layer, last_layer_by_length, similarity
from blsp.evaluation.states import PLACES, PLACES_OF_A_TASK, States, layer_states, sample
from blsp.evaluation.systems import speech_system
from blsp.evaluation.tasks import Item, heard_in_training, heard_languages, items_of, some_of, test_items
from blsp.files import replace_dir, write_bytes, write_json
from blsp.params import Params
from blsp.training.examples import Example
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
        answers = ask(systems, settings.tasks, items, places.seed, limit=settings.items)
        answers = with_perplexity(answers, settings.tasks, model.language_model, processor.tokenizer, settings)
        write_answers(answers, folder / ANSWERS)
        examples = dict(examples_by_task(model, processor, params, items))
        gaps = pd.concat(
            [
                pd.DataFrame(utterance_gaps(model, processor, own, settings.batch_size)).assign(task=task)
                for task, own in examples.items()
            ],
            ignore_index=True,
        )
        gaps = gaps.assign(system=places.variant, seed=places.seed)
        write_bytes(folder / GAPS, gaps.to_parquet(index=False))
        found, clusters = similarities(model, processor, params, examples)
        write_json(folder / SIMILARITY, found)
        write_bytes(folder / CLUSTERS, clusters.to_parquet(index=False))
    print(f"{places.measured}: {len(items)} test utterances measured")


def examples_by_task(
    model: Any, processor: Any, params: Params, items: list[Item]
) -> Iterator[tuple[str, list[Example]]]:
    """Each task's name and its utterances with the LLM's own answers, along which hearing and reading are compared.

    First the behaviour of training, with what the LLM wrote for the corpus, in the languages that training heard;
    then each other task under its first instruction, with what the LLM now answers to the transcript.
    """
    settings, behaviour = params.evaluate, first_behaviour(params)
    heard = heard_in_training(items, heard_languages())
    yield behaviour, some_of(continued(behaviour, heard, settings.batch_size), settings.items)
    for name, task in settings.tasks.items():
        if name != behaviour and (judged := items_of(task, items, settings.items)):
            prompt, batch_size = task.prompt(task.instructions[0]), settings.batch_size
            yield name, answered(model, processor, judged, prompt, batch_size, settings.max_new_tokens)


def similarities(
    model: Any, processor: Any, params: Params, examples: Mapping[str, Sequence[Example]]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """How alike states on speech and on text are, and where utterances lie in the last layer (blsp.evaluation).

    {"layers": `similarity` on the behaviour of training, "tasks": {task: `last_layer`}, "lengths": the behaviour's
    `last_layer_by_length`}.
    """
    resampling, behaviour = resampling_of(params.evaluate), first_behaviour(params)
    some = sample(examples[behaviour], params.evaluate.seed)
    spoken, written = both_sides(model, processor, params, some, PLACES)
    lengths_s = [example.num_samples / params.corpus.sampling_rate_hz for example in some]
    by_task = {}
    for task, own in examples.items():
        sides = both_sides(model, processor, params, sample(own, params.evaluate.seed), PLACES_OF_A_TASK)
        by_task[task] = last_layer(*sides, resampling, task)
    found = {
        "layers": similarity(spoken, written, resampling, behaviour),
        "tasks": {task: figures for task, figures in by_task.items() if figures},
        "lengths": last_layer_by_length(spoken, written, lengths_s, resampling, behaviour),
    }
    return found, cluster_points(spoken, written)


def both_sides(
    model: Any, processor: Any, params: Params, examples: Sequence[Example], places: int
) -> tuple[States, States]:
    """The LLM's states on the speech and on the text of the same utterances."""
    batch_size, seed = params.evaluate.batch_size, params.evaluate.seed
    spoken, written = (
        layer_states(model, processor, examples, side, batch_size, seed, places) for side in ("spoken", "written")
    )
    return spoken, written


def first_behaviour(params: Params) -> str:
    """The behaviour on which gaps are measured: the first that continuations.behaviours names."""
    return next(iter(params.continuations.behaviours))


def places_of_all(params: Params, name: str) -> list[Places]:
    """Those of a variant or an ablation, a seed after the other."""
    group = "variants" if name in params.experiments.variants else "ablations"
    return [places_of(name, seed, group) for seed in params.experiments.seeds]
