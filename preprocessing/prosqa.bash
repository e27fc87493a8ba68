#!/usr/bin/env bash
# Downloads the published ProsQA files to data/prosqa_raw and copies them to data:
# bash preprocessing/prosqa.bash [--overwrite]
# Existing files with other content, such as those of prosqa.py, are replaced only with --overwrite (earlier: --force).
# Environment: PROSQA_URL is a mirror, a folder with prosqa_{train,valid,test}.json (http://... or file://...);
# PYTHON is the interpreter (default: python3).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/fetch.bash"

[[ $# == 0 || $* == --overwrite || $* == --force ]] ||
  fail "usage: bash preprocessing/prosqa.bash [--overwrite] (found: $*)"

url_of() {
  local folder=${PROSQA_URL:-https://raw.githubusercontent.com/facebookresearch/coconut/27273cb8cca4bb763c041a63b036d0c3b7cbbb48/data}
  echo "${folder%/}/$1"
}

fetch_all "$here/prosqa.sha256" data/prosqa_raw PROSQA_URL
exec "${PYTHON:-python3}" "$here/prosqa_published.py" --raw data/prosqa_raw --out data \
  --counts "$here/prosqa.sha256" "$@"
