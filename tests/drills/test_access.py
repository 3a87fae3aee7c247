"""Passwords that are wrong: one message each, which names what to set and shows no secret."""

import pytest

from infra import local
from infra.secrets import read_variables
from tests.drills.site import Site

WRONG = "not-the-password"


@pytest.mark.parametrize(
    ("words", "variable", "value", "named"),
    [
        (
            ("flows.promote",),
            "MLFLOW_TRACKING_PASSWORD",
            WRONG,
            "Set MLFLOW_TRACKING_USERNAME and ",
        ),
        (("flows.publish",), "AWS_SECRET_ACCESS_KEY", WRONG, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (("flows.pipeline",), "PREFECT_API_AUTH_STRING", f"admin:{WRONG}", "PREFECT_API_AUTH_STRING"),
    ],
)
def test_wrong_credentials(here: Site, words: tuple[str, ...], variable: str, value: str, named: str) -> None:
    before, aliases = here.contents(), here.aliases()
    done = here.run_in(here.code, *words, **{variable: value})
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said, said
    assert named in said, said
    secrets = {*read_variables(here.state / local.SECRETS).values(), WRONG}
    assert not [secret for secret in secrets if len(secret) > 12 and secret in said]
    if variable != "PREFECT_API_AUTH_STRING":
        (state,) = [run.state for run in here.newest_runs()[:1]]
        assert state and state.is_failed() and named in (state.message or ""), state
    assert here.contents() == before and here.aliases() == aliases and here.stale("train") == {}
