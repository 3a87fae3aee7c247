"""The demo: the pipeline and the promotion in one process, then the results table and where to look next."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from blsp.files import read_json

NEXT = """
What to look at next:
  reports/evaluation.md          the same table, tests of the differences, examples, signatures
  reports/answers.html           where speech lost most, and random utterances: to read and to hear
  reports/figures/               systems.png, learning_curve.png
  reports/data_docs/index.html   what Great Expectations found in the corpus and the continuations
  mlflow ui --backend-store-uri sqlite:///mlflow.db   runs, curves, lineage, the registered model
                                 (after `source .venv/bin/activate`)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 where the pipeline completed and its model is champion; 1 where either failed, and the log says why."""
    parser = argparse.ArgumentParser(
        prog="python -m flows.demo",
        description=(
            "Run the pipeline (`python -m flows.pipeline`) and then the promotion (`python -m flows.promote`), "
            "and print the results table. What is up to date is skipped."
        ),
    )
    parser.parse_args(arguments)

    from flows import pipeline, promote

    status = pipeline.main([]) or promote.main([])
    if Path("reports/evaluation.json").is_file():
        from blsp.evaluation import report

        print("\n" + report.table(read_json("reports/evaluation.json")))
    print(NEXT)
    return status


if __name__ == "__main__":
    sys.exit(main())
