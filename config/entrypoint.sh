#!/bin/sh
# The container's first program: creates the two mounted folders, makes the service's user their owner, and runs lipsyncd
# as that user. Files in the folders keep their owner. Under `docker run --user` it only runs lipsyncd.
set -eu
if [ "$(id -u)" = 0 ]; then
  for folder in "${STORAGE_DIR:-/app/storage}" "${MODELS_DIR:-/app/models}"; do
    mkdir -p "$folder"
    chown 961:961 "$folder" 2>/dev/null || echo "lipsyncd: $folder is read-only; its owner does not change" >&2
  done
  exec setpriv --reuid=961 --regid=961 --clear-groups --no-new-privs lipsyncd "$@"
fi
exec lipsyncd "$@"
