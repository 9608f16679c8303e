#!/bin/sh
# Print the folder for the files of `make test`: /dev/shm where there is room and programs may run, else the usual one.
# Daemons wait for their disk at every step of a job, and the first half of the tests is not about disks.
set -eu
usual=${TMPDIR:-/tmp} memory=/dev/shm needed_kb=6000000
room=$(df --output=avail "$memory" 2>/dev/null | tail -1)
[ "${room:-0}" -gt "$needed_kb" ] && [ -w "$memory" ] || { echo "$usual"; exit 0; }
trial=$(mktemp "$memory/lipsyncd-XXXXXX")
trap 'rm -f "$trial"' EXIT
printf '#!/bin/sh\n' > "$trial" && chmod +x "$trial"
if "$trial" 2>/dev/null; then echo "$memory"; else echo "$usual"; fi
