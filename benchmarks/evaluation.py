"""The evaluation's answers in batches, as the `evaluate` stage makes them, against one by one: same models, in turn.

    python -m benchmarks.evaluation [--items 60] [--rounds 3]

Run it where the pipeline has run: it reads params.yaml, models/ and the test split. `batched` is the systems of
blsp/evaluation/systems.py asked about all items at once, at `evaluate.batch_size`: they recognise or hear an item once,
whatever number of instructions asks about it, and sort by length. `one_by_one` is the same models asked about one item
after the other: the audio goes through the whole model for every instruction, by the call that serving makes, the LLM
reads by `generate`, and the recogniser writes one transcript an item, once. Neither counts loading or scoring. Every
system answers every task.

Figures are seconds by system (the LLM alone is `text`), the median of the rounds, and the ratio of their sums: `ratio`
by the clock, `cpu_ratio` by processor time, which other programs disturb less, with the lowest of the rounds. Items are
taken at even distances from the test split sorted by length. `same_share` is the share of answers that are the same
text both ways. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from blsp.backbones import device_map, load_llm, load_recogniser
from blsp.data.recogniser import Whisper, recognise
from blsp.evaluation.systems import System, cascade_system, speech_system, text_system
from blsp.evaluation.tasks import Item, test_items
from blsp.model import BlspForConditionalGeneration, BlspProcessor
from blsp.model.chat import build_prompt, respond
from blsp.model.decoding import greedy
from blsp.params import Evaluate, load_params
from blsp.training.train import ADAPTER_DIR

Answers = dict[str, list[list[str]]]  # by system, of each instruction
Seconds = dict[str, tuple[float, float]]  # by system: by the clock, of the processor


def batched(settings: Evaluate, model: Any, processor: Any) -> dict[str, System]:
    """The systems of the stage; what they know of items begins anew."""
    return {
        "text": text_system(settings),
        "cascade": cascade_system(settings),
        "speech": speech_system(settings, model, processor),
    }


def one_by_one(settings: Evaluate, model: Any, processor: Any) -> dict[str, System]:
    """The same systems for one item at a time."""
    llm, tokenizer = load_llm()
    whisper = Whisper(*load_recogniser())
    transcripts: dict[str, str] = {}

    def read(instruction: str, transcript: str) -> str:
        prompt = tokenizer(build_prompt(tokenizer, instruction, transcript), add_special_tokens=False)
        inputs = {name: torch.tensor([prompt[name]], device=llm.device) for name in ("input_ids", "attention_mask")}
        return greedy(llm, tokenizer, settings.max_new_tokens, **inputs)[0].text

    def cascade(instruction: str, item: Item) -> str:
        if item.id not in transcripts:
            transcripts[item.id] = recognise(whisper, [item.samples])[0]
        return read(instruction, transcripts[item.id])

    def speech(instruction: str, item: Item) -> str:
        return respond(model, processor, instruction, [item.samples], settings.max_new_tokens)[0]

    ways: dict[str, Callable[[str, Item], str]] = {
        "text": lambda instruction, item: read(instruction, item.transcript),
        "cascade": cascade,
        "speech": speech,
    }
    return {
        name: lambda instruction, items, way=way: [way(instruction, item) for item in items]
        for name, way in ways.items()
    }


def measure(systems: dict[str, System], instructions: list[str], items: list[Item]) -> tuple[Answers, Seconds]:
    """What each system answers to every instruction, and how long that takes."""
    answers: Answers = {}
    seconds: Seconds = {}
    for name, system in systems.items():
        started = time.perf_counter(), time.process_time()
        answers[name] = [system(instruction, items) for instruction in instructions]
        seconds[name] = time.perf_counter() - started[0], time.process_time() - started[1]
    return answers, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=60, help="of the test split; 0: all")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    settings = load_params().evaluate
    everything = test_items()
    items = everything[:: max(len(everything) // options.items, 1)] if options.items else everything
    processor = BlspProcessor.from_pretrained(ADAPTER_DIR)
    model = BlspForConditionalGeneration.from_pretrained(ADAPTER_DIR, device_map=device_map())
    instructions = [line for task in settings.tasks.values() for line in task.instructions]
    ways = {"batched": batched, "one_by_one": one_by_one}
    for way in ways.values():  # what is done once is done before
        measure(way(settings, model, processor), instructions[:1], items[:2])
    times: dict[str, list[Seconds]] = {name: [] for name in ways}
    said: dict[str, Answers] = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            said[name], seconds = measure(way(settings, model, processor), instructions, items)
            times[name].append(seconds)
            print(f"{name}: { ({system: round(own[0], 2) for system, own in seconds.items()}) }", flush=True)
    result: dict[str, Any] = {
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "items": len(items),
        "audio_s": round(sum(len(item.samples) for item in items) / processor.feature_extractor.sampling_rate),
        "instructions": len(instructions),
        "batch_size": settings.batch_size,
        "rounds": options.rounds,
    }
    for name, rounds in times.items():
        result[f"{name}_s"] = {s: round(statistics.median(one[s][0] for one in rounds), 2) for s in rounds[0]}
    for clock, prefix in ((0, ""), (1, "cpu_")):
        sums = {name: [sum(own[clock] for own in one.values()) for one in rounds] for name, rounds in times.items()}
        ratios = [slow / fast for slow, fast in zip(sums["one_by_one"], sums["batched"], strict=True)]
        result[f"{prefix}ratio"] = round(statistics.median(ratios), 1)
        result[f"lowest_{prefix}ratio"] = round(min(ratios), 1)
    result["same_share"] = {}
    for system, fast in said["batched"].items():
        pairs = [
            pair
            for task, alone in zip(fast, said["one_by_one"][system], strict=True)
            for pair in zip(task, alone, strict=True)
        ]
        result["same_share"][system] = round(sum(one == other for one, other in pairs) / len(pairs), 4)
        for one, other in [pair for pair in pairs if pair[0] != pair[1]][:3]:
            print(f"{system}: {one!r} in a batch, {other!r} alone")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
