#!/usr/bin/env bash
# Builds the documentation site strictly into build/site. `scripts/docs.sh serve` shows it at http://127.0.0.1:8000
# and rebuilds it at every change. MkDocs has an environment of its own, build/docs-env, made from the `docs` extra.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
env=build/docs-env
stamp=$env/installed
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
  python=${PYTHON:-.venv/bin/python}
  [ -x "$env/bin/python" ] || "$(command -v "$python" || echo python3)" -m venv "$env"
  "$env/bin/python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' >"$env/requirements.txt"
  "$env/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -r "$env/requirements.txt"
  touch "$stamp"
fi
export NO_MKDOCS_2_WARNING=1  # the extra keeps MkDocs below 2
if [ "${1:-build}" = serve ]; then exec "$env/bin/mkdocs" serve; fi
"$env/bin/mkdocs" build --strict  # not --quiet, which also hides warnings from --strict
"$env/bin/python" scripts/docs_hooks.py build/site
