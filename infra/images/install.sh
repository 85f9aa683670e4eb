#!/usr/bin/env bash
# Installs into the active environment, in the versions of constraints.txt.
#   install.sh dependencies   what the package needs, without the package (layer that changes rarely)
#   install.sh package        the package itself, without asking an index for anything
# TORCH_INDEX: package index for PyTorch. SFUMATO_GPU=1: also what only GPUs can use.
set -euo pipefail

extras=features,cluster${SFUMATO_GPU:+,deepspeed}

dependencies() {
  python3 -m pip install --upgrade "$(grep '^pip==' constraints.txt)" "$(grep '^setuptools==' constraints.txt)"
  # First, so that nobody's dependency brings another build.
  local index=()
  [ -z "${TORCH_INDEX:-}" ] || index=(--index-url "$TORCH_INDEX")
  python3 -m pip install --no-deps "${index[@]}" "$(grep '^torch==' constraints.txt)"
  # An empty package has the same dependencies as the full one.
  local empty
  empty=$(mktemp -d)
  cp pyproject.toml README.md LICENSE "$empty"
  mkdir -p "$empty/platform/sfumato"
  printf '__version__ = "0"\n' > "$empty/platform/sfumato/__init__.py"
  python3 -m pip install -c constraints.txt "$empty[$extras]"
  python3 -m pip uninstall --yes sfumato
  rm -rf "$empty"
}

package() {
  python3 -m pip install --no-deps --no-build-isolation .
  # Prints nothing and exits 0 while this container does what it is for.
  install -m 0755 /dev/stdin "$VIRTUAL_ENV_BIN/sfumato-health" <<'EOF'
#!/bin/sh
# Where a raylet runs, Ray has to answer; where MLflow is served, its server; else the program has to start.
if [ -S /tmp/ray/session_latest/sockets/raylet ]; then exec ray health-check >/dev/null 2>&1; fi
if [ -n "${MLFLOW_BACKEND_STORE_URI:-}" ]; then exec wget -qO /dev/null http://127.0.0.1:5000/health; fi
exec sfumato --version >/dev/null
EOF
}

VIRTUAL_ENV_BIN=$(dirname "$(command -v python3)")
case "${1:-}" in
  dependencies) dependencies ;;
  package) package ;;
  *) echo "usage: install.sh dependencies|package" >&2; exit 2 ;;
esac
