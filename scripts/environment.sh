# shellcheck shell=bash
# What test_oldest, test_newest and renew_constraints share. They source this file in the repository's root.

quick=(tests/adapters tests/conformance tests/hooks tests/kernels tests/test_zoo.py tests/test_import.py)

# Print the Python of the environment $1 and the versions in it of the direct dependencies.
show_versions() {
    local names
    names=$("$1/bin/python" scripts/floors.py | sed 's/==.*//; s/[-_.]/[-_.]/g' | paste -sd'|')
    "$1/bin/python" -VV
    "$1/bin/pip" freeze --exclude-editable | grep -iE "^($names)=="
}

# Run tests in the environment $1: the quick part, all with --all, or whatever pytest is given.
run_tests() {
    local venv=$1
    shift
    case ${1-} in
        "") set -- "${quick[@]}" ;;
        --all) shift ;;
    esac
    "$venv/bin/python" -m pytest "$@"
}

# Print the versions in the environment $1 as constraints for pip. Left out is what torch's own wheels pin
# (CUDA's libraries, triton), which differs between its builds, and the build in torch's version.
print_constraints() {
    echo "# The versions that the whole suite passed with; scripts/renew_constraints writes this file."
    echo "# $("$1/bin/python" -c 'import platform, sys; print(f"Python {platform.python_version()}, {sys.platform}, {platform.machine()}")')"
    "$1/bin/pip" freeze --exclude-editable | sed 's/+[^+]*$//' |
        grep -E '^[A-Za-z0-9._-]+==[^ ]+$' | grep -viE '^(nvidia|cuda|triton)\b' | LC_ALL=C sort --ignore-case
}
