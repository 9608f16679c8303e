#!/bin/sh
# Install lipsyncd as a system service, or upgrade it: `make install`. Settings and data that are there stay as they are.
#   PREFIX  the virtual environment               (/opt/lipsyncd)
#   EXTRAS  what it gets besides the preview      (musetalk,tts; empty for a box without a GPU)
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
  die "$PREFIX has something else in it; name another PREFIX"
fi

# A service that runs finishes its job first: a render child must not find half of a new version.
was_running=no
if runs; then
  echo "stopping lipsyncd for the upgrade; a running job may finish"
  systemctl stop lipsyncd
  was_running=yes
fi

# -- the program -------------------------------------------------------------------------------------------------------

"$PREFIX/bin/python" -c '' 2>/dev/null || rm -rf "$PREFIX"  # its Python went away with an upgrade of the system
[ -e "$PREFIX/pyvenv.cfg" ] || sh config/venv.sh "$PREFIX"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -R lipsyncd pyproject.toml README.md LICENSE "$work"  # pip builds beside the source: not in the checkout
find "$work" -name __pycache__ -prune -exec rm -rf {} +
"$PREFIX/bin/pip" install --quiet --disable-pip-version-check --constraint config/constraints.txt \
  "$work${EXTRAS:+[$EXTRAS]}"
if [ ! -e "$link" ] || [ "$(readlink "$link")" = "$PREFIX/bin/lipsyncd" ]; then
  ln -sfn "$PREFIX/bin/lipsyncd" "$link"
else
  echo "make install: $link is somebody else's and stays; the command is $PREFIX/bin/lipsyncd" >&2
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

# -- what is left ------------------------------------------------------------------------------------------------------

echo
echo "lipsyncd $("$PREFIX/bin/python" -c 'import lipsyncd; print(lipsyncd.__version__)') is installed in $PREFIX."
if [ $was_running = yes ]; then echo "The service runs again."; exit; fi
cat <<END
What is left to do:

  settings   $settings: the folders, who renders
END
case ",$EXTRAS," in *,musetalk,*) cat <<END
  weights    sudo -u lipsyncd lipsyncd models pull
END
  ;; *) cat <<END
  walls      sudo install -D -m 644 -t /etc/systemd/system/lipsyncd.service.d \\
               $PREFIX/share/lipsyncd/lipsyncd.service.d/cpu-only.conf
END
  ;; esac
cat <<END
  a share    when inbox and outbox lie on one: lipsyncd.service.d/mounted-share.conf, the same way, with its path
  people     sudo adduser NAME lipsyncd          # may drop files, submit, cancel, read the status
  a key      sudo install -m 600 /dev/null /etc/lipsyncd/api-key, one key on each line, for REST from other machines
  start      sudo systemctl daemon-reload && sudo systemctl enable --now lipsyncd
  look       systemctl status lipsyncd; lipsyncd status; journalctl -u lipsyncd
END
