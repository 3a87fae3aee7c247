"""The real services as processes: started, used, killed, stopped, saved, lost and brought back. One state of them is
shared, and the tests go on from each other: starting MLflow and Prefect takes most of the time."""

import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

import boto3
import httpx
import psutil
import pytest

from blsp.errors import BlspError
from blsp.files import read_json
from infra import backup as backups
from infra import local, postgresql, services
from infra import restore as restoring
from infra.processes import pid_of
from infra.secrets import read_variables

KEYS = {"dvc/files/md5/ab/cdef": b"1" * 3_000_000, "mlflow/ü b": b"text", "empty": b"", "twice": b"text"}


@dataclasses.dataclass
class Place:
    """The services' state folder, and what was stored in them."""

    state: Path
    backups: Path
    ports: dict[str, int]
    noted: dict[str, Any]

    def use(self, monkeypatch):
        """Nothing; this process is a shell with client.env, and the secrets that backups need."""
        for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_", "PG"))]:
            monkeypatch.delenv(name)
        monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the credentials that it found first
        variables = {**read_variables(self.state / local.SECRETS), **read_variables(self.state / local.CLIENT)}
        for name, value in {**variables, "PGHOST": "127.0.0.1", "PGPORT": str(self.ports["postgres"])}.items():
            monkeypatch.setenv(name, value)
        return variables

    def processes(self):
        """All that have to do with the state folder, or are in a group of its servers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if str(self.state) in " ".join([*process.cmdline(), process.cwd()]):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def place():
    # Not below pytest's own folders: PostgreSQL's user could not enter those of root.
    folder = Path(tempfile.mkdtemp(prefix="blsp-services-"))
    folder.chmod(0o711)
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in services.NAMES]
        ports = {name: server.getsockname()[1] for name, server in zip(services.NAMES, listening, strict=True)}
    here = Place(folder / "state", folder / "backups", ports, {})
    try:
        local.up(here.state, ports=ports)
        yield here
    finally:
        for state in folder.iterdir():
            with contextlib.suppress(BlspError):  # no state folder, or one in which nothing was started
                local.down(state)
        shutil.rmtree(folder)


def test_all_serve_to_those_who_have_the_passwords(place, monkeypatch):
    from mlflow import MlflowClient

    variables = place.use(monkeypatch)
    assert [(name, serves) for name, _, serves, _ in local.status(place.state)] == [(n, True) for n in services.NAMES]
    place.noted["pids"] = {name: pid for name, pid, *_ in local.status(place.state)}

    mlflow, prefect = variables["MLFLOW_TRACKING_URI"], variables["PREFECT_API_URL"]
    with httpx.Client(trust_env=False, timeout=60) as client:
        assert client.post(f"{mlflow}/api/2.0/mlflow/experiments/search", json={"max_results": 1}).status_code == 401
        wrong = client.get(f"{mlflow}/api/2.0/mlflow/users/get?username=admin", auth=("admin", "password1234"))
        assert wrong.status_code == 401
        rebound = client.get(f"{mlflow}/api/2.0/mlflow/experiments/search", headers={"Host": "evil.example"})
        assert rebound.status_code == 403, "names that are not allowed, against DNS rebinding"
        assert client.post(f"{prefect}/variables/filter", json={}).status_code == 401
        name_and_value = {"name": "kept", "value": "by Prefect"}
        admin = ("admin", variables["PREFECT_PASSWORD"])
        client.post(f"{prefect}/variables/", json=name_and_value, auth=admin).raise_for_status()

    client = MlflowClient(mlflow)
    run = client.create_run(client.create_experiment("blsp")).info.run_id
    client.log_metric(run, "wer", 0.25)
    client.log_text(run, "an artifact in S3", "model/card.md")
    client.create_registered_model("blsp")
    version = client.create_model_version("blsp", f"runs:/{run}/model", run).version
    client.set_registered_model_alias("blsp", "champion", version)
    place.noted["run"] = run

    store = boto3.client("s3")
    for key, body in KEYS.items():
        store.put_object(Bucket=services.BUCKET, Key=key, Body=body)
    with pytest.raises(store.exceptions.ClientError, match="SignatureDoesNotMatch"):
        forged = {"aws_access_key_id": variables["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": "wrong"}
        boto3.client("s3", **forged).list_objects_v2(Bucket=services.BUCKET)


def test_no_secret_is_in_a_log_or_a_command_line(place):
    secrets = set(read_variables(place.state / local.SECRETS).values())
    logs = "".join(path.read_text(errors="replace") for path in (place.state / "logs").iterdir())
    commands = " ".join(word for process in place.processes() for word in process.cmdline())
    assert logs and commands and not [secret for secret in secrets if secret in logs + commands]
    for name in (local.SECRETS, local.CLIENT):
        assert stat.S_IMODE((place.state / name).stat().st_mode) == 0o600


def test_they_are_reached_from_this_machine_alone(place):
    ours = {process.pid for process in place.processes()}
    for process in list(place.processes()):
        ours |= {child.pid for child in process.children(recursive=True)}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in ours]
    assert {c.laddr.port for c in listening} >= set(place.ports.values())
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}


def test_a_backup_is_made_while_they_run_and_the_next_costs_what_is_new(place, monkeypatch):
    place.use(monkeypatch)
    monkeypatch.setattr(backups, "_name_of_now", lambda: "20260101T000000Z")
    first = backups.backup(place.backups)
    boto3.client("s3").put_object(Bucket=services.BUCKET, Key="new", Body=b"new")
    monkeypatch.setattr(backups, "_name_of_now", lambda: "20260102T000000Z")
    second = backups.backup(place.backups)
    assert backups.latest(place.backups) == second
    rows = {row["key"]: row for row in read_json(second / "manifest.json")["objects"]}
    assert {*KEYS, "new"} <= set(rows) and rows["twice"]["sha256"] == rows["mlflow/ü b"]["sha256"]
    for row in read_json(first / "manifest.json")["objects"]:
        old, new = (folder / "objects" / row["sha256"] for folder in (first, second))
        assert old.samefile(new), "a link, not a copy"
    assert not [path for path in second.rglob("*") if path.name.startswith(".")]
    assert stat.S_IMODE(second.stat().st_mode) == 0o700
    with pytest.raises(BlspError, match="is there already"):
        backups.backup(place.backups)
    monkeypatch.setenv("PREFECT_DB_PASSWORD", "wrong")
    monkeypatch.setattr(backups, "_name_of_now", lambda: "20260103T000000Z")
    with pytest.raises(BlspError, match="pg_dump, database prefect: .*password authentication failed"):
        backups.backup(place.backups)
    assert sorted(path.name for path in place.backups.iterdir()) == [first.name, second.name], "whole ones alone"


def test_what_is_in_use_is_not_overwritten(place, monkeypatch):
    place.use(monkeypatch)
    with pytest.raises(BlspError, match=r"database mlflow is in use by \d+ connections: stop MLflow"):
        restoring.restore(place.backups / "20260102T000000Z", overwrite=True)


def test_what_died_is_started_again_and_the_rest_left(place):
    before = place.noted["pids"]
    children = [process.pid for process in psutil.Process(before["s3"]).children(recursive=True)]
    for pid in [before["s3"], *children]:
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(before["s3"], 0)
    assert {name: pid for name, pid, serves, _ in local.status(place.state) if not serves} == {"s3": None}
    local.up(place.state)
    after = {name: pid for name, pid, serves, _ in local.status(place.state) if serves}
    assert after.pop("s3") not in (None, before["s3"])
    assert after == {name: pid for name, pid in before.items() if name != "s3"}


def test_down_leaves_no_process_and_all_data(place, monkeypatch):
    family = {
        child
        for pid in place.noted["pids"].values()
        if psutil.pid_exists(pid)
        for child in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
    }
    assert len(family) > 5
    local.down(place.state)
    alive = [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert alive == [] and place.processes() == [] and list((place.state / "run").iterdir()) == []
    assert local.main(["status", "--state", str(place.state)]) == 1
    local.down(place.state)  # again: nothing to do

    local.up(place.state, ["postgres", "s3"])
    place.use(monkeypatch)
    assert postgresql.psql(["-c", "SELECT value FROM metrics"], postgresql.connection("mlflow")) == "0.25"
    store = boto3.client("s3")
    assert {key: store.get_object(Bucket=services.BUCKET, Key=key)["Body"].read() for key in KEYS} == KEYS
    assert pid_of("mlflow", place.state) is None


def test_a_port_that_is_taken_is_named(place):
    other = place.state.with_name("other")
    with pytest.raises(BlspError, match=r"port \d+ is taken by another program: choose one with --s3-port"):
        local.up(other, ["s3"], place.ports)
    with pytest.raises(BlspError, match=r"ports cannot change while servers run \(postgres, s3\): `down` first"):
        local.up(place.state, ports={"mlflow": 1})


def test_after_the_loss_of_everything_all_is_as_it_was(place, monkeypatch):
    """Into new databases with new secrets, then used as before."""
    from mlflow import MlflowClient

    place.use(monkeypatch)
    kept = place.backups / "20260102T000000Z"
    with pytest.raises(BlspError, match=r"database mlflow holds \d+ tables; --overwrite replaces them"):
        restoring.restore(kept)
    local.down(place.state)
    old = read_variables(place.state / local.SECRETS)
    shutil.rmtree(place.state)
    local.up(place.state, ["postgres", "s3"], place.ports)
    place.use(monkeypatch)
    assert read_variables(place.state / local.SECRETS).keys() == old.keys()

    damaged = place.backups / "damaged"
    shutil.copytree(kept, damaged)
    (damaged / "mlflow.dump").write_bytes((kept / "mlflow.dump").read_bytes()[:-1])
    with pytest.raises(BlspError, match=r"is damaged, and nothing was restored: missing or altered is .*mlflow\.dump"):
        restoring.restore(damaged)
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=services.BUCKET)

    assert restoring.main([str(kept)]) == 0
    boto3.client("s3").put_object(Bucket=services.BUCKET, Key="later", Body=b"later")
    assert restoring.main([str(kept)]) == 1, "it is not empty now"
    assert restoring.main([str(kept), "--overwrite"]) == 0
    rows = {row["key"] for row in read_json(kept / "manifest.json")["objects"]}
    assert {row["key"] for row in backups.list_objects(boto3.client("s3"), services.BUCKET)} == rows

    local.up(place.state, ["postgres", "s3", "mlflow", "prefect"])
    variables = place.use(monkeypatch)
    client = MlflowClient(variables["MLFLOW_TRACKING_URI"])  # as `pipeline`, with its new password
    assert client.get_model_version_by_alias("blsp", "champion").run_id == place.noted["run"]
    assert client.get_run(place.noted["run"]).data.metrics == {"wer": 0.25}
    downloaded = client.download_artifacts(place.noted["run"], "model/card.md", str(place.backups))
    assert Path(downloaded).read_text() == "an artifact in S3"
    with httpx.Client(trust_env=False, timeout=60, auth=("admin", variables["PREFECT_PASSWORD"])) as prefect:
        found = prefect.get(f"{variables['PREFECT_API_URL']}/variables/name/kept").raise_for_status()
    assert found.json()["value"] == "by Prefect"
