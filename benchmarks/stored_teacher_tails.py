"""What a stored teacher loses where the vocabulary is an LLM's: synthetic distributions with long tails.

    python -m benchmarks.stored_teacher_tails [--vocabulary 32000] [--positions 1024] [--draws 8]

No LLM's logits are at hand offline: log p falls by `exponent` times the logarithm of the rank, plus noise, with another
exponent at each position (`light`: 2.6 on the mean, `heavy`: 1.6; the mass of the likeliest 1, 20 and 100 tokens is
printed). The student's logits differ from the teacher's as an adapter's would make them: by a linear map of what is
heard, of which the gradient is taken, through an output matrix of rank 256.

For each estimator with K = 20: `loss` is over the live teacher's, `gradient_error` the distance of the gradients over
the live one's length, of all positions together. `stored_mean` is the mean over several independent draws: an unbiased
estimate comes nearer with their root, a biased one does not. The last line is JSON.

Axes: N positions, K tokens kept, V vocabulary, D rank, H what is heard.
"""

import argparse
import json
from collections import defaultdict
from typing import Any

import torch

from benchmarks.stored_teacher import lumped_kd_loss
from blsp.continuation.teacher import keep
from blsp.training.objective import kd_loss, stored_kd_loss

K, D, H = 20, 256, 64
EXPONENTS = {"light": (2.6, 0.6), "heavy": (1.6, 0.4)}  # mean and deviation over positions
DISTANCES = {"near": 0.2, "far": 2.0}  # deviation of the student's logits from the teacher's
POSITIONS_AT_ONCE = 32


def teacher_logits(count: int, vocabulary: int, kind: str, generator: torch.Generator) -> torch.Tensor:
    """Logits (N, V) whose tails fall like a power of the rank."""
    mean, deviation = EXPONENTS[kind]
    exponent = (mean + deviation * torch.randn(count, 1, generator=generator)).clamp(min=1.05)
    rank = torch.arange(1, vocabulary + 1) + 3 * torch.rand(count, 1, generator=generator)
    logits = 0.5 * torch.randn(count, vocabulary, generator=generator) - exponent * rank.log()
    return logits[:, torch.randperm(vocabulary, generator=generator)]


def compare(
    vocabulary: int, positions: int, draws: int, kind: str, distance: float, temperature: float
) -> dict[str, Any]:
    """The live teacher's nats a token, its masses, and how each estimator compares."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randn(D, vocabulary, generator=generator) / D**0.5
    adapter = (distance / H**0.5 * torch.randn(H, D, generator=generator)).requires_grad_()
    losses: dict[str, float] = defaultdict(float)
    gradients: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(H, D))
    mass = torch.zeros(3)
    for _ in range(positions // POSITIONS_AT_ONCE):
        teacher = teacher_logits(POSITIONS_AT_ONCE, vocabulary, kind, generator)
        student = teacher + torch.randn(POSITIONS_AT_ONCE, H, generator=generator) @ adapter @ words
        tops = (teacher / temperature).softmax(-1).topk(100).values.sum(0).cumsum(0)
        mass += tops[[0, 19, 99]] / positions
        # Each estimator gives the gradient of the logits; the map below them is gone through once for each.
        found = {
            "live": kd_loss(student, teacher, temperature),
            "top": lumped_kd_loss(student, teacher, K, temperature),
        }
        for draw in range(draws):
            kept = keep(teacher, K, temperature, torch.rand(POSITIONS_AT_ONCE, K, generator=generator))
            found[f"stored {draw}"] = stored_kd_loss(student, *kept, temperature)
        for name, loss in found.items():
            losses[name] += loss.item()
            (gradient,) = torch.autograd.grad(loss, adapter, retain_graph=True)
            gradients[name] += gradient

    def figures(names: list[str]) -> dict[str, float]:
        gradient = torch.stack([gradients[name] for name in names]).mean(0)
        live = gradients["live"]
        return {
            "loss": sum(losses[name] for name in names) / len(names) / losses["live"],
            "gradient_error": ((gradient - live).norm() / live.norm()).item(),
            "norm": (gradient.norm() / live.norm()).item(),
            "cosine": torch.cosine_similarity(gradient.flatten(), live.flatten(), dim=0).item(),
        }

    stored = [name for name in losses if name.startswith("stored")]
    return {
        "nats_a_token": losses["live"] / positions / temperature**2,
        "mass_of_1_20_100": mass.tolist(),
        "top": figures(["top"]),
        "stored": figures(stored[:1]),
        "stored_mean": figures(stored),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    result: dict[str, Any] = vars(options).copy()
    for kind in EXPONENTS:
        for name, distance in DISTANCES.items():
            for temperature in (1.0, 2.0):
                found = compare(options.vocabulary, options.positions, options.draws, kind, distance, temperature)
                key = f"{kind}_{name}_temperature_{temperature:g}"
                result[key] = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 4))
                print(f"{key}: {result[key]}", flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
