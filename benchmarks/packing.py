"""How fast one core packs a corpus: FLAC of 16 kHz in, judged, FLAC in a shard out. One JSON line last.

    OMP_NUM_THREADS=1 python -m benchmarks.packing

The clips are noise shaped like speech (it comes and goes four times a second), of lengths like LibriSpeech's.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from benchmarks.workload import librispeech_seconds
from blsp.data.packing import ShardRows, pack_shard
from blsp.data.records import Utterance
from blsp.params import load_params
from blsp.staging import FolderStaging

RATE_HZ = 16_000


def clips(folder: Path, count: int) -> list[Utterance]:
    """Utterances whose audio lies in the folder."""
    rng = np.random.default_rng(0)
    rows = []
    for number, seconds in enumerate(tqdm(librispeech_seconds(count, rng).clip(max=30), "clips", unit="clip")):
        time_s = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
        samples = rng.normal(0, 0.1, time_s.size) * np.abs(np.sin(2 * np.pi * 2 * time_s)) ** 2
        path = folder / f"{number}.flac"
        soundfile.write(path, samples.astype(np.float32), RATE_HZ)
        text = "words " * max(round(2.5 * seconds), 1)
        rows.append(Utterance(id=str(number), audio=path, text=text, source="noise"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    options = parser.parse_args()
    settings = load_params("params.yaml").corpus
    with tempfile.TemporaryDirectory() as name:
        rows = tuple(clips(Path(name), options.clips))
        shard = ShardRows("train", 0, rows, tuple(range(len(rows))))
        rates = []
        for number in range(options.rounds + 1):
            started = time.perf_counter()
            tally = pack_shard(shard, settings, FolderStaging(Path(name) / f"round-{number}"))
            rates.append(tally.seconds / (time.perf_counter() - started))
            assert tally.rows == len(rows), tally.dropped[:3]
    result = {
        "clips": options.clips,
        "audio_s": round(tally.seconds, 1),
        "times_real_time": round(statistics.median(rates[1:]), 1),
        "slowest_round": round(min(rates[1:]), 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
