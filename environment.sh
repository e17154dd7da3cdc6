# Makes the project's virtual environment and puts it first on PATH. Sourced by demo.sh and test.sh; for a shell
# of your own: source environment.sh
#
#   environment_for FILE...   make .venv once and install the requirement files of which they or constraints.txt
#                             changed since; a file given as nodeps:FILE is installed without its dependencies.
#                             override:FILE also replaces what constraints.txt pins. What uv and pip print goes
#                             to .venv/pip.log: pip complains about packages that were installed without
#                             dependencies on purpose.
#   environment_newer FILE... make .venv-newer, for the models that need a newer transformers
#
# Python 3.11 is what the project is tried with; AKS_PYTHON names one elsewhere, or a newer one.

environment_root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
environment_name=.venv

environment_python() {
    local candidate
    if [ -n "${AKS_PYTHON:-}" ]; then
        "$AKS_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
            command -v "$AKS_PYTHON" && return
        echo "error: AKS_PYTHON=$AKS_PYTHON: not a Python of version 3.11 or newer" >&2
        return 1
    fi
    for candidate in python3.11 python3; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    echo "error: no Python 3.11 found; install it, or name a newer one, which is not tried: AKS_PYTHON=python3.13" >&2
    return 1
}

environment_create() {
    local python venv=$environment_root/$environment_name
    python=$(environment_python) || return 1
    rm -rf "$venv"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
    elif "$python" -m virtualenv --version >/dev/null 2>&1; then
        "$python" -m virtualenv --quiet "$venv"
    elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # Debian splits venv off its Python.
        echo "installing Debian's python3-venv" >&2
        { apt-get update -qq && apt-get install -y -qq python3-venv; } >/dev/null && "$python" -m venv "$venv"
    else
        echo "error: $python has no venv module; install it (Debian: sudo apt-get install python3-venv)" >&2
        return 1
    fi
}

# Not compiled in advance: Python itself compiles what is imported, a tenth of it.
environment_install() {
    local venv=$environment_root/$environment_name
    "$venv/bin/python" "$environment_root/install_requirements.py" "$@" >>"$venv/pip.log" 2>&1
}

environment_for() {
    local root=$environment_root venv=$environment_root/$environment_name
    local entry file options count=0 stale=()
    if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
        environment_create || return 1
    fi
    # First uv, which installs the others.
    for entry in requirements-uv.txt "$@"; do
        file=${entry#*:}
        # A new constraints.txt may change what any of the files brings along, and any of them may put back what
        # an override has replaced.
        if [[ $entry == override:* && ${#stale[@]} != 0 ]] ||
            ! cat "$root/$file" "$root/constraints.txt" | cmp -s - "$venv/installed-$file"; then
            stale+=("$entry")
        fi
    done
    for entry in ${stale[@]+"${stale[@]}"}; do
        options=(); file=${entry#*:}
        case "$entry" in
            nodeps:*) options=(--no-deps) ;;
            override:*) options=(--override) ;;  # given last
        esac
        count=$((count + 1))
        echo "installing $count of ${#stale[@]}: $file" >&2
        environment_install ${options[@]+"${options[@]}"} -r "$file" || {
            [ "$file" = requirements-uv.txt ] && continue  # pip installs the others, in three times the time
            tail -n 20 "$venv/pip.log" >&2
            echo "error: $file could not be installed; above the end of the output, all of it: $venv/pip.log" >&2
            return 1
        }
        cat "$root/$file" "$root/constraints.txt" >"$venv/installed-$file"
    done
    # Not by its activate script, which names the folder the environment was made in.
    export VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
}

# Prints the CUDA version that torch is built for, nothing for a CPU build. Importing torch would take seconds.
environment_cuda() {
    python - <<'PYTHON'
import importlib.util, runpy
(folder,) = importlib.util.find_spec("torch").submodule_search_locations
print(runpy.run_path(f"{folder}/version.py")["cuda"] or "")
PYTHON
}

# torchvision fitting the installed torch, for LAVIS and lmms-eval.
environment_torchvision() {
    local build=cpu
    if [ -n "$(environment_cuda)" ]; then build=cuda; fi
    environment_for "nodeps:requirements-torchvision-$build.txt"
}

environment_newer() {
    local environment_name=.venv-newer  # the functions above see it
    environment_for requirements.txt requirements-eval.txt "$@" nodeps:requirements-eval-nodeps.txt \
        override:requirements-newer.txt && environment_torchvision
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    echo "source this file, do not run it: source environment.sh" >&2
    exit 2
fi
if [ "$#" = 0 ] && [[ $- == *i* ]]; then
    environment_for requirements.txt nodeps:requirements-conse.txt
fi
