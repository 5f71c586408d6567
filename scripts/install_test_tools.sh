#!/usr/bin/env bash
# Puts in place the MIME parsers of other languages that the tests read our messages with:
# Debian's Email::MIME (Perl), and mailparser and postal-mime (Node.js, tests/parsers/).
# What is there already is left alone. With CI=true anything missing is a failure;
# elsewhere it is said, and the tests that need it tell the rest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cannot() {
    echo "install_test_tools: $1" >&2
    if [ "${CI:-}" = true ]; then exit 1; fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120)
    local install=("${apt[@]}" install --no-install-recommends "$@")
    # The lists of a new machine are empty or old; only then are they fetched.
    as_root "${install[@]}" >/dev/null 2>&1 && return
    as_root "${apt[@]}" update >/dev/null && as_root "${install[@]}" >/dev/null
}

packages=()
perl -MEmail::MIME -e1 2>/dev/null || packages+=(libemail-mime-perl)
if ! command -v node >/dev/null; then
    packages+=(nodejs npm)
elif ! command -v npm >/dev/null; then
    packages+=(npm)
fi

if [ ${#packages[@]} -gt 0 ]; then
    wanted="apt-get install ${packages[*]}"
    if ! command -v apt-get >/dev/null; then
        cannot "the tests need Perl's Email::MIME, Node.js and npm, and this is not Debian. Install them by hand."
    elif [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
        cannot "neither root nor sudo without a password. Ask someone who has them for: $wanted"
    else
        echo "Installing for the tests: ${packages[*]}"
        apt_install "${packages[@]}" || cannot "this failed: $wanted"
    fi
fi

# The lock that node_modules was made from is kept inside it, written last.
cd tests/parsers
if cmp -s package-lock.json node_modules/.made-from; then
    exit 0
fi
if ! command -v npm >/dev/null; then
    cannot "no npm, so mailparser and postal-mime are not installed."
    exit 0
fi
if ! mkdir -p "${npm_config_cache:-${HOME:-/nonexistent}/.npm}" 2>/dev/null; then
    npm_config_cache=$(mktemp -d)
    export npm_config_cache
    trap 'rm -rf "$npm_config_cache"' EXIT
fi
if npm ci --silent </dev/null; then
    cp package-lock.json node_modules/.made-from
else
    cannot "npm ci failed in tests/parsers; run it there to see why."
fi
