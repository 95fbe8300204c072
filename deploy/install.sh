#!/bin/sh
# Installs idagg as a service of this machine, from this source. To repeat it is to upgrade.
#
#   deploy/install.sh                  program in /usr/lib/idagg, settings in /etc/idagg; starts the service
#   deploy/install.sh --uninstall      removes the program and the unit; settings, counts and logs stay
#   deploy/install.sh --into FOLDER    only puts the files below FOLDER, for deploy/debian/build
#
# Needs root, python3 (3.11 or newer) with venv, and systemd.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

# The program, in a virtual environment of its own. $1: below which folder
put_program() {
    venv=$1/usr/lib/idagg
    rm -rf "$venv.new"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "python3 is older than 3.11: install a newer one"
    python3 -m venv "$venv.new" || fail "python3 cannot make virtual environments: apt-get install python3-venv"
    "$venv.new/bin/pip" install --quiet --no-compile --require-hashes -r deploy/requirements.lock
    "$venv.new/bin/pip" install --quiet --no-compile --no-deps .
    "$venv.new/bin/pip" uninstall --quiet --yes pip setuptools
    find "$venv.new/bin" ! -name 'python*' ! -name idagg -type f -delete
    rm -f "$venv.new/bin/python3."*
    # Both name the folder in which they were made.
    sed -i '1s,.*,#!/usr/lib/idagg/bin/python3,' "$venv.new/bin/idagg"
    sed -i '/^command/d' "$venv.new/pyvenv.cfg"
    rm -rf "$venv"
    mv "$venv.new" "$venv"
    mkdir -p "$1/usr/bin"
    ln -sf ../lib/idagg/bin/idagg "$1/usr/bin/idagg"
    install -m 755 deploy/idagg-check "$1/usr/bin/idagg-check"
}

# Unit, user, folders. $1: below which folder
put_service() {
    install -D -m 644 deploy/idagg.service "$1/lib/systemd/system/idagg.service"
    sed -e 's,/etc/idagg/idagg.toml,/etc/idagg/%i.toml,' -e 's,/etc/idagg/credentials$,/etc/idagg/credentials-%i,' \
        -e 's,/etc/default/idagg,/etc/default/idagg-%i,' -e 's,^\(StateDirectory\|RuntimeDirectory\)=idagg,&-%i,' \
        -e 's,/var/log/idagg/unique_id_capture,/var/log/idagg/%i,' -e 's,^Description=.*,& (%i),' \
        deploy/idagg.service >"$1/lib/systemd/system/idagg@.service"
    chmod 644 "$1/lib/systemd/system/idagg@.service"
    install -D -m 644 deploy/sysusers.conf "$1/usr/lib/sysusers.d/idagg.conf"
    install -D -m 644 deploy/tmpfiles.conf "$1/usr/lib/tmpfiles.d/idagg.conf"
    install -D -m 644 deploy/logrotate "$1/etc/logrotate.d/idagg"
    install -d "$1/usr/share/doc/idagg"
    install -m 644 README.rst CHANGELOG.rst CONTRIBUTING.rst SECURITY.rst docs/*.rst deploy/sysctl.conf \
        "$1/usr/share/doc/idagg"
    install -D -m 644 -t "$1/usr/share/doc/idagg/reference" docs/reference/*.rst
    # Alert rules and a dashboard, for the machines of Prometheus and Grafana.
    cp -R deploy/prometheus deploy/grafana "$1/usr/share/doc/idagg"
    install -d -m 700 "$1/etc/idagg/credentials"
    # Settings that are there stay.
    if [ ! -e "$1/etc/idagg/idagg.toml" ]; then
        "$1/usr/lib/idagg/bin/python3" -B -m idagg config --example >"$1/etc/idagg/idagg.toml"
    fi
}

case ${1:-} in
'')
    [ "$(id -u)" = 0 ] || fail "it needs root: run it with sudo"
    command -v systemctl >/dev/null || fail "there is no systemd here: pip install . and idagg serve need none"
    put_program ""
    /usr/lib/idagg/bin/python3 -m compileall -q /usr/lib/idagg
    put_service ""
    systemd-sysusers idagg.conf
    systemd-tmpfiles --create idagg.conf
    systemctl daemon-reload
    running=$(systemctl list-units --plain --no-legend --state=active idagg.service 'idagg@*' | cut -d ' ' -f 1)
    if [ "$running" ]; then
        systemctl reload $running
        echo "upgraded: $running"
    else
        systemctl enable --now idagg
        echo "idagg runs: idagg-check tells how it is, its settings are in /etc/idagg/idagg.toml"
    fi
    ;;
--uninstall)
    [ "$(id -u)" = 0 ] || fail "it needs root: run it with sudo"
    systemctl disable --now idagg 2>/dev/null || true
    for instance in $(systemctl list-units --plain --no-legend --all 'idagg@*' | cut -d ' ' -f 1); do
        systemctl disable --now "$instance"
    done
    rm -rf /usr/lib/idagg /usr/bin/idagg /usr/bin/idagg-check /lib/systemd/system/idagg.service \
        /lib/systemd/system/idagg@.service /usr/lib/sysusers.d/idagg.conf /usr/lib/tmpfiles.d/idagg.conf \
        /etc/logrotate.d/idagg /usr/share/doc/idagg
    systemctl daemon-reload
    echo "idagg is removed; left: /etc/idagg, /var/lib/idagg (what is counted and not delivered), /var/log/idagg"
    ;;
--into)
    folder=${2:?"--into needs a folder"}
    put_program "$folder"
    put_service "$folder"
    ;;
*) fail "unknown option $1: see the first lines of this file" ;;
esac
