#!/bin/sh
# Install into the virtual environment $1 with pip, and say meanwhile what is downloaded: the rest of the arguments is
# pip's. `pip --quiet` says nothing for minutes, and without it the terminal is full of what is satisfied already.
set -eu
venv=$1; shift
status=$(mktemp)
trap 'rm -f "$status"' EXIT
echo "lipsyncd: installing Python packages into $venv; the first time this takes a minute or two"
{
  code=0
  "$venv/bin/pip" install --disable-pip-version-check --progress-bar off "$@" || code=$?
  echo "$code" >"$status"
} | awk '
  $1 == "Downloading" && / \([0-9.]+ [kMG]?B\)$/ && !/\.metadata / {
    name = $2; sub(/.*\//, "", name); sub(/-.*/, "", name)
    size = $0; sub(/.*\(/, "", size); sub(/\)$/, "", size)
    print "  downloading " name ", " size
  }
  /^Installing collected packages:/ { print "  installing " gsub(/,/, ",") + 1 " packages" }
  { fflush() }'
code=$(cat "$status")
[ "$code" = 0 ] || echo "lipsyncd: pip failed, as it says above; run the same command again to go on" >&2
exit "$code"
