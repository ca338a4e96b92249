#!/bin/sh
# Brings the programs of `make deploy-check` that are no Python packages of ours into a folder: Prometheus with promtool,
# Redis, HAProxy and nginx from Debian's packages, schemas of operators from npm, checkov in an environment of its own. Nothing
# is installed in the system, and no service started. Where there is no apt-get, bring the first ones yourself: they are
# looked for in PATH.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
tools=$(cd "$1" && pwd)
programs="promtool prometheus redis-server redis-cli haproxy nginx"
packages="prometheus redis-server redis-tools haproxy nginx
    libatomic1 libjemalloc2 liblua5.3-0 liblzf1 libopentracing-c-wrapper0 libopentracing1"

checkov=checkov==3.3.30

digest=$(cat "$0" "$here/schemas/package-lock.json" | sha256sum)
if test "$(cat "$tools/installed" 2>/dev/null)" = "$digest"; then exit 0; fi

unpack() {
    mkdir -p "$tools/packages" "$tools/unpacked" "$tools/bin"
    cd "$tools/packages"
    # shellcheck disable=SC2086  one word is one package
    apt-get --quiet --quiet download $packages || { apt-get --quiet --quiet update && apt-get --quiet --quiet download $packages; }
    for package in *.deb; do dpkg-deb --extract "$package" "$tools/unpacked"; done
    libraries=$(echo "$tools"/unpacked/usr/lib/*-linux-gnu)
    for program in $programs; do
        found=$(ls "$tools/unpacked/usr/bin/$program" "$tools/unpacked/usr/sbin/$program" 2>/dev/null | head -n 1)
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$libraries" "$found" > "$tools/bin/$program"
        chmod +x "$tools/bin/$program"
    done
}

if command -v apt-get > /dev/null; then (unpack); fi
mkdir -p "$tools/schemas"
cp "$here"/schemas/package.json "$here"/schemas/package-lock.json "$here"/schemas/validate.mjs "$tools/schemas/"
(cd "$tools/schemas" && npm ci --silent --no-audit --no-fund)
${PYTHON:-python3.11} -m venv "$tools/checkov"
"$tools/checkov/bin/pip" install --quiet --disable-pip-version-check "$checkov"
echo "$digest" > "$tools/installed"
