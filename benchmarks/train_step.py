"""The published recipe's training step against ours: same models, same utterances, same process, in turn.

    python -m benchmarks.train_step [--rounds 3] [--utterances 24]

Published: random batches, every clip padded to 30 s, logits over the whole vocabulary at every position. Ours:
batches of similar lengths within a budget, audio at its length, logits where there is a target. Lengths are drawn
like LibriSpeech's (1.3 to 35 s, mean 12.3 s), texts to match; a Whisper-tiny encoder, a Llama of 110 M parameters,
random weights. The last line is JSON. What it said, and when, is in benchmarks/LOG.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, WhisperConfig

from blsp.model import BlspConfig, BlspForConditionalGeneration
from blsp.model.adapter import adapter_length
from blsp.training.examples import Batch, Prompted
from blsp.training.objective import AlignmentObjective
from blsp.training.plan import Choice, Plan, Sizes

AUDIO_TOKEN_ID = 3
INSTRUCTION_TOKENS = 30
FRAMES_PER_S = 50
TOP_K = 20


@dataclass(frozen=True)
class Utterance:
    """Log-mel features (M, T), prompt and response as token ids."""

    features: torch.Tensor
    instruction: list[int]
    transcript: list[int]
    response: list[int]

    @property
    def seconds(self) -> float:
        return self.features.shape[1] / 100


def new_model() -> BlspForConditionalGeneration:
    """Whisper-tiny's encoder, the paper's adapter, a Llama of 110 M parameters; random."""
    torch.manual_seed(0)
    audio = WhisperConfig(d_model=384, encoder_layers=4, encoder_attention_heads=6, encoder_ffn_dim=1536)
    text = LlamaConfig(
        vocab_size=32_000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        tie_word_embeddings=True,
    )
    config = BlspConfig(audio_config=audio, text_config=text, audio_token_id=AUDIO_TOKEN_ID, downsampling=8)
    model = BlspForConditionalGeneration(config)
    model.freeze()
    return model.train()


def librispeech_like(count: int, seed: int = 0) -> list[Utterance]:
    """Utterances whose lengths are spread like LibriSpeech's: many near 15 s, a tail of short ones."""
    rng = np.random.default_rng(seed)
    seconds = np.where(rng.random(count) < 0.6, rng.normal(14.5, 1.2, count), rng.gamma(3.0, 3.0, count))
    return [utterance(float(s), rng) for s in np.clip(seconds, 1.3, 35)]


def utterance(seconds: float, rng: np.random.Generator) -> Utterance:
    """One utterance of so many seconds, three tokens of transcript a second, and 15 to 64 of response."""

    def ids(count: int) -> list[int]:
        return rng.integers(10, 32_000, count).tolist()

    mel = torch.from_numpy(rng.normal(0, 1, (80, round(seconds * 100))).astype(np.float32))
    return Utterance(mel, ids(INSTRUCTION_TOKENS), ids(round(3 * seconds) + 1), ids(int(rng.integers(15, 65))))


def published_step(model: BlspForConditionalGeneration, batch: Sequence[Utterance]) -> None:
    """One cross-entropy step as the published code makes it; audio beyond 30 s is cut."""
    cut = [u.features[:, :3000] for u in batch]
    padded = torch.stack([torch.nn.functional.pad(clip, (0, 3000 - clip.shape[1])) for clip in cut])
    with torch.no_grad():
        frames = model.audio_tower(padded).last_hidden_state
    counts = torch.tensor([(clip.shape[1] + 1) // 2 for clip in cut])
    vectors = model.project(frames, counts).pooler_output
    rows, labels = [], []
    for count, u in zip(counts.tolist(), batch, strict=True):
        prompt = u.instruction + [AUDIO_TOKEN_ID] * adapter_length(count, 8)
        rows.append(torch.tensor(prompt + u.response))
        labels.append(torch.tensor([-100] * len(prompt) + u.response))
    ids, targets = pad_sequence(rows, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=-100)
    mask = (torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]).long()
    logits = model.language_model(inputs_embeds=model.embed(ids, vectors), attention_mask=mask, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    model.zero_grad()


def our_step(objective: AlignmentObjective, micro: Sequence[Utterance], top: bool = False) -> None:
    """One micro-batch's forward and backward."""
    batch = our_batch(objective.model, micro, top)
    (objective(batch) / len(batch.targets)).backward()
    objective.model.zero_grad()


def our_batch(model: BlspForConditionalGeneration, micro: Sequence[Utterance], top: bool) -> Batch:
    """The batch that the Collator makes of such utterances."""
    lengths = torch.tensor([u.features.shape[1] for u in micro])
    features = pad_sequence([u.features.T for u in micro], batch_first=True).transpose(1, 2)
    mask = (torch.arange(features.shape[2]) < lengths[:, None]).long()
    frames, counts = model.encode_audio(features, mask)
    spoken = [u.instruction + [AUDIO_TOKEN_ID] * adapter_length(int(c), 8) for u, c in zip(micro, counts, strict=True)]
    targets = torch.tensor([token for u in micro for token in u.response])
    return Batch(
        ids=[],
        written=prompted([u.instruction + u.transcript for u in micro], micro),
        spoken=prompted(spoken, micro),
        targets=targets,
        utterance=torch.zeros_like(targets),
        top_ids=torch.arange(TOP_K).expand(len(targets), -1) if top else None,
        top_logprobs=torch.full((len(targets), TOP_K), -4.0) if top else None,
        frames=frames,
        frame_counts=counts,
        audio_s=0.0,
        real=0,
        padded=0,
    )


def prompted(prompts: list[list[int]], micro: Sequence[Utterance]) -> Prompted:
    rows = [torch.tensor(prompt + u.response) for prompt, u in zip(prompts, micro, strict=True)]
    ids = pad_sequence(rows, batch_first=True)
    at = torch.arange(ids.shape[1])
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    return Prompted(ids, (at < ends).long(), (at >= starts - 1) & (at < ends - 1))


def our_micro_batches(utterances: Sequence[Utterance], budget: int) -> list[list[Utterance]]:
    """The utterances of one global batch as the plan cuts it for one process."""
    frames = np.array([(u.features.shape[1] + 1) // 2 for u in utterances])
    positions = np.array(
        [INSTRUCTION_TOKENS + adapter_length(f, 8) + len(u.response) for f, u in zip(frames, utterances, strict=True)]
    )
    targets = np.array([len(u.response) for u in utterances])
    sizes = Sizes(frames, {"a": positions}, {"a": targets}, frame_cost=0.025)
    plan = Plan(sizes, {"a": 1.0}, len(utterances), seed=0)
    choices = [Choice(row, "a") for row in range(len(utterances))]
    return [[utterances[c.row] for c in micro] for micro in plan.micro_batches(choices, budget, 1)[0]]


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def against_published(
    model: BlspForConditionalGeneration, count: int, batch_size: int, rounds: int
) -> dict[str, float]:
    """Audio seconds a second of both, and their ratio: the median over rounds in which they take turns."""
    utterances = librispeech_like(count)
    order = np.random.default_rng(1).permutation(count)
    random = [[utterances[row] for row in order[at : at + batch_size]] for at in range(0, count, batch_size)]
    ours = our_micro_batches(utterances, budget=batch_size * 200)
    objective = AlignmentObjective(model, "ce")
    audio_s = sum(u.seconds for u in utterances)
    times: dict[str, list[float]] = {"published": [], "ours": []}
    for _ in range(rounds + 1):
        times["published"].append(seconds_of(lambda: [published_step(model, batch) for batch in random]))
        times["ours"].append(seconds_of(lambda: [our_step(objective, micro) for micro in ours]))
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}  # the first warms up
    return {
        "mean_audio_s": audio_s / count,
        "published_audio_s_per_s": audio_s / medians["published"],
        "ours_audio_s_per_s": audio_s / medians["ours"],
        "ratio": medians["published"] / medians["ours"],
    }


def teachers(model: BlspForConditionalGeneration, rounds: int) -> dict[str, float]:
    """The step under kd with a live and with a stored teacher, over the step under ce."""
    micro = our_micro_batches(librispeech_like(8, seed=2), budget=10_000)[0]
    variants = {
        "ce": (AlignmentObjective(model, "ce"), False),
        "kd_live": (AlignmentObjective(model, "kd", 2.0, "live"), False),
        "kd_stored": (AlignmentObjective(model, "kd", 2.0, "stored"), True),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds + 1):
        for name, (objective, top) in variants.items():
            times[name].append(seconds_of(lambda o=objective, t=top: our_step(o, micro, t)))
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    return {f"{name}_over_ce": medians[name] / medians["ce"] for name in ("kd_live", "kd_stored")}


def linearity(model: BlspForConditionalGeneration, rounds: int) -> dict[str, float]:
    """How far step times lie from a straight line over audio length, at most, as a share of the line."""
    rng = np.random.default_rng(3)
    lengths = [5, 10, 15, 20, 25, 30]
    batches = [[utterance(s, rng) for _ in range(4)] for s in lengths]
    batches = [[Utterance(u.features, u.instruction, u.transcript, [9] * 40) for u in batch] for batch in batches]
    objective = AlignmentObjective(model, "ce")
    times = np.array([[seconds_of(lambda b=b: our_step(objective, b)) for b in batches] for _ in range(rounds + 1)])
    medians = np.median(times[1:], axis=0)
    line = np.polyval(np.polyfit(lengths, medians, 1), lengths)
    return {"worst_share_off_the_line": float(np.abs(medians / line - 1).max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds that count, after one that does not")
    parser.add_argument("--utterances", type=int, default=24, help="utterances a round")
    parser.add_argument("--batch-size", type=int, default=8, help="of the published recipe")
    options = parser.parse_args()
    model = new_model()
    result: dict[str, object] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    for name, measure in (
        ("against_published", lambda: against_published(model, options.utterances, options.batch_size, options.rounds)),
        ("teachers", lambda: teachers(model, options.rounds)),
        ("linearity", lambda: linearity(model, options.rounds)),
    ):
        result[name] = {key: round(value, 4) for key, value in measure().items()}
        print(f"{name}: {result[name]}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
