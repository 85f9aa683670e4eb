# syntax=docker/dockerfile:1
# Sfumato for NVIDIA GPUs: training workers. PyTorch's wheels bring CUDA's libraries; the node brings the driver.
# Built from the repository's root: infra/images/build.sh gpu
#
# BASE has apt with Python 3.11 or newer. Triton compiles kernels at run time, so a C compiler stays in the image.
ARG BASE=docker.io/library/debian:12.12-slim

FROM ${BASE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# The index of PyTorch's CUDA wheels; empty: pip's own settings, whose wheels have CUDA too.
ARG TORCH_INDEX=
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
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY infra/images/install.sh infra/images/install.sh
# Certificates to trust while building, where a proxy has its own.
ARG PIP_CERT
RUN SFUMATO_GPU=1 infra/images/install.sh dependencies
COPY platform platform
COPY pipelines pipelines
RUN infra/images/install.sh package

FROM ${BASE} AS run
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates gcc git libc6-dev libgomp1 python3 python3-dev python3-venv tini wget \
    && apt-get clean && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 sfumato \
    && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash sfumato
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/sfumato/pipelines /opt/sfumato/pipelines
# What the NVIDIA container runtime looks at to put the driver's libraries in.
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/home/sfumato \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
WORKDIR /home/sfumato
HEALTHCHECK --interval=30s --timeout=20s --start-period=60s --retries=3 \
    CMD ["sfumato-health"]
ENTRYPOINT ["tini", "--"]
CMD ["sfumato", "--help"]
