"""Versions and aliases in MLflow's registry: promoted, rolled back, shown. No Prefect here.

    promote(params)             the present adapter, judged; champion where all gates hold
    roll_back(params, version)  the champion before, or the one named
    overview(params)            who is champion, and since when

What moves an alias takes turns (lock.py) and moves all or none (aliases.py).
"""

from blsp.registry.history import overview
from blsp.registry.promotion import Promotion, promote
from blsp.registry.rollback import RollBack, roll_back

__all__ = ["Promotion", "RollBack", "overview", "promote", "roll_back"]
