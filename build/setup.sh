#!/bin/sh
# Installs what the project is built with from Debian's packages; does nothing where all is there.
# Usage: sh build/setup.sh [demo]    (demo: also a package that ships a short video)
set -eu

packages="gcc g++ libc6-dev cmake ninja-build pkg-config flex bison python3
  libyaml-dev libjansson-dev libpng-dev libjpeg62-turbo-dev zlib1g-dev libminizip-dev
  libbz2-dev libcmocka-dev
  libavformat-dev libavcodec-dev libavutil-dev libswscale-dev"
[ "${1-}" = demo ] && packages="$packages python3-imageio"

if ! command -v dpkg-query >/dev/null 2>&1; then
    echo "setup: this is not Debian; install the equivalents of:" $packages >&2
    exit 3
fi
missing=
for package in $packages; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    as_root=sudo
else
    echo "setup: these packages are missing, and neither root nor sudo is at hand:" >&2
    echo "   $missing" >&2
    echo "setup: ask an administrator to run: apt-get install$missing" >&2
    exit 3
fi
echo "setup: installing$missing"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { $as_root apt-get update && $as_root env DEBIAN_FRONTEND=noninteractive \
       apt-get install -y --no-install-recommends $missing; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "setup: apt-get could not install these packages (its last lines stand above)" >&2
    exit 3
fi
