"""`python promoting.py FOLDER MODEL WEIGHTS LEASE_S`: one promotion in a process of its own, begun when FOLDER/go is
there; in the smoke test's place, FOLDER/asking is made and some time passes."""

import os
import sys
import time
from pathlib import Path

from blsp.errors import BlspError
from blsp.params import load_params
from blsp.registry import lock, promotion
from blsp.tracking.store import session
from tests.trained import PARAMS, Trained

WORK_S = 4.0


class Slow:
    def fault(self, model_uri: str) -> None:
        Path("asking").touch()
        time.sleep(WORK_S)


def main(folder: str, model: str, weights: str, lease_s: str) -> int:
    lock.LEASE_S = float(lease_s)
    promotion.prepare = lambda params: Slow()  # type: ignore[assignment,return-value]
    os.makedirs(folder, exist_ok=True)
    os.chdir(folder)
    here = Trained(load_params(PARAMS))
    here.write_data()
    here.write_training(steps=2, weights=weights)
    here.write_evaluation()
    section = here.params.promote.model_copy(update={"model_name": model})
    with session():  # the import, before the two meet
        Path("ready").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    try:
        print(promotion.promote(here.params.model_copy(update={"promote": section})).summary())
    except BlspError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
