#!/usr/bin/env bash
# Makes the vendored part of referrals/web/static: govuk.css, govuk.js, the fonts and their licences.
# Run it after a change of package.json or a .scss file, and commit what it makes.
# To see whether what is committed is what it would make: build.sh /tmp/made, then diff -r.
#
# The version of govuk-frontend is the one that the macros of govuk-frontend-jinja are written for.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD
to=${1:-$here/../../referrals/web/static}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp package.json package-lock.json "$work"
(cd "$work" && npm ci --silent --omit=optional --ignore-scripts </dev/null)
frontend=$work/node_modules/govuk-frontend
font=$work/node_modules/@fontsource/atkinson-hyperlegible-next
version=$(node -p "require('$frontend/package.json').version")
notice="/*! govuk-frontend $version, MIT licence, Copyright (C) 2017 Crown Copyright (Government Digital Service): see LICENSE-govuk-frontend.txt */"

mkdir -p "$to/fonts"
{
    printf '@charset "UTF-8";\n%s\n' "$notice"
    "$work/node_modules/.bin/sass" --style=compressed --no-charset --no-source-map \
        --load-path="$work/node_modules" referrals.scss
} >"$work/govuk.css"
{
    printf '%s\n' "$notice"
    sed 's|//# sourceMappingURL=.*||' "$frontend/dist/govuk/govuk-frontend.min.js"
} >"$work/govuk.js"
# Only a build that came to its end replaces what is there.
install -m 644 "$work/govuk.css" "$work/govuk.js" "$to"
for weight in 400 700; do
    install -m 644 "$font/files/atkinson-hyperlegible-next-latin-$weight-normal.woff2" \
        "$to/fonts/atkinson-hyperlegible-next-$weight.woff2"
done
install -m 644 "$font/LICENSE" "$to/fonts/OFL.txt"
