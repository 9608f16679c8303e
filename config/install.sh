#!/bin/sh
# Install lipsyncd as a system service, or upgrade it: `make install`. Existing settings and data do not change.
#   PREFIX  folder of the virtual environment     (default /opt/lipsyncd)
#   EXTRAS  optional parts to install             (default musetalk,tts; empty for a machine without a GPU)
set -eu
umask 022
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/opt/lipsyncd}
EXTRAS=${EXTRAS-musetalk,tts}
units=/usr/local/lib/systemd/system
settings=/etc/lipsyncd/lipsyncd.toml
link=/usr/local/bin/lipsyncd

die() { echo "make install: $*" >&2; exit 1; }
runs() { [ -d /run/systemd/system ] && systemctl --quiet is-active lipsyncd; }

[ "$(id -u)" = 0 ] || die "needs root: sudo make install"
command -v systemd-sysusers >/dev/null && command -v systemd-tmpfiles >/dev/null || die "needs systemd"
case $PREFIX in /*/*) ;; *) die "PREFIX is $PREFIX; name an absolute folder of its own" ;; esac
if [ -e "$PREFIX" ] && [ ! -e "$PREFIX/pyvenv.cfg" ] && [ -n "$(ls -A "$PREFIX")" ]; then
  die "$PREFIX contains other files; name another PREFIX"
fi

# Stop a running service first: a render child must not load files of two versions.
was_running=no
if runs; then
  echo "stopping lipsyncd for the upgrade; its running job may finish first"
  systemctl stop lipsyncd
  was_running=yes
fi

# -- the program -------------------------------------------------------------------------------------------------------

"$PREFIX/bin/python" -c '' 2>/dev/null || rm -rf "$PREFIX"  # an upgrade of the system removed its Python
[ -e "$PREFIX/pyvenv.cfg" ] || sh config/venv.sh "$PREFIX"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R lipsyncd pyproject.toml README.md LICENSE "$work"  # pip writes beside its source: not into the checkout
find "$work" -name __pycache__ -prune -exec rm -rf {} +
"$PREFIX/bin/pip" install --quiet --disable-pip-version-check --constraint config/constraints.txt \
  "$work${EXTRAS:+[$EXTRAS]}"
if [ ! -e "$link" ] || [ "$(readlink "$link")" = "$PREFIX/bin/lipsyncd" ]; then
  ln -sfn "$PREFIX/bin/lipsyncd" "$link"
else
  echo "make install: $link belongs to another program and stays; the command is $PREFIX/bin/lipsyncd" >&2
fi

# -- the service -------------------------------------------------------------------------------------------------------

put() { install -D -m 644 "$1" "$2/$(basename "$1")"; }
put systemd/sysusers.d/lipsyncd.conf /usr/local/lib/sysusers.d
put systemd/tmpfiles.d/lipsyncd.conf /usr/local/lib/tmpfiles.d
systemd-sysusers lipsyncd.conf
systemd-tmpfiles --create lipsyncd.conf
put systemd/lipsyncd.service "$units"
sed -i "s#/opt/lipsyncd#$PREFIX#g" "$units/lipsyncd.service"
put lipsyncd.toml "$PREFIX/share/lipsyncd"
for drop_in in systemd/lipsyncd.service.d/*.conf; do put "$drop_in" "$PREFIX/share/lipsyncd/lipsyncd.service.d"; done
if [ ! -e "$settings" ]; then
  install -D -m 644 config/service.toml "$settings"
  sed -i "s#/opt/lipsyncd#$PREFIX#g" "$settings"
  case ",$EXTRAS," in *,musetalk,*) ;; *) sed -i -E 's/^# (renderer|devices) /\1 /' "$settings" ;; esac
fi
[ ! -d /run/systemd/system ] || systemctl daemon-reload
[ $was_running = no ] || systemctl start lipsyncd

# -- next steps --------------------------------------------------------------------------------------------------------

echo
echo "lipsyncd $("$PREFIX/bin/python" -c 'import lipsyncd; print(lipsyncd.__version__)') is installed in $PREFIX."
if [ $was_running = yes ]; then echo "The service is running again."; exit; fi
cat <<END
Next steps:

  settings   edit $settings: the folders and the renderer
END
case ",$EXTRAS," in *,musetalk,*) cat <<END
  weights    sudo -u lipsyncd lipsyncd models pull
END
  ;; *) cat <<END
  no GPU     sudo install -D -m 644 -t /etc/systemd/system/lipsyncd.service.d \\
               $PREFIX/share/lipsyncd/lipsyncd.service.d/cpu-only.conf
END
  ;; esac
cat <<END
  share      if inbox and outbox are on a file server, write its mount point into
               $PREFIX/share/lipsyncd/lipsyncd.service.d/mounted-share.conf
               and copy that file to /etc/systemd/system/lipsyncd.service.d
  users      sudo adduser NAME lipsyncd          # may drop files, submit and cancel jobs, and read their status
  REST key   sudo install -m 600 /dev/null /etc/lipsyncd/api-key, then write one key on each line; needed for access
               from other machines
  start      sudo systemctl daemon-reload && sudo systemctl enable --now lipsyncd
  check      systemctl status lipsyncd; lipsyncd doctor; journalctl -u lipsyncd
END
