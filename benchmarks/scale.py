"""What a large corpus takes in memory and time, where no audio and no model is at work. One JSON line a part.

    OMP_NUM_THREADS=1 python -m benchmarks.scale [--rows 1000000]

A manifest of distinct sentences by 20,000 speakers is written, and its shards are finished beforehand as a run that was
killed leaves them, with recordings that are empty. Then each part runs in a process of its own:

- corpus: the stage, from reading the manifest to the report and the list of dropped rows, but for the audio: the rows'
  normalisation, splits and held-out sentences, the plan of the shards, their tallies, the search for like sounds;
- index: the index of the training split with two behaviours, and the plan of all batches of an epoch;
- validate: the stage, over all rows and what was written for them.

`peak_gib` is the largest resident memory of the part's process, `before_gib` what its imports took of it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PARTS = ("corpus", "index", "validate")
RATE_HZ, SPEAKERS = 16_000, 20_000
BEHAVIOURS = ("continuation", "repetition")
_WORDS = ("river", "stone", "window", "garden", "music", "letter", "doctor", "kitchen", "engine", "butter", "mirror")


def params() -> Any:
    """Those of params.yaml, for the manifest of this folder."""
    from blsp.params import Params, load_params

    raw = load_params(Path(__file__).parents[1] / "params.yaml").model_dump(by_alias=True)
    raw["corpus"]["sources"] = [{"name": "manifest", "path": "manifest.jsonl"}]
    return Params.model_validate(raw)


def sentence(number: int) -> str:
    """A sentence of twelve words, unlike those of other numbers below a million."""
    digits = [number // len(_WORDS) ** place % len(_WORDS) for place in range(6)]
    return " ".join(_WORDS[digit] for digit in digits + [(7 * digit + number) % len(_WORDS) for digit in digits])


def write_manifest(rows: int) -> None:
    """Nothing; one row in fifty is to be dropped: an id that was there, a text without words."""
    with open("manifest.jsonl", "w", encoding="utf-8") as stream:
        for number in range(rows):
            row = {
                "audio": f"clips/{number:08d}.flac",
                "text": sentence(number),
                "speaker": f"speaker-{number % SPEAKERS}",
            }
            row |= {"id": f"utterance-{number - 50 * (number % 100 == 99):08d}", "licence": "CC0-1.0"}
            if number % 100 == 49:
                row["text"] = "<NOISE>"
            stream.write(json.dumps(row) + "\n")


def described(row: Any, split: str, num_samples: int) -> Any:
    """What a shard's writer asks of a cut: as shards.make_cut describes the row, in a fifth of the time."""
    duration_s = num_samples / RATE_HZ
    recording = {
        "id": row.id,
        "sources": [{"type": "shar", "channels": [0], "source": ""}],
        "sampling_rate": RATE_HZ,
        "num_samples": num_samples,
        "duration": duration_s,
        "channel_ids": [0],
    }
    segment = {
        "id": row.id,
        "recording_id": row.id,
        "start": 0,
        "duration": duration_s,
        "channel": 0,
        "text": row.text,
        "speaker": row.speaker,
    }
    cut = {
        "id": row.id,
        "start": 0,
        "duration": duration_s,
        "channel": 0,
        "supervisions": [segment],
        "recording": recording,
        "custom": {"split": split, "licence": row.licence, "source": row.source},
        "type": "MonoCut",
    }
    return SimpleNamespace(id=row.id, recording=SimpleNamespace(to_dict=lambda: recording), to_dict=lambda: cut)


def finish_shards() -> None:
    """Nothing; the stage finds every shard finished, with noise for prints."""
    from functools import partial

    import numpy as np
    from tqdm import tqdm

    from blsp.data import corpus, packing, planning, shards, sources
    from blsp.data.fingerprints import Print
    from blsp.staging import staging_of

    settings, rng = params().corpus, np.random.default_rng(0)
    staging = staging_of(params().execution).at("corpus", corpus.staging_key(settings))
    # The sentences are as any normaliser would leave them: here that time is saved.
    settings = settings.model_copy(update={"normalizer": "none"})
    readers = [partial(sources.rows, settings.sources[0], params().miniature)]
    planned = planning.plan(readers, settings, planning.survey(readers, settings), {}, lambda place, row: None)
    for shard in tqdm(planned, "shards", unit="shard"):
        prints = []
        own = staging.at(packing.shard_name(shard.split, shard.number))
        with own.workspace() as folder:
            with shards.ShardWriter(folder, len(shard.rows)) as writer:
                for row in shard.rows:
                    # From 4 to 30 characters a second, in steps of 10 ms as corpora have them.
                    seconds = len(row.text) / np.exp(rng.uniform(np.log(4), np.log(30)))
                    num_samples = int(100 * seconds) * RATE_HZ // 100
                    writer.write(described(row, shard.split, num_samples), b"")
                    prints.append(Print(row.id, rng.bytes(32), num_samples / RATE_HZ))
            tally = {
                "key": packing.shard_key(shard),
                "seconds": sum(one.duration_s for one in prints),
                "speakers": sorted({row.speaker for row in shard.rows}),
                "dropped": [],
                "prints": [one.as_list() for one in prints],
            }
            packing.store_shard(tally, folder, own)


def write_answers() -> None:
    """Nothing; the corpus then has continuations, a tenth of a percent of them dropped."""
    from tqdm import tqdm

    from blsp.data import shards
    from blsp.data.drops import DROPPED, write_drops
    from blsp.data.records import SPLITS
    from blsp.files import write_json

    settings = params().continuations
    counts = {name: {"rows": 0, "rows_not_asked": 0, "dropped": {"loop": 0}} for name in BEHAVIOURS}
    dropped = []
    for shard in tqdm([shard for split in SPLITS for shard in shards.iter_shards(split)], "answers", unit="shard"):
        for behaviour in BEHAVIOURS:
            values = {}
            for number, row in enumerate(shard.rows()):
                if number == 7 and shard.number % 2:
                    dropped.append({"id": row["id"], "behaviour": behaviour, "reason": "loop", "detail": "x x x"})
                    continue
                transcript = row["supervisions"][0]["text"]
                text = transcript if behaviour == "repetition" else " ".join(reversed(3 * transcript.split()))
                values[row["id"]] = {
                    "id": row["id"],
                    "transcript": transcript,
                    "instruction": str(settings.behaviours[behaviour]),
                    "prompt_sha256": "0" * 64,
                    "llm_revision": "0" * 40,
                    "sampling": {"do_sample": False, "max_new_tokens": settings.max_new_tokens},
                    "token_ids": list(range(20000, 20000 + len(text) // 5)),
                    "text": text,
                    "finish_reason": "stop",
                }
            counts[behaviour]["rows"] += len(values)
            counts[behaviour]["dropped"]["loop"] = sum(one["behaviour"] == behaviour for one in dropped)
            shards.write_field(shard, behaviour, values)
    write_drops(Path(shards.CONTINUATIONS_DIR) / DROPPED, dropped)
    write_json("reports/continuations.json", {"behaviours": counts})


def corpus_part() -> dict[str, Any]:
    """The stage `corpus`."""
    from blsp.data import corpus

    before = peak_gib()
    corpus.run(params())
    return {"before_gib": before}


def index_part() -> dict[str, Any]:
    """What training reads before its first step."""
    import numpy as np

    from blsp.data.index import load_index
    from blsp.training.plan import Plan, Sizes

    before, settings = peak_gib(), params().train
    index = load_index("train", BEHAVIOURS)
    targets = {name: index.response_tokens(name) for name in BEHAVIOURS}
    frames = index.num_samples // 320
    sizes = Sizes(frames, {name: frames // 4 + 40 + count for name, count in targets.items()}, targets)
    plan = Plan(sizes, {"continuation": 0.9, "repetition": 0.1}, settings.batch_size, settings.seed)
    seen = np.zeros(len(index), dtype=np.int64)
    for step in range(plan.batches_per_epoch):
        np.add.at(seen, [choice.row for choice in plan.batch(step)], 1)
    assert (seen[plan.rows] == 1).all()
    return {"before_gib": before, "digest": index.digest()[:8], "rows_train": len(index)}


def validate_part() -> dict[str, Any]:
    """The stage `validate`."""
    import great_expectations  # noqa: F401

    from blsp.contracts import validate

    before = peak_gib()
    validate.run(params())
    return {"before_gib": before}


def peak_gib() -> float:
    """Of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps = {"shards": finish_shards, "answers": write_answers}
    if options.step in steps:
        steps[options.step]()
        return
    if options.step:
        started = time.perf_counter()
        found = {"corpus": corpus_part, "index": index_part, "validate": validate_part}[options.step]()
        seconds = round(time.perf_counter() - started, 1)
        print(json.dumps({"part": options.step, "rows": options.rows, "peak_gib": peak_gib(), "s": seconds, **found}))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_manifest(options.rows)
        environment = {
            **os.environ,
            "BLSP_SCRATCH": f"{folder}/scratch",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        for step in ("shards", "corpus", "answers", "index", "validate"):
            command = [sys.executable, "-m", "benchmarks.scale", "--rows", str(options.rows), "--step", step]
            result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            if step in PARTS:
                print(result.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
