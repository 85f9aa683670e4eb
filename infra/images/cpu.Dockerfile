# syntax=docker/dockerfile:1
# Sfumato for CPUs: the head and CPU workers of a Ray cluster, MLflow's server, and submitting pods.
# Built from the repository's root: infra/images/build.sh cpu
#
# BASE is any Debian or Ubuntu with Python 3.11 or newer as `python3`, or with apt that has it.
ARG BASE=docker.io/library/debian:12.12-slim

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The index of PyTorch's CPU wheels; empty: pip's own settings.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Where pip looks; as arguments they are not kept in the image.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_FIND_LINKS
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ python3 python3-dev python3-venv \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:${PATH}
RUN python3 -m venv /opt/venv
WORKDIR /opt/sfumato
# Dependencies before code: a change of the code leaves this layer as it is.
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY infra/images/install.sh infra/images/install.sh
# Certificates to trust while building, where a proxy has its own.
ARG PIP_CERT
RUN infra/images/install.sh dependencies
COPY platform platform
COPY pipelines pipelines
RUN infra/images/install.sh package

FROM ${BASE} AS run
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# wget: KubeRay's probes of older versions and compose ask with it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates git libgomp1 python3 python3-venv tini wget \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 sfumato \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash sfumato
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/sfumato/pipelines /opt/sfumato/pipelines
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/home/sfumato \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
USER 1000:1000
WORKDIR /home/sfumato
# A node of a Ray cluster where one runs, else whether the program is whole.
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 \
    CMD ["sfumato-health"]
ENTRYPOINT ["tini", "--"]
CMD ["sfumato", "--help"]
