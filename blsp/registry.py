"""From a recorded run to the champion: versions and aliases in MLflow's registry. No Prefect here."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from blsp import files, tracking
from blsp.errors import BlspError
from blsp.gates import Check, check_gates, table
from blsp.params import Params
from blsp.tracking.local import ADAPTER, EVALUATION, figures, read_evaluation
from blsp.tracking.store import ADAPTER_TAG, COMMIT_TAG, MIRROR_TAG, MODEL_TAG, Store, session

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"
CHAMPION = "champion"


@dataclass(frozen=True)
class Promotion:
    """What became of a candidate."""

    outcome: Literal["promoted", "already champion", "refused"]
    model_name: str
    version: int
    former: int | None
    """The version that was champion before; None for the first one."""
    checks: tuple[Check, ...]

    def summary(self) -> str:
        """One sentence; for a refusal it names each failed gate, its value, its bound and the distance."""
        version = f"{self.model_name} version {self.version}"
        if self.outcome == "already champion":
            return f"{version} is already champion"
        if self.outcome == "promoted":
            return f"{version} is champion now" + (f", after version {self.former}" if self.former else "")
        complaints = "; ".join(check.complaint() for check in self.checks if not check.holds)
        if self.version == self.former:
            return f"{version} is champion, but by these gates it would not become one: {complaints}"
        stays = f"version {self.former} stays champion" if self.former else "there is still no champion"
        return f"{version} is refused, {stays}: {complaints}"

    def table(self) -> str:
        """Every gate as a Markdown table that reads well on a terminal too."""
        return table(self.checks)


def promote(params: Params) -> Promotion:
    """What became of the present adapter: recorded, registered as challenger, champion where all gates hold.

    An adapter that is champion already is only judged again. Raises BlspError where this adapter has no
    evaluation or a gate has no figure (then nothing is registered), TrackingError where MLflow is away.
    """
    evaluation = read_evaluation()
    adapter_sha256 = files.sha256_of(ADAPTER)
    if evaluation["adapter_sha256"] != adapter_sha256:
        raise BlspError(f"{EVALUATION}: judges another adapter than {ADAPTER}; run `dvc repro evaluate`")
    run_id = tracking.sync(params)
    if run_id is None:
        raise BlspError("BLSP_TRACKING=off, but versions and aliases live in MLflow; promote with it on")
    name = params.promote.model_name
    with session() as opened:
        champion = _holder(opened, name, CHAMPION)
        same = champion is not None and champion.tags.get(ADAPTER_TAG) == adapter_sha256
        standing = opened.client.get_run(str(champion.run_id)).data.metrics if champion and not same else None
        checks = check_gates(params.promote.gates, figures(evaluation), standing)
        passed = all(check.holds for check in checks)
        version = champion if same else _register(opened, name, opened.client.get_run(run_id), checks)
        assert version is not None
        former = int(champion.version) if champion else None
        result = Promotion("promoted" if passed else "refused", name, int(version.version), former, checks)
        if same:
            return Promotion("already champion", name, result.version, former, checks) if passed else result
        opened.client.set_model_version_tag(name, version.version, "blsp.gates", result.summary())
        if passed:
            opened.client.set_registered_model_alias(name, CHAMPION, version.version)
        return result


def _holder(opened: Store, name: str, alias: str) -> "ModelVersion | None":
    models = opened.client.search_registered_models(filter_string=f"name = '{name}'")
    version = models[0].aliases.get(alias) if models else None
    return opened.client.get_model_version(name, version) if version else None


def _register(opened: Store, name: str, run: "Run", checks: tuple[Check, ...]) -> "ModelVersion":
    """The run's version, made if it has none, with the alias challenger."""
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    client, run_id = opened.client, run.info.run_id
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if versions:
        version = versions[0]
    else:
        model_id = run.data.tags[MODEL_TAG]
        source = f"models:/{model_id}"
        version = client.create_model_version(name, source, run_id, _facts(run, checks), model_id=model_id)
        entry = {"name": name, "version": version.version}
        client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([entry])})  # for its page
    client.set_registered_model_alias(name, CHALLENGER, version.version)
    return version


def _facts(run: "Run", checks: tuple[Check, ...]) -> dict[str, str]:
    """The tags of a version: where it comes from (commit, data, backbones) and what the gates looked at."""
    origin = {k: v for k, v in run.data.tags.items() if k.startswith("blsp.") and k != MIRROR_TAG}
    commit = {k: v for k, v in run.data.tags.items() if k == COMMIT_TAG}
    inputs = run.inputs.dataset_inputs if run.inputs else []
    data = {f"dvc:{entry.dataset.name}": entry.dataset.digest for entry in inputs}
    return origin | commit | data | {check.metric: f"{check.value:.6g}" for check in checks}
