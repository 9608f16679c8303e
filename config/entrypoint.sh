#!/bin/sh
# The container's first program: makes the two folders that are mounted, gives them to the service's user, and goes on
# as that user. What lies in them keeps its owner. Under `docker run --user` there is nothing to give, and nothing is.
set -eu
if [ "$(id -u)" = 0 ]; then
  for folder in "${STORAGE_DIR:-/app/storage}" "${MODELS_DIR:-/app/models}"; do
    mkdir -p "$folder"
    chown 961:961 "$folder" 2>/dev/null || echo "lipsyncd: $folder stays as it is: read-only" >&2
  done
  exec setpriv --reuid=961 --regid=961 --clear-groups --no-new-privs lipsyncd "$@"
fi
exec lipsyncd "$@"
