"""The champion before is champion again."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blsp.errors import BlspError
from blsp.params import Params
from blsp.registry.aliases import CHAMPION, held, move, repair
from blsp.registry.history import ROLLED_BACK, line, reign_tag, reigns
from blsp.registry.lock import alone, failures
from blsp.tracking import enabled
from blsp.tracking.store import Store, session

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class RollBack:
    """Which version is champion again, and which one was until now."""

    model_name: str
    version: int
    former: int

    def summary(self) -> str:
        """One sentence."""
        return f"{self.model_name} version {self.version} is champion again, version {self.former} no longer"


def roll_back(params: Params, version: int | None = None) -> RollBack:
    """What a roll back did: champion is the version that was so before, or the one that is named.

    No gate and no smoke test is asked: the version passed both when it was promoted, and a roll back is for when there
    is no time. Raises BlspError, and changes nothing, where there is no such version, or it never was champion.
    """
    if not enabled():
        raise BlspError("BLSP_TRACKING=off, but versions and aliases live in MLflow; roll back with it on")
    name = params.promote.model_name
    with session() as opened:
        present = _champion(opened, name)
        with alone(opened, name, opened.client.get_run(str(present.run_id)), "roll back", repair) as ticket:
            champion = int(_champion(opened, name).version)  # it may have changed before it was this one's turn
            target = _target(opened, name, champion, version)
            move(opened, name, ticket, {CHAMPION: str(target)}, reign_tag(ticket, ROLLED_BACK, champion))
        return RollBack(name, target, champion)


def _champion(opened: Store, name: str) -> "ModelVersion":
    version = held(opened, name).get(CHAMPION)
    if version is None:
        raise BlspError(f"{name} has no champion to roll back from; see `python -m flows.promote --show`")
    return opened.client.get_model_version(name, version)


def _target(opened: Store, name: str, champion: int, wanted: int | None) -> int:
    versions = {int(one.version): one for one in opened.client.search_model_versions(f"name = '{name}'")}
    past = reigns(list(versions.values()))
    *before, _ = line(past, champion)
    earlier = [one for one in before if one in versions and one != champion]
    ever = sorted({reign.version for reign in past} | set(earlier))
    known = f"champions were: {', '.join(map(str, ever)) or 'none'}"
    if wanted is None and not earlier:
        raise BlspError(f"{name} version {champion} is the first champion: there is none to roll back to ({known})")
    target = earlier[-1] if wanted is None else wanted
    if target == champion:
        raise BlspError(f"{name} version {champion} is champion already ({known})")
    if target not in versions:
        raise BlspError(f"{name} has no version {target} ({known})")
    if target not in ever:
        raise BlspError(
            f"{name} version {target} was never champion, so it never passed the gates: bring its adapter back and "
            f"promote it, or roll back to another ({known})"
        )
    _refuse_empty(name, target)
    return target


def _refuse_empty(name: str, version: int) -> None:
    """Nothing; raises BlspError where the version's files cannot be had: nothing could serve it."""
    from mlflow.models import get_model_info

    try:
        get_model_info(f"models:/{name}/{version}")
    except failures() as error:
        raise BlspError(f"{name} version {version} is there, but its files cannot be read: {error}") from error
