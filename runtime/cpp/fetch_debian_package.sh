#!/usr/bin/env bash
# Unpacks a Debian package into a folder; nothing is installed.
#
#   fetch_debian_package.sh PACKAGE FOLDER [newer]
#
# From the package sources that this machine is configured with; with `newer`, or where its release has no such
# package, from a newer release of the same sources, asked with state folders of their own.
set -euo pipefail

PACKAGE=${1:?name a package}
FOLDER=${2:?name a folder}
NEWER=trixie

command -v apt-get >/dev/null || { echo "error: apt-get not found, $PACKAGE cannot be fetched" >&2; exit 2; }
mkdir -p "$FOLDER"
FOLDER=$(cd "$FOLDER" && pwd)
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cd "$WORK"

if [ "${3:-}" = newer ] || ! apt-get download "$PACKAGE" >/dev/null 2>&1; then
    site=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | head -n 1)
    [ -n "$site" ] || { echo "error: no Debian package source is configured, $PACKAGE cannot be fetched" >&2; exit 2; }
    mkdir -p lists/partial cache/archives/partial
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $NEWER main" >newer.list
    own=(-o Dir::Etc::sourcelist="$WORK/newer.list" -o Dir::Etc::sourceparts=/dev/null
        -o Dir::State::lists="$WORK/lists" -o Dir::Cache="$WORK/cache" -o APT::Sandbox::User=root)
    { apt-get "${own[@]}" update && apt-get "${own[@]}" download "$PACKAGE"; } >/dev/null 2>&1 ||
        { echo "error: $PACKAGE is in no package source that this machine is configured with" >&2; exit 2; }
fi
dpkg -x "$PACKAGE"_*.deb "$FOLDER"
