"""Writing continuations the published way against ours: same model, same prompts, same process, in turn.

    python -m benchmarks.continuations [--size small] [--rounds 3] [--prompts 256] [--batch-size 128] [--ways NAME ...]

Published: prompts as they come, in batches of 8, padded, by `generate`, each batch as long as its longest answer.
`sorted` is the same with prompts sorted by length, in batches of ours; `transformers` is transformers' own continuous
batching; `ours` is blsp.model.continuous. Prompts are those of benchmarks.train_step: template and instruction are 30
tokens, transcripts as long as LibriSpeech's (mean 37 tokens), and answers 15 to 64 tokens (`continuation`), or as many
as the transcript has, at most 64 (`repetition`).

Weights are random, but for the output: after token n comes n - 1, and after 1 the end, so that a prompt's last token
says how long its answer is. That changes nothing in the work. Every way must write the same tokens. Figures are tokens
a second, and the ratio to the published way, the median of the rounds; `cpu_ratio` is that of processor time, which
other programs on the machine disturb less. The last line is JSON.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.workload import CLOSING, PREFIX, librispeech_seconds
from blsp.model.continuous import continuous_greedy

END = 0
MAX_NEW_TOKENS = 64
PUBLISHED_BATCH_SIZE = 8
FIRST_WORD = 100  # tokens before it are the template's and the countdown's
BEHAVIOURS = ("continuation", "repetition")
WIDTHS = {"tiny": (256, 4), "small": (512, 8), "medium": (768, 12)}  # and layers

Prompts = list[list[int]]
Way = Callable[[Prompts], Prompts]


def new_model(size: str) -> PreTrainedModel:
    """A Llama of 18, 58 or 134 M parameters that counts down from the last token of its prompt."""
    torch.manual_seed(0)
    width, layers = WIDTHS[size]
    config = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=-(-width * 8 // 3 // 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        tie_word_embeddings=False,
        eos_token_id=END,
        pad_token_id=END,
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    words = model.get_input_embeddings().weight.normal_()
    model.get_output_embeddings().weight[: MAX_NEW_TOKENS + 1] = words[1 : MAX_NEW_TOKENS + 2]
    return model


def draw(count: int, seed: int = 0) -> dict[str, Prompts]:
    """Prompts by behaviour. They end with the length of their answer, its end token counted."""
    rng = np.random.default_rng(seed)
    drawn: dict[str, Prompts] = {"continuation": [], "repetition": []}
    for seconds in librispeech_seconds(count, rng).tolist():
        transcript = rng.integers(FIRST_WORD, 32_000, round(3 * seconds) + 1).tolist()
        lengths = {"continuation": int(rng.integers(15, 65)), "repetition": min(len(transcript), MAX_NEW_TOKENS)}
        for behaviour, length in lengths.items():
            drawn[behaviour].append([*PREFIX, *transcript, *CLOSING, length])
    return drawn


def padded(model: PreTrainedModel, prompts: Prompts, batch_size: int) -> Prompts:
    """The answers of `generate` to batches in this order."""
    answers: Prompts = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        longest = max(map(len, batch))
        ids = torch.tensor([[END] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        written = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=END
        )
        answers += [_until_end(row) for row in written[:, longest:].tolist()]
    return answers


def by_length(model: PreTrainedModel, prompts: Prompts, batch_size: int) -> Prompts:
    """The same, sorted by length; answers in the prompts' order."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    answers = dict(zip(order, padded(model, [prompts[row] for row in order], batch_size), strict=True))
    return [answers[row] for row in range(len(prompts))]


def by_transformers(model: PreTrainedModel, prompts: Prompts, batch_size: int) -> Prompts:
    """transformers' continuous batching, with as much cache as `batch_size` rows need."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    block_size = 32
    blocks = batch_size * -(-(max(map(len, prompts)) + MAX_NEW_TOKENS) // block_size)
    outputs = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(
            max_new_tokens=MAX_NEW_TOKENS, do_sample=False, eos_token_id=END, pad_token_id=END
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            block_size=block_size, num_blocks=blocks, max_batch_tokens=1024
        ),
    )
    in_order = sorted(outputs.values(), key=lambda output: int(output.request_id.rsplit("_", 1)[1]))
    return [_until_end(output.generated_tokens) for output in in_order]


def ours(model: PreTrainedModel, prompts: Prompts, batch_size: int) -> Prompts:
    """blsp.model.continuous, without a tokenizer: texts are no part of this."""
    silent: Any = SimpleNamespace(decode=lambda ids, skip_special_tokens: "")
    answers = dict(continuous_greedy(model, silent, prompts, batch_size, MAX_NEW_TOKENS))
    return [answers[row].token_ids for row in range(len(prompts))]


def _until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(END) + 1] if END in ids else ids


def compare(ways: dict[str, Way], prompts: Prompts, rounds: int) -> dict[str, float]:
    """Tokens a second of each way, and ratios to the first, by turns."""
    expected = [list(range(prompt[-1] - 1, -1, -1)) for prompt in prompts]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}  # wall clock and processor, in s
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter(), time.process_time()
            written = way(prompts)
            times[name].append((time.perf_counter() - started[0], time.process_time() - started[1]))
            assert written == expected, f"{name} wrote other tokens"
    tokens = sum(map(len, expected))
    figures = {f"{name}_tokens_per_s": tokens / statistics.median(wall for wall, _ in t) for name, t in times.items()}
    first, *others = ways
    for name in others:
        pairs = list(zip(times[first], times[name], strict=True))
        figures[f"{name}_ratio"] = statistics.median(one[0] / other[0] for one, other in pairs)
        figures[f"{name}_lowest_cpu_ratio"] = min(one[1] / other[1] for one, other in pairs)
        figures[f"{name}_cpu_ratio"] = statistics.median(one[1] / other[1] for one, other in pairs)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=WIDTHS, default="small", help="of the model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=256, help="of each behaviour, a round")
    parser.add_argument("--batch-size", type=int, default=128, help="of all ways but the published one")
    names = ("sorted", "transformers", "ours")
    parser.add_argument("--behaviours", nargs="+", choices=BEHAVIOURS, default=BEHAVIOURS)
    parser.add_argument("--ways", nargs="+", choices=names, default=names, help="beside the published one")
    options = parser.parse_args()
    model = new_model(options.size)
    all_ways: dict[str, Way] = {
        "published": lambda prompts: padded(model, prompts, PUBLISHED_BATCH_SIZE),
        "sorted": lambda prompts: by_length(model, prompts, options.batch_size),
        "transformers": lambda prompts: by_transformers(model, prompts, options.batch_size),
        "ours": lambda prompts: ours(model, prompts, options.batch_size),
    }
    ways = {name: way for name, way in all_ways.items() if name in ("published", *options.ways)}
    result: dict[str, Any] = {
        "parameters_m": round(sum(p.numel() for p in model.parameters()) / 1e6, 1),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "prompts": options.prompts,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
    }
    for way in ways.values():  # what is done once is done before
        way(draw(2, seed=1)["continuation"])
    drawn = draw(options.prompts)
    for behaviour in options.behaviours:
        prompts = drawn[behaviour]
        figures = compare(ways, prompts, options.rounds)
        mean = {"prompt_tokens": np.mean([len(p) for p in prompts]), "answer_tokens": np.mean([p[-1] for p in prompts])}
        result[behaviour] = {key: round(float(value), 2) for key, value in (mean | figures).items()}
        print(f"{behaviour}: {result[behaviour]}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
