#!/bin/sh
# Remove the service: `make uninstall`. Settings and data stay; their paths are printed at the end.
set -eu
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/opt/lipsyncd}
link=/usr/local/bin/lipsyncd

die() { echo "make uninstall: $*" >&2; exit 1; }

# A stop gives the running job its grace. Here each second another SIGTERM says not to wait: the job goes back to the queue.
stop() {
  systemctl stop --no-block lipsyncd
  seconds=0
  while sleep 1; systemctl --quiet is-active lipsyncd || [ "$(systemctl is-active lipsyncd)" = deactivating ]; do
    seconds=$((seconds + 1))
    [ $seconds -lt 8 ] && signal=TERM || signal=KILL  # whatever it is at, it continues there after the next start
    systemctl kill --kill-who=main --signal=$signal lipsyncd 2>/dev/null || true
  done
}

[ "$(id -u)" = 0 ] || die "needs root: sudo make uninstall"
if [ -d "$PREFIX/versions" ]; then
  exec 9>"$PREFIX/versions/.lock"
  flock -n 9 || die "make install is at work in $PREFIX"
fi
if [ -e /usr/local/lib/systemd/system/lipsyncd.service ]; then
  systemctl --quiet disable lipsyncd
  [ ! -d /run/systemd/system ] || stop
fi
rm -f /usr/local/lib/systemd/system/lipsyncd.service
rm -f /usr/local/lib/sysusers.d/lipsyncd.conf /usr/local/lib/tmpfiles.d/lipsyncd.conf
sh config/shell-files.sh --remove "$PREFIX"
[ "$(readlink "$link")" != "$PREFIX/bin/lipsyncd" ] || rm -f "$link"
rm -rf /var/cache/lipsyncd
[ ! -d /run/systemd/system ] || systemctl daemon-reload

# The program is gone at once. Its files, thousands and with torch gigabytes, may take a slow disk longer.
removed=$PREFIX/.removed
ours() {
  [ -e "$PREFIX/versions/.lock" ] || [ -e "$removed" ] || { [ -e "$PREFIX/pyvenv.cfg" ] && [ -e "$PREFIX/bin/lipsyncd" ]; }
}
if ours; then
  mkdir -p "$removed"
  rmdir "$PREFIX/own" 2>/dev/null || true
  for part in "$PREFIX"/*; do
    case $part in "$PREFIX/own" | "$PREFIX/*") ;; *) mv -f "$part" "$removed" ;; esac
  done
  setsid sh -c 'rm -rf "$1"; rmdir "$2"' sh "$removed" "$PREFIX" </dev/null >/dev/null 2>&1 &
  seconds=0
  while [ -e "$removed" ] && [ $seconds -lt 4 ]; do sleep 1; seconds=$((seconds + 1)); done
  [ ! -e "$removed" ] || echo "$removed is being deleted in the background."
fi

echo "lipsyncd is removed. These files stay, for you to keep or to delete:"
for kept in /etc/lipsyncd /etc/systemd/system/lipsyncd.service.d /var/lib/lipsyncd /srv/lipsyncd "$PREFIX/own"; do
  [ ! -e "$kept" ] || echo "  $kept"
done
echo "  the user and the group lipsyncd, who own these files (sudo userdel lipsyncd)"
