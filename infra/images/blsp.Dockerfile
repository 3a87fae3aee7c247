# What stages, flows and the training Job run in: the dependencies at the pinned versions, and no code of this project.
# That comes from git at the run's commit, or from the workspace.
#
#   docker build -f infra/images/blsp.Dockerfile -t blsp:TAG .
#   docker build -f infra/images/blsp.Dockerfile -t blsp:TAG-cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
FROM python:3.12.12-slim-trixie

# torch alone comes from here: without CUDA by default, as on PyPI (which has CUDA's libraries as packages) with it.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# Debian's own fixes are wanted, so versions are those of the day. gcc: for torch.compile.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates gcc git libc6-dev openssh-client \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/blsp
COPY pyproject.toml constraints.txt ./
RUN pip install --no-cache-dir uv==0.13.9 \
    && uv pip install --system --no-cache --index-url "$TORCH_INDEX" --no-deps "$(grep '^torch==' constraints.txt)" \
    && uv pip install --system --no-cache --compile-bytecode --constraint constraints.txt \
        --requirement pyproject.toml --extra cluster --extra huggingface --extra serve

RUN useradd --uid 1000 --create-home blsp && install --directory --owner=blsp --group=blsp /workspace
USER 1000:1000
WORKDIR /workspace
ENV PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE \
    BLSP_WORKSPACE=/workspace/blsp BLSP_SCRATCH=/workspace/scratch \
    PREFECT_HOME=/tmp/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1 MLFLOW_DISABLE_TELEMETRY=true
CMD ["python", "-m", "prefect", "version"]
