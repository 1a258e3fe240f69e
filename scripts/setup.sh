#!/usr/bin/env bash
# Makes .venv with everything that is locked, on a Debian or Ubuntu machine that has only Python 3.11+, make
# and root (or sudo). Usage: scripts/setup.sh base|torch|tools. Each part does nothing when it is done already.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly VENV=.venv OLDEST='(3, 11)'
# Bytecode that is written now saves 3 s at each start of a Ray worker.
unset PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 DEBIAN_FRONTEND=noninteractive

say() { printf '%s\n' "setup: $*" >&2; }
fail() { printf '%s\n' "setup: $*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else fail "needs root to run: $* - run it yourself, or install sudo."; fi
}

apt_updated=
apt_install() {
    command -v apt-get >/dev/null || fail "needs $* - install it with this system's own package manager."
    if [ -z "$apt_updated" ]; then
        say "refreshing apt's lists"
        as_root apt-get -o DPkg::Lock::Timeout=120 update -qq >/dev/null || true
        apt_updated=1
    fi
    say "installing $*"
    as_root apt-get -o DPkg::Lock::Timeout=120 install -y -qq --no-install-recommends "$@" >/dev/null
}

# uv trusts its own list of authorities, which a small Debian lacks; behind a company's proxy only the system's will do.
uv_install() {
    $VENV/bin/uv pip install -q --python $VENV/bin/python --compile-bytecode "$@" 2>$VENV/.uv.txt && return
    UV_SYSTEM_CERTS=1 $VENV/bin/uv pip install -q --python $VENV/bin/python --compile-bytecode "$@" && return
    cat $VENV/.uv.txt >&2
    return 1
}

new_enough() { "$1" -c "import sys; sys.exit(sys.version_info < $OLDEST)" 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
        if command -v "$candidate" >/dev/null && new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer: install it, or name it with PYTHON=/path/to/python3."
}

make_venv() {
    if [ -x $VENV/bin/python ] && new_enough $VENV/bin/python; then
        if $VENV/bin/python -m pip --version >/dev/null 2>&1; then return; fi
        if $VENV/bin/python -m ensurepip -q >/dev/null 2>&1; then return; fi
    fi
    local python version
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    say "making $VENV with Python $version"
    if ! "$python" -m venv --clear $VENV >/dev/null 2>&1; then
        # Debian ships Python without the module that puts pip into a virtual environment.
        apt_install "python$version-venv" || apt_install python3-venv
        "$python" -m venv --clear $VENV
    fi
}

setup_base() {
    make_venv
    if ! $VENV/bin/uv --version >/dev/null 2>&1; then
        say "installing uv"
        $VENV/bin/python -m pip install -q --require-hashes -r requirements-bootstrap.lock
    fi
    say "installing the locked packages"
    uv_install --require-hashes -r requirements.lock
    # hatchling is in the lock, so the build needs nothing from outside.
    uv_install --no-build-isolation --no-deps -e .
    if ! $VENV/bin/python -c 'import cv2' 2>/dev/null; then
        # The OCR example's OpenCV needs two libraries that a small Debian lacks; newer ones renamed one of them.
        apt_install libgl1 libglib2.0-0 || apt_install libgl1 libglib2.0-0t64
        $VENV/bin/python -c 'import cv2'
    fi
}

setup_torch() {
    # torch is in no lock: its builds differ by machine (CPU, CUDA), and a hash would allow just one of them. pip
    # (not uv) takes the build that pip is set up for; PIP_EXTRA_INDEX_URL can name PyTorch's CPU index.
    if ! $VENV/bin/python -c 'import torch, sys; sys.exit(not torch.__version__.startswith("2.13."))' 2>/dev/null; then
        say "installing torch (large)"
        $VENV/bin/python -m pip install -q 'torch==2.13.0'
    fi
    say "installing the embedding example's packages"
    uv_install --no-deps --require-hashes -r requirements-torch.lock
}

setup_tools() {
    command -v wrk >/dev/null || apt_install wrk
    # Tests start servers of their own; Debian keeps the programs off PATH.
    if ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null && ! command -v postgres >/dev/null; then
        apt_install postgresql
    fi
    setup_containers
}

# What the oci and docker runtimes, their images and networks are tested with: program, Debian package.
readonly CONTAINER_TOOLS='runc:runc mke2fs:e2fsprogs buildah:buildah skopeo:skopeo docker-registry:docker-registry
    dockerd:docker.io nft:nftables ip:iproute2 zstd:zstd'

setup_containers() {
    local pair missing=()
    for pair in $CONTAINER_TOOLS; do
        # Debian keeps some of them where only root's PATH looks.
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
    scripts/criu.sh
}

for part in "${@:-base}"; do
    case $part in
        base) setup_base ;;
        torch) setup_torch ;;
        tools) setup_tools ;;
        *) fail "there is no part '$part': base, torch or tools." ;;
    esac
done
