# Makes the project's virtual environment and puts it first on PATH. Sourced by demo.sh and test.sh; for a shell
# of your own: source environment.sh
#
#   environment_for FILE...   make .venv once and install the requirement files that changed since;
#                             a file given as nodeps:FILE is installed without its dependencies.
#
# AKS_PYTHON names the Python to use (default: python3.11 or newer on PATH).

environment_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

environment_python() {
    local candidate
    for candidate in ${AKS_PYTHON:-python3.11 python3.12 python3.13 python3}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 to 3.13 found; install one or name it: AKS_PYTHON=/path/to/python3.11" >&2
    return 1
}

environment_create() {
    local python root=$environment_root
    python=$(environment_python) || return 1
    rm -rf "$root/.venv"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$root/.venv"
    elif "$python" -m virtualenv --version >/dev/null 2>&1; then
        "$python" -m virtualenv --quiet "$root/.venv"
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # Debian splits venv off its Python.
        echo "installing Debian's python3-venv" >&2
        { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null && "$python" -m venv "$root/.venv"
    else
        echo "error: $python has no venv module; install it (Debian: sudo apt-get install python3-venv)" >&2
        return 1
    fi
}

environment_for() {
    local root=$environment_root entry file stamp options
    if [ ! -x "$root/.venv/bin/python" ] || ! "$root/.venv/bin/python" -c '' 2>/dev/null; then
        environment_create || return 1
    fi
    for entry in "$@"; do
        options=(); file=$entry
        case $entry in nodeps:*) options=(--no-deps); file=${entry#nodeps:} ;; esac
        stamp=$root/.venv/installed-$file
        if cmp -s "$root/$file" "$stamp"; then continue; fi
        echo "installing $file" >&2
        "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            ${options[@]+"${options[@]}"} -r "$root/$file" || {
            echo "error: $file could not be installed; see pip's message above" >&2
            return 1
        }
        cp "$root/$file" "$stamp"
    done
    # Not by its activate script, which names the folder the environment was made in.
    export VIRTUAL_ENV="$root/.venv" PATH="$root/.venv/bin:$PATH"
}

# torchvision fitting the installed torch, for LAVIS. Its metadata pins torch, so without dependencies;
# 0.28.0 goes with torch 2.13.0 but imports only beside a CUDA build, 0.16.2's transforms work anywhere.
environment_torchvision() {
    local version=0.16.2
    if [ -n "$(python -c 'import torch; print(torch.version.cuda or "")')" ]; then version=0.28.0; fi
    python -c "import importlib.metadata as m, sys; sys.exit(m.version('torchvision') != '$version')" \
        2>/dev/null && return
    echo "installing torchvision $version" >&2
    python -m pip install --quiet --disable-pip-version-check --no-deps "torchvision==$version"
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    echo "source this file, do not run it: source environment.sh" >&2
    exit 2
fi
if [ "$#" = 0 ] && [[ $- == *i* ]]; then
    environment_for requirements.txt nodeps:requirements-conse.txt
fi
