#!/bin/sh
# Create a virtual environment in $1, also on a Debian whose python3 has no ensurepip (package python3-venv).
set -eu
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "lipsyncd needs python3 3.11 or newer" >&2; exit 1; }
if ! python3 -c 'import ensurepip' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && apt-get install -y -qq python3-venv
  else
    echo "this python3 has no ensurepip: install it first (Debian: sudo apt-get install python3-venv)" >&2; exit 1
  fi
fi
python3 -m venv "$1"
