#!/bin/sh
# The container's first program: creates the two mounted folders, makes the service's user their owner, and runs lipsyncd
# as that user. Files in the folders keep their owner. Under `docker run --user` it only runs lipsyncd.
# CAP_LEASE (`--cap-add LEASE`) is handed on to lipsyncd where the container has it; no other capability is.
set -eu
if [ "$(id -u)" = 0 ]; then
  for folder in "${STORAGE_DIR:-/app/storage}" "${MODELS_DIR:-/app/models}"; do
    mkdir -p "$folder"
    chown 961:961 "$folder" 2>/dev/null || echo "lipsyncd: $folder is read-only; its owner does not change" >&2
  done
  lease=
  permitted=$(sed -n 's/^CapPrm:[[:space:]]*//p' /proc/self/status)
  if [ $((0x$permitted >> 28 & 1)) = 1 ]; then lease="--inh-caps=-all,+lease --ambient-caps=-all,+lease"; fi
  # shellcheck disable=SC2086 # two words or none
  exec setpriv --reuid=961 --regid=961 --clear-groups --no-new-privs $lease lipsyncd "$@"
fi
exec lipsyncd "$@"
