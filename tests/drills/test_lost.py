"""All machines are lost but the one with the backup and git: everything comes back, under new secrets."""

import base64
import contextlib
import json
import os
import shutil
from unittest.mock import patch

from blsp.registry.falls import champions_answers
from blsp.registry.smoke import SmokeTest, _recording, choose
from blsp.tracking.store import session
from infra import local
from infra import restore as restoring
from infra.backup import backup
from infra.secrets import read_variables
from tests.drills.site import Site
from tests.flows.toy import git


def test_loss_of_everything(here: Site) -> None:
    if not git(here.origin, "tag", "--list"):
        assert here.run_in(here.code, "flows.publish", "--push-to", "origin").returncode == 0
    (tag,) = git(here.origin, "tag", "--list").split()
    aliases, versions = here.aliases(), here.versions()
    secrets = read_variables(here.state / local.SECRETS)
    ports = json.loads((here.state / local.PORTS).read_text())
    with here.services.as_administrator():
        kept = backup(here.folder / "backups")

    here.services.down()
    shutil.rmtree(here.state)
    here.services.up("postgres", "s3", ports=ports)
    with here.services.as_administrator():
        assert restoring.main([str(kept)]) == 0
    here.services.up()
    assert read_variables(here.state / local.SECRETS).keys() == secrets.keys()
    assert not set(read_variables(here.state / local.SECRETS).values()) & set(secrets.values())

    assert (here.aliases(), here.versions()) == (aliases, versions)
    scheduled = here.read(here.scheduled).state
    assert scheduled and scheduled.message == "7 of 7 stages ran, 0 skipped", "Prefect remembers"
    git(here.folder, "clone", "--quiet", "--branch", tag, str(here.origin), str(here.workspace))
    pulled = here.run_in(here.workspace, "dvc", "pull", PYTHONPATH="")
    assert pulled.returncode == 0, pulled.stderr
    assert here.stale() == {} and here.adapter() == here.undisturbed
    assert here.recorded()

    with patch.dict(os.environ, here.services.environment()), contextlib.chdir(here.workspace), session() as opened:
        champion = opened.client.get_model_version_by_alias("blsp", "champion")
        run = opened.client.get_run(champion.run_id)
        questions = tuple(choose(champions_answers(opened, [run], champion.version)))
        test = SmokeTest(questions, base64.b64encode(_recording(questions[0].id)).decode(), max_new_tokens=8)
        assert test.fault("models:/blsp@champion") is None
