#!/usr/bin/env bash
# Puts in place what the tests talk to and compare with that is not Python's: the MIME parsers of
# other languages (Debian's Email::MIME for Perl, mailparser and postal-mime for Node.js), Debian's
# Postfix with its smtp-sink and Cyrus SASL, which no test runs as the machine's service, Node's
# smtp-server, systemd's reader of units, and for the pages Debian's Chromium and axe-core.
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

# Never takes a package away: Postfix would push out another mail server.
apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120)
    local install=("${apt[@]}" install --no-install-recommends --no-remove "$@")
    # The lists of a new machine are empty or old; only then are they fetched.
    as_root "${install[@]}" >/dev/null 2>&1 && return
    as_root "${apt[@]}" update >/dev/null && as_root "${install[@]}" >/dev/null
}

# Asks invoke-rc.d(8) to start nothing while packages are installed.
start_nothing() {
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap 'as_root rm -f /usr/sbin/policy-rc.d' EXIT
        printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
        as_root chmod 755 $policy
    fi
    "$@"
}

# Postfix without a configuration of its own never runs, not even when the machine is restarted.
install_postfix() {
    as_root debconf-set-selections <<<"postfix postfix/main_mailer_type select No configuration" &&
        apt_install "$@"
}

# need WHAT-FOR INSTALLER PACKAGE...
need() {
    local what=$1 installer=$2
    shift 2
    [ $# -gt 0 ] || return 0
    local wanted="apt-get install $*"
    if ! command -v apt-get >/dev/null; then
        cannot "the tests need $what, and this is not Debian. Install them by hand."
    elif [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
        cannot "neither root nor sudo without a password. Ask someone who has them for: $wanted"
    else
        echo "Installing for the tests: $*"
        (start_nothing "$installer" "$@") || cannot "this failed: $wanted"
    fi
}

packages=()
perl -MEmail::MIME -e1 2>/dev/null || packages+=(libemail-mime-perl)
if ! command -v node >/dev/null; then
    packages+=(nodejs npm)
elif ! command -v npm >/dev/null; then
    packages+=(npm)
fi
need "Perl's Email::MIME, Node.js and npm" apt_install "${packages[@]}"

# In /usr/sbin, which is not on everybody's path.
packages=()
[ -x /usr/sbin/postfix ] || packages+=(postfix)
[ -x /usr/sbin/saslpasswd2 ] || packages+=(sasl2-bin)
compgen -G "/usr/lib/*/sasl2/libplain.so" >/dev/null || packages+=(libsasl2-modules)
need "Postfix, saslpasswd2 and SASL's PLAIN" install_postfix "${packages[@]}"

packages=()
[ -x /usr/bin/chromium ] || packages+=(chromium)
command -v wrk >/dev/null || packages+=(wrk)
need "Chromium, and wrk to measure with" apt_install "${packages[@]}"

# systemd-analyze, which reads the units of deploy/; nothing is started.
packages=()
command -v systemd-analyze >/dev/null || packages+=(systemd)
need "systemd-analyze" apt_install "${packages[@]}"

# The lock that a node_modules was made from is kept inside it, written last.
# npm_install FOLDER WHAT
npm_install() {
    if cmp -s "$1/package-lock.json" "$1/node_modules/.made-from"; then
        return
    fi
    if ! command -v npm >/dev/null; then
        cannot "no npm, so there is no $2."
    elif (cd "$1" && npm ci --silent </dev/null); then
        cp "$1/package-lock.json" "$1/node_modules/.made-from"
    else
        cannot "npm ci failed in $1; run it there to see why."
    fi
}

if ! mkdir -p "${npm_config_cache:-${HOME:-/nonexistent}/.npm}" 2>/dev/null; then
    npm_config_cache=$(mktemp -d)
    export npm_config_cache
    trap 'rm -rf "$npm_config_cache"' EXIT
fi
npm_install tests/parsers "mailparser or postal-mime"
npm_install tests/relays smtp-server
npm_install tests/browser axe-core
