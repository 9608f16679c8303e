#!/bin/sh
# Install the Debian packages that some tests need besides pip's: a container, an image builder, a tracer, a mount of
# one folder on another, a small compiler for a clock that can be set, the programs that run the client examples of
# docs/rest.md, the shells that complete, man, and a browser. Without root, or on another system, nothing is installed,
# and those tests are skipped with a reason.
set -eu
missing=""
need() { command -v "$1" >/dev/null 2>&1 || missing="$missing $2"; }
need mmdebstrap mmdebstrap
need gpg gpg  # mmdebstrap asks it which key ring signs a suite
need systemd-analyze systemd
need systemd-nspawn systemd-container
need strace strace
need bindfs bindfs
need fusermount fuse
need buildah buildah
command -v cc >/dev/null || need tcc tcc
need curl curl
need node nodejs
need groff groff-base
need man man-db
need zsh zsh
need fish fish
need chromium chromium
need npm npm  # fetches axe-core, which looks for what keeps people from using the page
[ -e /usr/share/bash-completion/bash_completion ] || missing="$missing bash-completion"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # shellcheck disable=SC2086  one word for each package
  apt-get install -y -qq --no-install-recommends $missing >/dev/null
else
  echo "some tests will be skipped; to run them all: sudo apt-get install$missing" >&2
fi
