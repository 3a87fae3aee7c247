"""The Kubernetes manifests against the schemas of Kubernetes, as they lie there and as kubectl builds them."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
from ruamel.yaml import YAML

BASE, TRAINING = (Path(__file__).parents[2] / "infra/kubernetes" / name for name in ("base", "training"))


def documents(folder):
    """The resources that a kustomization lists."""
    listed = load(folder / "kustomization.yaml")[0]["resources"]
    assert {path.name for path in folder.glob("*.yaml")} == {*listed, "kustomization.yaml"}, "all are listed"
    return [document for name in listed for document in load(folder / name)]


def load(source):
    return list(YAML(typ="safe", pure=True).load_all(source))


def pods(folder):
    """Name and pod specification of everything that makes pods."""
    for document in documents(folder):
        spec = document.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template:
            yield document["metadata"]["name"], template["spec"]


def named(name, kind, folder=BASE):
    (found,) = [one for one in documents(folder) if (one["metadata"]["name"], one["kind"]) == (name, kind)]
    return found


@pytest.mark.parametrize("folder", [BASE, TRAINING], ids=lambda folder: folder.name)
def test_the_schemas_hold(folder):
    for document in documents(folder):
        kubernetes_validate.validate(document, "1.34", strict=True)
        assert document["metadata"].get("namespace") is None, "kustomize gives all the same"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on this machine; the schemas are checked")
@pytest.mark.parametrize("folder", [BASE, TRAINING], ids=lambda folder: folder.name)
def test_kustomize_builds_them(folder):
    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout
    found = load(built)
    assert len(found) == len(documents(folder))
    for document in found:
        kubernetes_validate.validate(document, "1.34", strict=True)
        if document["kind"] != "Namespace":
            assert document["metadata"]["namespace"] == "blsp"
    images = [line.split(":", 1)[1].strip() for line in built.splitlines() if line.strip().startswith("image:")]
    assert images and all(":0.1.0" in image for image in images)


@pytest.mark.parametrize("folder", [BASE, TRAINING], ids=lambda folder: folder.name)
def test_pods_are_hardened(folder):
    found = dict(pods(folder))
    assert found
    for name, pod in found.items():
        context = pod["securityContext"]
        assert context["runAsNonRoot"] and context["runAsUser"] == 1000, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod.get("automountServiceAccountToken") is False or pod["serviceAccountName"] == name == "worker"
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["requests"] and container["resources"]["limits"]["memory"], name
            assert ":" not in container["image"], "kustomization.yaml has the tags"


def test_what_serves_is_probed():
    for name in ("mlflow", "prefect", "worker"):
        (container,) = named(name, "Deployment")["spec"]["template"]["spec"]["containers"]
        assert {"startupProbe", "livenessProbe"} <= set(container), name


def test_secrets_are_named_and_never_there():
    for folder in (BASE, TRAINING):
        assert "Secret" not in {document["kind"] for document in documents(folder)}
        for name, pod in pods(folder):
            for variable in pod["containers"][0].get("env", []):
                if "PASSWORD" in variable["name"] or "AUTH_STRING" in variable["name"]:
                    assert "secretKeyRef" in variable.get("valueFrom", {}) or "$(" in variable["value"], name


def test_every_label_that_a_policy_goes_by_is_some_pods():
    labels = {}
    for document in documents(BASE):
        spec = document.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        for label in (template or {"metadata": {"labels": {}}})["metadata"]["labels"].items():
            labels.setdefault(label, []).append(document["metadata"]["name"])
    for policy in (document for document in documents(BASE) if document["kind"] == "NetworkPolicy"):
        for label in policy["spec"]["podSelector"].get("matchLabels", {}).items():
            assert labels.get(label), f"{policy['metadata']['name']}: {label}"
    nothing = named("nothing", "NetworkPolicy")["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, "all else is refused"


def test_training_is_what_torchrun_takes():
    from torch.distributed.run import get_args_parser

    job = named("training", "Job", TRAINING)["spec"]
    (container,) = job["template"]["spec"]["containers"]
    launcher, *words = container["command"]
    given = get_args_parser().parse_args(words)
    assert (launcher, given.module, given.training_script, given.training_script_args) == (
        "torchrun",
        True,
        "blsp",
        ["train"],
    )
    assert job["completionMode"] == "Indexed" and str(job["completions"]) == str(job["parallelism"]) == given.nnodes
    assert container["resources"]["limits"]["nvidia.com/gpu"] == given.nproc_per_node
    service = named("training", "Service", TRAINING)
    assert job["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    host, _, port = given.rdzv_endpoint.partition(":")
    assert host == "training-0.training" and int(port) == service["spec"]["ports"][0]["port"]
    assert service["spec"]["publishNotReadyAddresses"] is True and service["spec"]["clusterIP"] == "None"
