# What MLflow's and Prefect's servers run in, what makes bucket and user, what starts Kubernetes Jobs, and what makes
# backups and brings them back: the very versions that the project is tested with, without torch.
#
#   docker build -f infra/images/services.Dockerfile -t blsp-services:TAG .
FROM python:3.12.12-slim-trixie

# Debian's own fixes are wanted, so versions are those of the day; PostgreSQL's must be the major version of its server.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates postgresql-client-17 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/blsp
COPY constraints.txt ./
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --compile-bytecode --constraint constraints.txt \
        asyncpg boto3 flask-wtf httpx mlflow prefect prefect-kubernetes psycopg2-binary
COPY blsp blsp
COPY infra infra

RUN useradd --uid 1000 --no-create-home blsp && install --directory --owner=blsp --group=blsp /backups
USER 1000:1000
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp PREFECT_HOME=/tmp/prefect \
    PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true
CMD ["python", "-m", "mlflow", "--version"]
