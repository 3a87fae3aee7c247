"""A registered model version and the run it came from, as MLflow's registry has them. It changes nothing there."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blsp.errors import BlspError
from blsp.registry.aliases import held
from blsp.tracking.store import MODEL_TAG, Store, session

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

URI = re.compile(r"models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>[^/@]+))")


@dataclass(frozen=True)
class Registered:
    """A version of a model, and all that its run has recorded."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: dict[str, str]  # of the version
    run_id: str
    run_tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    data: dict[str, str]  # {path: the digest that DVC gave it}
    model_id: str | None  # of the logged model, whose files have the adapter

    @property
    def title(self) -> str:
        return f"{self.name} version {self.version}"

    def tag(self, name: str) -> str | None:
        """The version's tag of this name, or else the run's: it may have come after the version."""
        return self.tags.get(name) or self.run_tags.get(name)


def is_model(text: str) -> bool:
    """Whether this names a registered model, rather than a published run."""
    return text.startswith("models:")


def registered(uri: str) -> Registered:
    """The version at `models:/NAME/VERSION` or `models:/NAME@ALIAS`. Raises BlspError where there is none, naming
    what there is, and TrackingError where MLflow is not there."""
    match = URI.fullmatch(uri)
    if match is None:
        raise BlspError(f"{uri}: not a registered model; write models:/blsp/3 or models:/blsp@champion")
    with session() as opened:
        version = _version(opened, **match.groupdict())
        run = opened.client.get_run(str(version.run_id))
        inputs = run.inputs.dataset_inputs if run.inputs else []
        return Registered(
            name=str(version.name),
            version=int(version.version),
            aliases=tuple(sorted(version.aliases)),
            tags=dict(version.tags),
            run_id=str(run.info.run_id),
            run_tags=dict(run.data.tags),
            params=dict(run.data.params),
            metrics=dict(run.data.metrics),
            data={entry.dataset.name: entry.dataset.digest for entry in inputs},
            model_id=run.data.tags.get(MODEL_TAG),
        )


def _version(opened: Store, name: str, version: str | None, alias: str | None) -> "ModelVersion":
    client = opened.client
    if not client.search_registered_models(filter_string=f"name = '{name}'"):
        known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
        raise BlspError(f"no model {name} is registered in MLflow; registered are: {known}")
    aliases = held(opened, name)
    wanted = aliases.get(alias) if alias else version
    versions = {str(found.version) for found in client.search_model_versions(f"name = '{name}'")}
    if wanted is None or wanted not in versions:
        has = ", ".join(sorted(versions, key=int)) or "none"
        named = ", ".join(f"{key} (version {value})" for key, value in sorted(aliases.items())) or "none"
        what = f"alias {alias}" if alias else f"version {version}"
        raise BlspError(f"model {name} has no {what}; it has versions {has}, aliases {named}")
    return client.get_model_version(name, wanted)
