"""The compose files against the specification's own schema, and against what this project asks of services."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from infra import services
from infra.postgresql import DATABASES, DATABASES_SQL
from infra.secrets import TEMPLATE, read_variables, write_secrets

INFRA = Path(__file__).parents[2] / "infra"
FILES = [INFRA / "compose.yaml", INFRA / "compose.gpu.yaml"]
TASKS = {"own-volumes", "provision", "backup", "restore"}  # which end, and so have no health


@pytest.fixture(scope="module")
def compose():
    return YAML(typ="safe", pure=True).load(FILES[0])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_schema_holds(file):
    checker = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [checker, "--builtin-schema", "vendor.compose-spec", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(
    subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0
    if shutil.which("docker")
    else True,
    reason="docker compose is not on this machine; the schema is checked in any case",
)
def test_docker_compose_takes_it_with_secrets_and_refuses_it_without(tmp_path):
    write_secrets(tmp_path / "env")
    for env_file, expected in ((tmp_path / "env", 0), (os.devnull, 1)):
        files = [word for file in FILES for word in ("--file", file)]
        command = ["docker", "compose", *files, "--env-file", env_file, "--profile", "tasks", "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert min(done.returncode, 1) == expected, done.stderr


def test_every_service_is_hardened(compose):
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"] and service["cpus"] and service["pids_limit"], name
        if name != "own-volumes":  # which gives new volumes to the others, and does nothing else
            assert "cap_add" not in service and service.get("user", "1000").split(":")[0] != "0", name
        assert not service.get("privileged") and service.get("network_mode") in (None, "none"), name
    assert compose["services"]["own-volumes"]["network_mode"] == "none"


def test_what_runs_on_has_a_health_check_and_waits_for_what_it_needs(compose):
    for name, service in compose["services"].items():
        assert ("healthcheck" in service) == (name not in TASKS), name
        assert service["restart"] == ("no" if name in TASKS else "unless-stopped"), name
        for needed, how in service.get("depends_on", {}).items():
            ended = needed in TASKS
            assert how["condition"] == ("service_completed_successfully" if ended else "service_healthy"), name


def test_ports_are_on_loopback_and_databases_on_none(compose):
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert set(published) == {"s3", "mlflow", "prefect"}
    on_databases = {name for name, service in compose["services"].items() if "databases" in service.get("networks", [])}
    assert on_databases == {"postgres", "mlflow", "prefect", "backup", "restore"}, "the worker runs the code of commits"
    assert compose["networks"]["databases"] == {"internal": True}


def test_images_are_pinned_or_built_here(compose):
    for name, service in compose["services"].items():
        tag = service["image"].rpartition(":")[2]
        assert tag and "latest" not in service["image"], name
        if "build" in service:
            assert (INFRA.parent / service["build"]["dockerfile"]).is_file(), name


def test_every_secret_must_be_given(compose):
    text = FILES[0].read_text()
    names = {line.removesuffix("=") for line in TEMPLATE.read_text().splitlines() if line.endswith("=")}
    assert all(re.search(rf"\${{{name}:\?", text) for name in names), "each stops compose where it is missing"
    defaults = {name for name, *_ in re.findall(r"\${([A-Z0-9_]+)(:-|-)", text)}
    assert defaults.isdisjoint(names), "no default password"
    for service in compose["services"].values():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|AUTH_STRING|CONNECTION_URL|STORE_URI", variable):
                assert re.search(r"\${[A-Z0-9_]+", value), variable


def test_mlflow_is_hardened_as_locally(compose, tmp_path):
    """Containers and processes have the same settings, but for addresses."""
    write_secrets(tmp_path / "env")
    secrets = read_variables(tmp_path / "env")
    local = services.server("mlflow", secrets, services.PORTS, tmp_path)
    contained = compose["services"]["mlflow"]
    of_one_machine = {"NO_PROXY", "no_proxy"}
    assert set(local.environment) - of_one_machine == set(contained["environment"]) - {"BLSP_BUCKET"}
    for name in ("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"):
        assert local.environment[name] == contained["environment"][name] == "false"
    assert "--app-name" in local.command and "--app-name=basic-auth" in contained["command"]
    assert any(word.startswith("--allowed-hosts=") and "*" not in word for word in contained["command"])


def test_prefect_remembers_who_has_a_place_on_a_gpu(compose):
    contained = compose["services"]["prefect"]
    assert contained["environment"].items() >= services.PREFECT_LEASES.items()
    assert contained["volumes"] == [f"prefect:{contained['environment']['PREFECT_HOME']}"]


def test_each_database_has_its_own_user():
    sql = DATABASES_SQL.read_text()
    assert all(f"\\getenv {name}_password {variable}" in sql for name, variable in DATABASES.items())
    assert re.search(rf"REVOKE ALL ON DATABASE {', '.join(DATABASES)} FROM PUBLIC", sql)
