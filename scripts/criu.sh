#!/usr/bin/env bash
# Makes .venv/criu/criu where the system's CRIU cannot work with the kernel: that of the next Debian, with all the
# libraries that it needs, unpacked and not installed. What cannot be had is said, and is no error: checkpoints
# are refused with a reason then. Usage: scripts/criu.sh [directory], default .venv/criu.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly TARGET=${1:-.venv/criu}
# The suite after the one that a system has.
declare -rA NEXT=([bookworm]=trixie)
export DEBIAN_FRONTEND=noninteractive PATH="$PATH:/usr/sbin:/sbin"

say() { printf '%s\n' "criu: $*" >&2; }
go_without() {
    say "$* Checkpoints of loaded containers are refused here, all else works."
    exit 0
}

works() { "$1" check >/dev/null 2>&1; }

[ "$(id -u)" -eq 0 ] || go_without "needs root."
if [ -x "$TARGET/criu" ] && works "$TARGET/criu"; then exit 0; fi
if command -v criu >/dev/null && works criu; then exit 0; fi
for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null || go_without "the system has no working one, and is no Debian."
done

suite=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
next=${NEXT[$suite]:-}
if [ -z "$next" ]; then go_without "the system has no working one, and I know of no newer one for '$suite'."; fi

# From where this system has its own packages, signed by the same people.
source_of() {
    apt-get indextargets --no-release-info --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)' \
        'Created-By: Packages' 2>/dev/null |
        awk -F'|' -v suite="$suite" '$2 == suite && $3 == "main" { print $1; exit }'
}
address=$(source_of)
if [ -z "$address" ]; then go_without "apt has no source of $suite here."; fi
readonly KEYS=/usr/share/keyrings/debian-archive-keyring.gpg
if [ ! -e $KEYS ]; then go_without "there is no $KEYS to know $next by."; fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache,root}/partial
printf '%s\n' "deb [signed-by=$KEYS] $address $next main" >"$work/sources.list"
: >"$work/status"
# Lists, cache and state of its own: nothing of the system's apt is touched, and to it nothing is installed yet.
readonly APT=(apt-get -qq
    -o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$work/lists" -o "Dir::State::Status=$work/status"
    -o "Dir::State=$work" -o "Dir::Cache=$work/cache" -o "Dir::Cache::Archives=$work/cache"
    -o APT::Sandbox::User=root -o APT::Install-Recommends=false
    -o Acquire::Languages=none -o Acquire::Retries=2 -o Acquire::http::Timeout=30)
say "the system's cannot work with this kernel: unpacking that of $next"
if ! timeout 300 "${APT[@]}" update >"$work/words" 2>&1 ||
    ! timeout 300 "${APT[@]}" install --download-only -y criu >"$work/words" 2>&1; then
    go_without "cannot be had from $next: $(tail -n 1 "$work/words")."
fi
for package in "$work"/cache/*.deb; do
    dpkg-deb --extract "$package" "$work/root"
done

made="$work/made"
mkdir "$made"
loader=$(find "$work/root" -name 'ld-linux*.so*' | head -n 1)
program=$(find "$work/root" -type f -path '*bin/criu' | head -n 1)
if [ -z "$loader" ] || [ -z "$program" ]; then go_without "the packages of $next are not as expected."; fi
cp -L "$loader" "$made/loader"
cp "$program" "$made/program"
mkdir "$made/lib"
find "$work/root" -maxdepth 4 -name '*.so*' -path '*lib*' -exec cp -L -n {} "$made/lib/" \;
cat >"$made/criu" <<'WRAPPER'
#!/bin/sh
# Its own loader and libraries: the system's are older than the program.
here=$(dirname "$(readlink -f "$0")")
exec "$here/loader" --library-path "$here/lib" "$here/program" "$@"
WRAPPER
chmod 755 "$made"/{criu,loader,program}
if ! why=$("$made/criu" check 2>&1); then go_without "that of $next does not work either: $(printf '%s' "$why" | tail -n 1)."; fi
rm -rf "$TARGET"
mkdir -p "$(dirname "$TARGET")"
mv "$made" "$TARGET"
say "$("$TARGET/criu" --version | head -n 1) is in $TARGET"
