"""The services around the pipeline: PostgreSQL, an S3 store, MLflow, Prefect. docs/services.md explains them.

Containers (compose.yaml, kubernetes/) and plain processes (`python -m infra.local`) run the same servers with the same
databases, users and names of secrets; `infra.backup` and `infra.restore` save and bring back what they hold.
"""
