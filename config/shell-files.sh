#!/bin/sh
# Link the man pages and the shells' completions of the version in $1/current to where man and the shells look; with
# --remove, remove these links. The links lead to the current version, so an upgrade replaces all of them at once.
set -eu
[ "$1" != --remove ] || remove=yes
[ -z "${remove-}" ] || shift
prefix=$1

each() {  # from a folder of the version to the system's
  from=$prefix/current/share/$1 to=$2
  [ ! -d "$to" ] || find "$to" -type l -lname "$prefix/current/share/*" -delete
  [ -z "${remove-}" ] || return 0
  for file in "$from"/*; do
    [ -e "$file" ] || continue
    mkdir -p "$to"
    name=$to/${file##*/}
    if [ -e "$name" ]; then echo "$name belongs to another program and stays" >&2; else ln -sf "$file" "$name"; fi
  done
}

each man/man1 /usr/local/share/man/man1
each man/man5 /usr/local/share/man/man5
each bash-completion/completions /usr/local/share/bash-completion/completions
each zsh/site-functions /usr/local/share/zsh/site-functions
each fish/vendor_completions.d /etc/fish/completions  # fish looks below /usr/local only where XDG_DATA_DIRS says so
[ -z "${remove-}" ] || rmdir /etc/fish/completions /etc/fish 2>/dev/null || true
