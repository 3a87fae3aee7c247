"""`blsp` as it is typed: the commands that stand on git, DVC or Prefect, and all others in blsp.cli.

They are here because `blsp/` knows neither DVC nor Prefect. `python -m blsp`, which the stages are run by, has none of
them.
"""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "status": ("flows.status", "stages, figures, champion and last runs, at a glance"),
    "publish": ("flows.publish", "data to the DVC remote, lock and figures to a branch and a tag of git"),
    "reproduce": ("flows.reproduce", "make a published run again in a fresh clone, and say what differs"),
    "audit": ("flows.audit", "trace a registered model back to commit, data, backbones, params and figures"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in COMMANDS:
        return int(importlib.import_module(COMMANDS[given[0]][0]).main(given[1:]))
    from blsp import cli

    try:
        return cli.main(given)
    finally:
        if given[:1] in (["-h"], ["--help"]):  # its help ends in SystemExit
            print("\nand of runs and what came of them (blsp COMMAND --help says more):")
            for name, (_, purpose) in COMMANDS.items():
                print(f"    {name:<20}{purpose}")


if __name__ == "__main__":
    sys.exit(main())
