"""Servers that refuse, die or are restarted while a run needs them."""

import json
from collections.abc import Callable

from infra import local
from infra.secrets import read_variables
from tests.drills.site import LIMIT_S, Site, curve_of, wait_until
from tests.faults import Fault, Proxy
from tests.flows.toy import git
from tests.s3 import denied, slow_down


def test_s3_refuses_a_publication_then_takes_it(here: Site) -> None:
    """Nothing has a tag as long as S3 does not have all of the data."""

    def publish() -> tuple[int, str]:
        done = here.run_in(here.code, "flows.publish", "--push-to", "origin", AWS_ENDPOINT_URL=proxy.url)
        (newest,) = here.newest_runs()[:1]
        assert newest.state
        return done.returncode, f"{newest.state.name}: {newest.state.message}"

    proxy = Proxy(read_variables(here.state / local.CLIENT)["AWS_ENDPOINT_URL"].removeprefix("http://"))
    try:
        every: list[Fault] = [denied] * 10_000
        proxy.faults += every
        status, said = publish()
        assert status == 1 and said.startswith("Failed: `dvc push` to store failed")
        assert "AWS_ACCESS_KEY_ID" in said and "nothing is published" in said
        assert git(here.origin, "for-each-ref", "refs/tags") == git(here.workspace, "tag", "--list") == ""

        proxy.faults[:] = [slow_down] * 3
        status, said = publish()
        assert status == 0 and said.startswith("Completed: published as run-"), said
        assert proxy.faults == [], "it was throttled, and tried again"
    finally:
        proxy.close()
    (tag,) = git(here.origin, "tag", "--list").split()
    assert git(here.workspace, "rev-parse", tag) == git(here.origin, "rev-parse", tag)
    missing = here.run_in(here.workspace, "dvc", "status", "--cloud", "--json")
    assert json.loads(missing.stdout) == {}


def test_mlflow_away_for_the_whole_training(here: Site) -> None:
    here.forget_training()
    here.services.kill("mlflow")
    run = here.start("training")
    assert here.completed(run).message == "1 of 6 stages ran, 5 skipped"
    wait_until(lambda: "run `blsp track`" in here.log(run))
    here.services.up("mlflow")
    assert here.recorded() != curve_of(here.rows())
    assert here.run_in(here.workspace, "blsp", "track", PYTHONPATH="").returncode == 0
    here.check_training()


def test_postgresql_restarted_while_a_run_trains(here: Site) -> None:
    check_training_without(here, "postgres", here.services.halt)


def test_prefects_server_killed_while_a_run_trains(here: Site) -> None:
    check_training_without(here, "prefect", here.services.kill)
    wait_until(lambda: here.places_taken() == 0, LIMIT_S)


def check_training_without(here: Site, server: str, end: Callable[[str], None]) -> None:
    """Nothing; a run trained on while this server was away, and lost nothing."""
    here.forget_training()
    run = here.start("training")
    training = here.frozen()
    end(server)
    training.resume()
    known = len(here.rows())
    wait_until(lambda: len(here.rows()) > known + 1, LIMIT_S)
    here.services.up(server)
    assert here.completed(run).message == "1 of 6 stages ran, 5 skipped"
    here.check_training()
