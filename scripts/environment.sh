# shellcheck shell=bash
# What test_oldest and test_newest share: which tests run, and in what. They source this file.

quick=(tests/adapters tests/runtime tests/kernels tests/test_zoo.py tests/test_import.py)

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
