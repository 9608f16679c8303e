#!/bin/sh
# Remove the service: `make uninstall`. Settings and data stay; their paths are printed at the end.
set -eu
PREFIX=${PREFIX:-/opt/lipsyncd}
link=/usr/local/bin/lipsyncd

[ "$(id -u)" = 0 ] || { echo "make uninstall: needs root: sudo make uninstall" >&2; exit 1; }
if [ -e /usr/local/lib/systemd/system/lipsyncd.service ]; then
  systemctl --quiet disable lipsyncd
  [ ! -d /run/systemd/system ] || systemctl stop lipsyncd
fi
rm -f /usr/local/lib/systemd/system/lipsyncd.service
rm -f /usr/local/lib/sysusers.d/lipsyncd.conf /usr/local/lib/tmpfiles.d/lipsyncd.conf
[ "$(readlink "$link")" != "$PREFIX/bin/lipsyncd" ] || rm -f "$link"
[ ! -e "$PREFIX/pyvenv.cfg" ] || [ ! -e "$PREFIX/bin/lipsyncd" ] || rm -rf "$PREFIX"
rm -rf /var/cache/lipsyncd
[ ! -d /run/systemd/system ] || systemctl daemon-reload

echo "lipsyncd is removed. These files stay, for you to keep or to delete:"
for kept in /etc/lipsyncd /etc/systemd/system/lipsyncd.service.d /var/lib/lipsyncd /srv/lipsyncd; do
  [ ! -e "$kept" ] || echo "  $kept"
done
echo "  the user and the group lipsyncd, who own these files (sudo userdel lipsyncd)"
