#!/usr/bin/env bash
# Downloads GSM8K-Aug into data/gsm_raw and writes data/gsm_{train,valid,test}.json:
# bash preprocessing/gsm_icot.bash [--overwrite]
# Existing files with other content are replaced only with --overwrite.
# Environment: GSM_ICOT_URL is a mirror, a folder with train.txt, valid.txt and test.txt (http://... or file://...);
# PYTHON is the interpreter (default: python3).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/fetch.bash"

[[ $# == 0 || $* == --overwrite ]] || fail "usage: bash preprocessing/gsm_icot.bash [--overwrite] (found: $*)"

# The training file is stored in Git LFS, which has another host.
url_of() {
  local host=raw.githubusercontent.com
  [[ $1 != train.txt ]] || host=media.githubusercontent.com/media
  local folder=https://$host/da03/Internalize_CoT_Step_by_Step/e06a32ee5e4cd117171daeb4755d2a97ece62761/data/gsm8k
  folder=${GSM_ICOT_URL:-$folder}
  echo "${folder%/}/$1"
}

fetch_all "$here/gsm_icot.sha256" data/gsm_raw GSM_ICOT_URL
exec "${PYTHON:-python3}" "$here/gsm_icot.py" --raw data/gsm_raw --out data --counts "$here/gsm_icot.sha256" "$@"
