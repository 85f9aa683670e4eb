#!/usr/bin/env bash
# Builds an image by docker, or by buildah in a chroot where there is no daemon (and no root of a host's).
#   infra/images/build.sh cpu|gpu [TAG]
# BASE         another base image, for example one in a registry of your own
# TORCH_INDEX  another package index for PyTorch
# PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_TRUSTED_HOST are passed on to pip, and are not kept in the image
# CA_BUNDLE    file of certificates to trust while building, where a proxy has its own (buildah alone)
# WHEELS       folder of wheels that pip may take instead of asking an index (buildah alone)
# BUILDER      docker or buildah; without it the first that is there and works
# STORAGE      folder of buildah's images (.images)
set -euo pipefail
cd "$(dirname "$0")/../.."

kind=${1:-}
case "$kind" in
  cpu|gpu) ;;
  *) echo "usage: infra/images/build.sh cpu|gpu [TAG]" >&2; exit 2 ;;
esac
version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' platform/sfumato/__init__.py)
tag=${2:-sfumato-$kind:$version}
builder=${BUILDER:-}
if [ -z "$builder" ]; then
  if docker info >/dev/null 2>&1; then builder=docker
  elif command -v buildah >/dev/null; then builder=buildah
  else echo "error: neither docker answers nor is buildah installed (apt install buildah)" >&2; exit 2; fi
fi

arguments=(--file "infra/images/$kind.Dockerfile" --tag "$tag")
for name in BASE TORCH_INDEX PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST; do
  # Set and empty counts: it means pip's own settings.
  [ -z "${!name+set}" ] || arguments+=(--build-arg "$name=${!name}")
done

case "$builder" in
  docker) docker build "${arguments[@]}" . ;;
  buildah)
    storage=$(realpath -m "${STORAGE:-.images}")
    mkdir -p "$storage"
    if [ -n "${CA_BUNDLE:-}" ]; then
      arguments+=(--volume "$(realpath "$CA_BUNDLE"):/certificates.pem:ro" --build-arg PIP_CERT=/certificates.pem)
    fi
    if [ -n "${WHEELS:-}" ]; then
      arguments+=(--volume "$(realpath "$WHEELS"):/wheels:ro" --build-arg PIP_FIND_LINKS=/wheels)
    fi
    # No --layers: vfs keeps every layer as a whole copy, 3 GB for each instruction.
    buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs bud \
      --format docker --isolation chroot --network host --pull-never "${arguments[@]}" . ;;
  *) echo "error: BUILDER is docker or buildah, got '$builder'" >&2; exit 2 ;;
esac
echo "$tag"
