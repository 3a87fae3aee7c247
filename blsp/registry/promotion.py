"""From a recorded run to the champion: judged by the gates, asked a question, then given the aliases."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blsp import files, tracking
from blsp.errors import BlspError
from blsp.gates import Check, check_gates, table
from blsp.params import Params
from blsp.registry.aliases import CHALLENGER, CHAMPION, held, holder, move, repair
from blsp.registry.card import log_card
from blsp.registry.falls import LLM_TAG, Falls, champions_answers, check_falls
from blsp.registry.history import GATES_TAG, PROMOTED, reign_tag
from blsp.registry.lock import Ticket, alone
from blsp.registry.smoke import prepare
from blsp.tracking.local import ADAPTER, ANSWERS, EVALUATION, figures, read_evaluation
from blsp.tracking.store import ADAPTER_TAG, COMMIT_TAG, MIRROR_TAG, MODEL_TAG, Store, session

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Promotion:
    """What became of a candidate."""

    outcome: Literal["promoted", "already champion", "refused"]
    model_name: str
    version: int
    former: int | None
    """The version that was champion before; None for the first one."""
    checks: tuple[Check, ...]
    not_compared: tuple[str, ...] = ()
    """Tasks that cannot be held against the champion's, each with the reason."""
    fault: str | None = None
    """What the smoke test found."""

    def summary(self) -> str:
        """One sentence; for a refusal it names each failed gate, its value, its bound and the distance."""
        version = f"{self.model_name} version {self.version}"
        if self.outcome == "already champion":
            return f"{version} is already champion"
        if self.outcome == "promoted":
            return f"{version} is champion now" + (f", after version {self.former}" if self.former else "")
        complaints = "; ".join([check.complaint() for check in self.checks if not check.holds] + _listed(self.fault))
        if self.version == self.former:
            return f"{version} is champion, but by these gates it would not become one: {complaints}"
        stays = f"version {self.former} stays champion" if self.former else "there is still no champion"
        return f"{version} is refused, {stays}: {complaints}"

    def table(self) -> str:
        """Every gate as a Markdown table that reads well on a terminal too, and what could not be judged."""
        notes = "".join(f"\n- not compared with the champion: {note}" for note in self.not_compared)
        return table(self.checks) + (f"\n{notes}" if notes else "")


def promote(params: Params) -> Promotion:
    """What became of the present adapter: recorded, registered as challenger, champion where all gates hold.

    An adapter that is champion already is only judged again. One that fails the smoke test gets no alias. Raises
    BlspError where this adapter has no evaluation or a gate has no figure (then nothing is registered), Busy where
    another promotion is under way, CutOff where something stopped it midway, TrackingError where MLflow is away.
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
        run = opened.client.get_run(run_id)
        with alone(opened, name, run, f"promotion of adapter {adapter_sha256[:12]}", repair) as ticket:
            champion = holder(opened, name, CHAMPION)
            former = int(champion.version) if champion else None
            if champion and champion.tags.get(ADAPTER_TAG) == adapter_sha256:
                checks = check_gates(params.promote.gates, figures(evaluation), None)
                holds = all(check.holds for check in checks)
                return Promotion("already champion" if holds else "refused", name, former or 0, former, checks)
            checks, falls = _judge(opened, champion, evaluation, params)
            return _register(opened, ticket, run, params, former, checks, falls)


def _judge(
    opened: Store, champion: "ModelVersion | None", evaluation: dict[str, Any], params: Params
) -> tuple[tuple[Check, ...], Falls]:
    """The gates' verdicts and, against a champion, those of the paired comparison."""
    from blsp.evaluation.answers import read_answers

    gates, found = params.promote.gates, figures(evaluation)
    if champion is None:
        return check_gates(gates, found, None), Falls((), ())
    adapter = champion.tags.get(ADAPTER_TAG, "")
    # Where the champion was evaluated again, on other items, that is what the new one is to be held against.
    again = [run for run in opened.runs_with(ADAPTER_TAG, adapter) if MIRROR_TAG in run.data.tags]
    runs = again or [opened.client.get_run(str(champion.run_id))]
    checks = check_gates(gates, found, runs[0].data.metrics)
    if not params.promote.no_task_may_fall:
        return checks, Falls((), ())
    ours, theirs = read_answers(ANSWERS, "dvc repro evaluate"), champions_answers(opened, runs, champion.version)
    llms = {evaluation.get("backbones", {}).get("llm", {}).get("sha256"), champion.tags.get(LLM_TAG)}
    return checks, check_falls(ours, theirs, params, same_llm=len(llms) == 1)


def _register(
    opened: Store,
    ticket: Ticket,
    run: "Run",
    params: Params,
    former: int | None,
    gates: tuple[Check, ...],
    falls: Falls,
) -> Promotion:
    """What became of the run's version, made if it has none, with its card, its tags and the aliases it deserves."""
    client, name = opened.client, params.promote.model_name
    test = prepare(params)
    version = _version_of(opened, name, run, gates)
    log_card(opened, run, version, params)
    checks = (*gates, *falls.checks)
    passed = all(check.holds for check in checks)
    to = {CHALLENGER: version.version} | ({CHAMPION: version.version} if passed else {})
    now = held(opened, name)
    moves = any(now.get(alias) != str(number) for alias, number in to.items())
    fault = test.fault(f"models:/{name}/{version.version}") if moves else None
    outcome: Literal["promoted", "refused"] = "promoted" if passed and fault is None else "refused"
    result = Promotion(outcome, name, int(version.version), former, checks, falls.notes, fault)
    client.set_model_version_tag(name, version.version, GATES_TAG, result.summary())
    if moves and fault is None:
        told = reign_tag(ticket, PROMOTED, former) if passed else None
        move(opened, name, ticket, {alias: str(number) for alias, number in to.items()}, told)
    return result


def _version_of(opened: Store, name: str, run: "Run", gates: tuple[Check, ...]) -> "ModelVersion":
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    client, run_id = opened.client, run.info.run_id
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if versions:
        return versions[0]
    model_id = run.data.tags[MODEL_TAG]
    source = f"models:/{model_id}"
    version = client.create_model_version(name, source, run_id, _facts(run, gates), model_id=model_id)
    entry = {"name": name, "version": version.version}
    client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([entry])})  # for its page
    return version


def _facts(run: "Run", gates: tuple[Check, ...]) -> dict[str, str]:
    """The tags of a version: where it comes from (commit, data, backbones) and what the gates looked at."""
    origin = {k: v for k, v in run.data.tags.items() if k.startswith("blsp.") and k != MIRROR_TAG}
    commit = {k: v for k, v in run.data.tags.items() if k == COMMIT_TAG}
    inputs = run.inputs.dataset_inputs if run.inputs else []
    data = {f"dvc:{entry.dataset.name}": entry.dataset.digest for entry in inputs}
    return origin | commit | data | {check.metric: f"{check.value:.6g}" for check in gates}


def _listed(fault: str | None) -> list[str]:
    return [] if fault is None else [fault]
