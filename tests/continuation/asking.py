"""Params under which whatever a random LLM writes is kept, unless a test wants it judged."""

from typing import Any

from blsp.params import Params, load_params
from tests.trained import PARAMS

KEEP_ALL = {"copy_distance": 1.0, "max_repeated_tokens": 10_000, "language_confidence": 1.0}
ANY = {"share": 1.0, "answer": "any", "language": None}


def asking(*, prompts_at_once: int = 3, **changes: Any) -> Params:
    """The committed params with `changes` under `continuations`; two behaviours with one instruction each.

    Of the tasks there are those without references alone: of the others the text side would ask the LLM, too.
    """
    raw = load_params(PARAMS).model_dump(by_alias=True)
    raw["continuations"] |= {
        "behaviours": {
            "continuation": {"instructions": ["Continue the following text."], **ANY},
            "repetition": {"instructions": ["Repeat the following text."], **ANY},
        },
        "quality": KEEP_ALL,
        **changes,
    }
    raw["train"]["shares"] = {next(iter(raw["continuations"]["behaviours"])): 1.0}
    raw["evaluate"]["tasks"] = {"continuation": raw["evaluate"]["tasks"]["continuation"]}
    raw["promote"]["tolerated_falls"] = {}
    raw["execution"] |= {"prompts_at_once": prompts_at_once}
    return Params.model_validate(raw)
