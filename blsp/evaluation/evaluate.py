"""The `evaluate` stage: every system on every task, on the same held-out items, and the behaviour gap."""

from typing import Any

from tqdm import tqdm

from blsp import tracking
from blsp.backbones import pins
from blsp.data.batches import evaluation_batches
from blsp.data.text import plain_words
from blsp.evaluation import report
from blsp.evaluation.metrics import Figure, Resampling, ratio
from blsp.evaluation.systems import System, cascade_system, speech_system, text_system
from blsp.evaluation.tasks import TASKS, Item, Task, test_items, with_reference
from blsp.files import sha256_of
from blsp.params import Params
from blsp.training.train import ADAPTER_DIR, new_config

EXAMPLES_PER_TASK = 5


def run(params: Params) -> None:
    """Nothing; afterwards reports/ holds evaluation.json, evaluation.md and figures/."""
    with tracking.mirror_after(params):  # MLflow is imported beside the evaluation, not after it
        evaluation = _evaluate(params)
        report.write(evaluation)
    print(report.table(evaluation))


def _evaluate(params: Params) -> dict[str, Any]:
    from accelerate.utils import set_seed

    from blsp.model import BlspForConditionalGeneration, BlspProcessor

    settings = params.evaluate
    set_seed(params.train.seed)
    items = test_items()
    processor = BlspProcessor.from_pretrained(ADAPTER_DIR)
    model = BlspForConditionalGeneration.from_pretrained(ADAPTER_DIR, device_map=device_map())
    config = new_config(params, processor.audio_token_id)
    fresh = BlspForConditionalGeneration.from_backbones(config, device_map=device_map())
    systems: dict[str, System] = {
        "text": text_system(settings),
        "cascade": cascade_system(settings, items),
        "speech": speech_system(settings, model, processor),
        "untrained": speech_system(settings, fresh, processor),
    }
    resampling = Resampling(
        settings.bootstrap_samples,
        settings.confidence,
        settings.seed,
        params.corpus.normalizer,
        lambda text: plain_words(text, params.corpus.normalizer),
    )
    figures, examples = compare(systems, params, items, resampling)
    return {
        "systems": figures,
        "alignment": alignment(model, processor, params, resampling),
        "test": {
            "utterances": len(items),
            "audio_s": sum(len(item.samples) for item in items) / params.corpus.sampling_rate_hz,
        },
        "instructions": dict(settings.tasks),
        "examples": examples,
        "adapter_sha256": sha256_of(ADAPTER_DIR),
        "backbones": pins(),
    }


def compare(
    systems: dict[str, System], params: Params, items: list[Item], resampling: Resampling
) -> tuple[dict[str, dict[str, dict[str, Figure]]], list[dict[str, Any]]]:
    """{system: {task: {metric: figure}}}, and a few items of each task with every system's answer.

    A task for which no item has a reference is left out and said so.
    """
    figures: dict[str, dict[str, dict[str, Figure]]] = {name: {} for name in systems}
    examples: list[dict[str, Any]] = []
    with tqdm(total=len(params.evaluate.tasks) * len(systems), desc="evaluate", unit="run") as progress:
        for name, instruction in params.evaluate.tasks.items():
            task: Task = TASKS[name]
            judged, references = with_reference(task, items)
            if not judged:
                print(f"evaluate: no test item has a reference for {name}; the task is left out")
                continue
            answers = {}
            for system, answer in systems.items():
                answers[system] = answer(instruction, judged)
                figures[system][name] = {task.metric: task.score(answers[system], references, resampling)}
                progress.update()
            for row in range(0, len(judged), max(len(judged) // EXAMPLES_PER_TASK, 1)):
                given = {system: answers[system][row] for system in systems}
                examples.append({"task": name, "id": judged[row].id, "reference": references[row], **given})
    return figures, examples


def alignment(model: Any, processor: Any, params: Params, resampling: Resampling) -> dict[str, Figure]:
    """The behaviour gap on the test split's continuations: KL in nats a token, and top-1 agreement.

    Both compare the LLM's next-token distribution given the speech with the one given the transcript, along
    the continuation that the LLM wrote from the transcript.
    """
    from blsp.training.examples import Collator
    from blsp.training.objective import AlignmentObjective

    behaviour = next(iter(params.train.shares))
    collator, objective = Collator(processor), AlignmentObjective(model)
    kl: list[float] = []
    agreement: list[float] = []
    tokens: list[float] = []
    for examples in evaluation_batches("test", behaviour, params.evaluate.batch_size):
        gap = objective.divergence(collator(examples).to(model.device))
        kl, agreement = kl + gap.kl.tolist(), agreement + gap.agreement.tolist()
        tokens += gap.tokens.tolist()
    return {
        "kl": ratio(kl, tokens, resampling, f"KL(text || speech), nats a token|{behaviour}|temperature:1"),
        "top1_agreement": ratio(agreement, tokens, resampling, f"same most likely token|{behaviour}"),
    }
