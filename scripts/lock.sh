#!/usr/bin/env bash
# Writes the lock files: exact versions and hashes for every platform, and no address of any registry.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly UV=${UV:-.venv/bin/uv}
# What this machine is set up with stays here: another has other mirrors and local files.
unset UV_INDEX UV_INDEX_URL UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS

compile() {
    "$UV" pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
        --no-emit-find-links --custom-compile-command "make lock" "$@"
}

excluded=$(mktemp)
trap 'rm -f "$excluded"' EXIT
# torch is installed by pip (scripts/setup.sh says why); sentence-transformers is not used by the example.
printf '%s\n' "torch ; python_version < '3'" "sentence-transformers ; python_version < '3'" >"$excluded"

echo uv | compile -o requirements-bootstrap.lock -
compile --extra dev --extra bench --extra examples -o requirements.lock pyproject.toml
python3 -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]
print("\n".join(p["optional-dependencies"]["examples-torch"]))' |
    compile --overrides "$excluded" -c requirements.lock -o requirements-torch.lock -
if grep -nE '://|--(extra-)?index|--find-links' requirements*.lock; then
    echo "lock: an address got into a lock file" >&2
    exit 1
fi
