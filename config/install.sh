#!/bin/sh
# Install lipsyncd as a system service, or upgrade it: `make install`. Existing settings and data do not change.
#   PREFIX  folder of the program       (default /opt/lipsyncd)
#   EXTRAS  optional parts to install   (default: those of the version before; at first musetalk; empty without a GPU).
#           tts is always among them. musetalk-cuda in place of musetalk finds the points of faces on the GPU, too.
# A new version is built beside the old one, in PREFIX/versions/N, while the old one runs. Then the link PREFIX/current
# is replaced and the service restarts. An upgrade that is interrupted before leaves the old version as it is.
set -eu
umask 022
cd "$(dirname "$0")/.."
PREFIX=${PREFIX:-/opt/lipsyncd}
units=/usr/local/lib/systemd/system
settings=/etc/lipsyncd/lipsyncd.toml
link=/usr/local/bin/lipsyncd

die() { echo "make install: $*" >&2; exit 1; }
runs() { [ -d /run/systemd/system ] && systemctl --quiet is-active lipsyncd; }
# Put the ledger back as it was before the new version migrated it, which the version before refuses to read. What happened
# since is read from the spool and the folders at the next start. As the service's user: the folder is that user's.
ledger_before() {
  runuser -u lipsyncd -- "$PREFIX/current/bin/python" -B - "$settings" "$1" <<'END'
import shutil
import sys
from pathlib import Path

from lipsyncd.settings import load

state = load(Path(sys.argv[1])).paths.state
copies = [path for path in (state / "backups").glob("ledger-v*.db") if path.stat().st_mtime >= float(sys.argv[2])]
if not copies:
    sys.exit(1)
copy = max(copies, key=lambda path: path.stat().st_mtime)
aside = state / "backups" / f"of-failed-upgrade-{copy.stem}"
aside.mkdir(mode=0o750)
for name in ("ledger.db-wal", "ledger.db-shm", "ledger.db"):
    if (state / name).exists():
        (state / name).rename(aside / name)
shutil.copy2(copy, aside / "copy")
(aside / "copy").rename(state / "ledger.db")
print(f"the ledger of before the upgrade is back; the one of the new version is in {aside}")
END
}

[ "$(id -u)" = 0 ] || die "needs root: sudo make install"
command -v systemd-sysusers >/dev/null && command -v systemd-tmpfiles >/dev/null || die "needs systemd"
case $PREFIX in /*/*) ;; *) die "PREFIX is $PREFIX; name an absolute folder of its own" ;; esac
rm -rf "$PREFIX/.removed"  # of a make uninstall whose end was not waited for
if [ ! -e "$PREFIX/versions" ] && [ ! -e "$PREFIX/pyvenv.cfg" ]; then
  case $(ls -A "$PREFIX" 2>/dev/null) in '' | own) ;; *) die "$PREFIX contains other files; name another PREFIX" ;; esac
fi
mkdir -p "$PREFIX/versions" "$PREFIX/bin" "$PREFIX/share" "$PREFIX/own"
exec 9>"$PREFIX/versions/.lock"  # pip holds it, too, so nothing is removed under one that still runs
flock -n 9 || die "another make install or make uninstall is at work in $PREFIX"

# -- which parts -------------------------------------------------------------------------------------------------------

# $PREFIX/current/share/lipsyncd/installation says how the version before was installed.
installed=$(readlink "$PREFIX/current" 2>/dev/null || true)
installed=${installed##*/}
if [ -z "${EXTRAS+given}" ]; then
  if [ -n "$installed" ]; then
    EXTRAS=$(sed -n 's/^extras=//p' "$PREFIX/current/share/lipsyncd/installation")
  elif [ -e "$PREFIX/pyvenv.cfg" ] && ! ls -d "$PREFIX"/lib/python3*/site-packages/torch >/dev/null 2>&1; then
    EXTRAS=  # an installation without versions
  else
    EXTRAS=musetalk
  fi
fi
case ",$EXTRAS," in *,tts,*) ;; *) EXTRAS=tts${EXTRAS:+,$EXTRAS} ;; esac
for extra in $(echo "$EXTRAS" | tr , ' '); do
  case $extra in
    tts | musetalk | musetalk-cuda | voices | demo) ;;
    *) die "EXTRAS has $extra; there are musetalk, musetalk-cuda, tts, voices, demo" ;;
  esac
done
case ",$EXTRAS," in *,musetalk,* | *,musetalk-cuda,*) gpu=yes ;; *) gpu=no ;; esac
case ",$EXTRAS," in *,musetalk-cuda,*) case ",$EXTRAS," in *,musetalk,* | *,voices,*)
  die "EXTRAS is $EXTRAS: musetalk-cuda does without musetalk and voices, whose onnxruntime would overwrite its own" ;;
esac ;; esac

# -- the new version, beside the old one -------------------------------------------------------------------------------

for version in "$PREFIX"/versions/*; do  # what an interrupted installation has left
  [ ! -e "$version" ] || [ -e "$version/share/lipsyncd/installation" ] || rm -rf "$version"
done
number=$((${installed:-0} + 1))
while [ -e "$PREFIX/versions/$number" ]; do number=$((number + 1)); done
new=$PREFIX/versions/$number
work=$(mktemp -d)
left() {
  rm -rf "$work"
  [ -e "$new/share/lipsyncd/installation" ] && return
  rm -rf "$new"
  [ -z "$installed" ] || echo "make install: not upgraded; the installed version is as it was" >&2
}
trap left EXIT
trap 'exit 1' HUP INT TERM

echo "installing lipsyncd with $EXTRAS into $new"
sh config/venv.sh "$new"
[ ! -e "$settings" ] || "$new/bin/python" -B - "$settings" <<'END' || die "correct $settings first"
import sys
from pathlib import Path

from lipsyncd.errors import ConfigError
from lipsyncd.settings import load

try:
    load(Path(sys.argv[1]))
except ConfigError as error:
    sys.exit("\n".join(error.lines))
END
cp -R lipsyncd config pyproject.toml README.md LICENSE "$work"  # pip writes beside its source: not into the checkout
find "$work" -name __pycache__ -prune -exec rm -rf {} +
sh config/pip-install.sh "$new" --constraint config/constraints.txt "$work[$EXTRAS]"
for packages in "$new"/lib/python3*/site-packages; do echo "$PREFIX/own" > "$packages/own.pth"; done
share=$new/share/lipsyncd
put() { install -D -m 644 "$1" "$2/$(basename "$1")"; }
put lipsyncd.toml "$share"
for drop_in in systemd/lipsyncd.service.d/*.conf; do put "$drop_in" "$share/lipsyncd.service.d"; done
printf 'method=service\nprefix=%s\ncheckout=%s\nextras=%s\n' "$PREFIX" "$(pwd -P)" "$EXTRAS" > "$work/installation"
put "$work/installation" "$share"  # last: with it the version is complete

# -- the service -------------------------------------------------------------------------------------------------------

put systemd/sysusers.d/lipsyncd.conf /usr/local/lib/sysusers.d
put systemd/tmpfiles.d/lipsyncd.conf /usr/local/lib/tmpfiles.d
systemd-sysusers lipsyncd.conf
systemd-tmpfiles --create lipsyncd.conf
put systemd/lipsyncd.service "$units"
sed -i "s#/opt/lipsyncd#$PREFIX#g" "$units/lipsyncd.service"
if [ ! -e "$settings" ]; then
  install -D -m 644 config/service.toml "$settings"
  sed -i "s#/opt/lipsyncd#$PREFIX#g" "$settings"
  [ $gpu = yes ] || sed -i -E 's/^# (renderer|devices) /\1 /' "$settings"
fi

# -- the swap: a running service keeps the files of its own version until it ends --------------------------------------

point() { ln -s "$1" "$2.new.$$" && mv -fT "$2.new.$$" "$2"; }
point "versions/$number" "$PREFIX/current"
[ -L "$PREFIX/share/lipsyncd" ] || rm -rf "$PREFIX/share/lipsyncd"  # of an installation without versions
point ../current/share/lipsyncd "$PREFIX/share/lipsyncd"
point ../current/bin/lipsyncd "$PREFIX/bin/lipsyncd"
if [ ! -e "$link" ] || [ "$(readlink "$link")" = "$PREFIX/bin/lipsyncd" ]; then
  ln -sfn "$PREFIX/bin/lipsyncd" "$link"
else
  echo "make install: $link belongs to another program and stays; the command is $PREFIX/bin/lipsyncd" >&2
fi
sh config/shell-files.sh "$PREFIX"
[ ! -d /run/systemd/system ] || systemctl daemon-reload
was_running=no
if runs; then
  was_running=yes
  echo "restarting lipsyncd; its running job may finish first"
  since=$(date +%s)
  if ! systemctl restart lipsyncd; then
    [ -n "$installed" ] || die "the new version does not start; see journalctl -u lipsyncd"
    point "versions/$installed" "$PREFIX/current"
    if ! systemctl restart lipsyncd; then
      systemctl stop lipsyncd
      ledger_before "$since" && systemctl restart lipsyncd ||
        die "neither the new version nor the one before starts; see journalctl -u lipsyncd"
    fi
    rm -rf "$new"
    die "the new version does not start (journalctl -u lipsyncd says why); the one before runs again"
  fi
fi
for version in "$PREFIX"/versions/*; do [ "$version" = "$new" ] || rm -rf "$version"; done
if [ -e "$PREFIX/pyvenv.cfg" ]; then  # of an installation without versions
  rm -rf "$PREFIX/pyvenv.cfg" "$PREFIX/lib" "$PREFIX/lib64" "$PREFIX/include"
  find "$PREFIX/bin" -mindepth 1 ! -name lipsyncd -delete
fi

# -- next steps --------------------------------------------------------------------------------------------------------

echo
echo "lipsyncd $("$new/bin/python" -c 'import lipsyncd; print(lipsyncd.__version__)') is installed in $PREFIX, with $EXTRAS."
if [ $was_running = yes ]; then echo "The service is running again."; exit; fi
cat <<END
Next steps:

  settings   edit $settings: the folders and the renderer
END
if [ $gpu = yes ]; then cat <<END
  weights    sudo -u lipsyncd lipsyncd models pull
END
else cat <<END
  no GPU     sudo install -D -m 644 -t /etc/systemd/system/lipsyncd.service.d \\
               $PREFIX/share/lipsyncd/lipsyncd.service.d/cpu-only.conf
END
fi
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
