"""Exits with 1, naming each figure, where the demo's evaluation misses the bars it is built to clear."""

import json
import sys
from pathlib import Path


def main() -> int:
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    systems = {
        name: {task: next(iter(metrics.values())) for task, metrics in tasks.items()}
        for name, tasks in report["systems"].items()
    }
    value = {(name, task): figure["value"] for name, tasks in systems.items() for task, figure in tasks.items()}
    cascade_wer, cascade_bleu = value["cascade", "asr"], value["cascade", "st"]
    bars = [
        ("test utterances", report["test"]["utterances"], ">=", 300),
        ("text WER", value["text", "asr"], "<=", 0.01),
        ("text BLEU", value["text", "st"], ">=", 98),
        ("text SLU", value["text", "slu"], ">=", 0.99),
        ("text QA", value["text", "qa"], ">=", 0.99),
        ("cascade WER", cascade_wer, "<=", 0.10),
        ("speech SLU", value["speech", "slu"], ">=", 0.95),
        ("speech QA", value["speech", "qa"], ">=", 0.85),
        ("speech BLEU", value["speech", "st"], ">=", 0.92 * cascade_bleu),
        ("speech WER", value["speech", "asr"], "<=", cascade_wer + 0.03),
        ("German SLU", value["speech", "slu_de"], ">=", 0.60),
        ("untrained German SLU", value["untrained", "slu_de"], "<=", value["speech", "slu_de"] / 2),
        ("top-1 agreement", report["alignment"]["top1_agreement"]["value"], ">=", 0.90),
        ("untrained SLU", value["untrained", "slu"], "<=", value["speech", "slu"] / 2),
        ("untrained WER", value["untrained", "asr"], ">=", 0.5),
    ]
    missed = 0
    for name, found, relation, bar in bars:
        holds = found >= bar if relation == ">=" else found <= bar
        missed += not holds
        print(f"{'ok    ' if holds else 'MISSED'} {name} {found:.4g} {relation} {bar:.4g}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
