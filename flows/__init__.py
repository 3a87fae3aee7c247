"""When, where and how often: Prefect flows over the stages that `blsp` knows how to run.

Prefect reads its settings from the environment while it is imported, so this project's defaults stand here.
"""

import os

for _name, _value in {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # s; a slow machine needs 15 to 30
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60",  # s; flows/deploy.py says when a silent run counts as vanished
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}.items():
    os.environ.setdefault(_name, _value)
