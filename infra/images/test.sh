#!/usr/bin/env bash
# Builds the CPU image with buildah and looks inside: the version, the user, what must and must not be there.
#   BASE=<image in buildah's storage> infra/images/test.sh
# Without BASE and without a registry, debootstrap makes a base (needs root).
set -euo pipefail
cd "$(dirname "$0")/../.."

[ $# = 0 ] || { echo "usage: [BASE=image] infra/images/test.sh" >&2; exit 2; }
command -v buildah >/dev/null || { echo "error: buildah is not installed (apt install buildah)" >&2; exit 2; }
export STORAGE=${STORAGE:-.images}
storage=$(realpath -m "$STORAGE")
mkdir -p "$storage"
image() { buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs "$@"; }

if [ -z "${BASE:-}" ]; then
  BASE=localhost/sfumato-base
  if ! image inspect --type image "$BASE" >/dev/null 2>&1; then
    command -v debootstrap >/dev/null || { echo "error: debootstrap is not installed; or name a BASE" >&2; exit 2; }
    # shellcheck disable=SC2086 # no mirror is no argument: debootstrap has its own
    debootstrap --variant=minbase bookworm "$storage/debian" ${DEBIAN_MIRROR:-} >/dev/null
    container=$(image from scratch)
    image add --quiet "$container" "$storage/debian" / >/dev/null
    image commit --quiet "$container" "$BASE" >/dev/null
    image rm "$container" >/dev/null
    rm -rf "$storage/debian"
  fi
fi
export BASE

tag=$(BUILDER=buildah infra/images/build.sh cpu | tail -n 1)
container=$(image from --pull-never "$tag")
trap 'image rm "$container" >/dev/null' EXIT
inside() { image run --isolation chroot "$container" -- "$@"; }

expected=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' platform/sfumato/__init__.py)
test "$(inside sfumato --version)" = "sfumato $expected"
test "$(inside id -u)" = 1000
inside sfumato recipe check /opt/sfumato/pipelines/digits/ddpm.yaml
inside sfumato-health
if inside sh -c 'command -v g++' >/dev/null 2>&1; then echo "error: the compiler is still there" >&2; exit 1; fi
echo "$tag: whole"
