"""What the comparison reads: where something is missing, it is said which command makes it."""

import pandas as pd
import pytest

from blsp.errors import BlspError
from blsp.evaluation.answers import write_answers
from blsp.evaluation.evaluate import ANSWERS
from blsp.paper import measure
from blsp.paper.compare import read_measured
from blsp.params import load_params
from blsp.training.places import places_of
from tests.trained import PARAMS


def test_a_missing_table_is_told_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = load_params(PARAMS)
    seeds = params.experiments.model_copy(update={"seeds": [3]})
    params = params.model_copy(update={"experiments": seeds})
    own = f"{places_of('ce', 3).measured}/{measure.ANSWERS}"
    with pytest.raises(BlspError, match=f"^{own}: no such file; run `blsp measure --variant ce --seed 3` first$"):
        read_measured(params, ["ce"])
    table = pd.DataFrame({"system": ["ce"], "quality": [1.0]})
    write_answers(table, own)
    with pytest.raises(BlspError, match=f"^{ANSWERS}: no such file; run `blsp evaluate` first$"):
        read_measured(params, ["ce"])
