# Downloads checked files; sourced by the scripts beside it. Needs curl and sha256sum.
#
# A list names one file a line: sha256 (or "unknown"), bytes (or "-"), problems, file name. A file is loaded into
# NAME.part, goes on where an earlier run stopped, and gets its name when it is whole and its sum is right.

fail() {
  printf '%s\n' "$1" >&2
  exit 1
}

sum_of() {
  sha256sum <"$1" | cut -d ' ' -f 1
}

# fetch_all LIST FOLDER VARIABLE: every file of the list; url_of NAME, defined by the caller, says where from.
# VARIABLE is the environment variable that names a mirror.
fetch_all() {
  local list=$1 folder=$2 mirror=$3 sum bytes problems name
  mkdir -p "$folder"
  while read -r sum bytes problems name; do
    if [[ -n $sum && $sum != \#* ]]; then
      fetch "$(url_of "$name")" "$folder/$name" "$sum" "$bytes" "$mirror"
    fi
  done <"$list"
}

# fetch URL FILE SUM BYTES VARIABLE
fetch() {
  local url=$1 file=$2 sum=$3 bytes=$4 mirror=$5 found
  if [[ -f $file ]]; then
    found=$(sum_of "$file")
    [[ $sum == unknown || $found == "$sum" ]] ||
      fail "$file: found sha256 $found, expected $sum; delete the file and run this script again"
    echo "$file: already there"
  else
    if [[ ! -f $file.part || $(sum_of "$file.part") != "$sum" ]]; then
      echo "$file: downloading (bytes: $bytes)"
      download "$url" "$file.part" "$mirror"
    fi
    [[ -f $file.part ]] || : >"$file.part" # of an empty file curl writes nothing
    found=$(sum_of "$file.part")
    if [[ $sum != unknown && $found != "$sum" ]]; then
      rm -f "$file.part" # going on from it would never mend it
      fail "$url: found sha256 $found, expected $sum; deleted what came, run this script again or set $mirror to a mirror"
    fi
    mv "$file.part" "$file"
  fi
  [[ $sum != unknown ]] || echo "$file: sha256 $found, not checked: none is on record; the number of problems is checked"
}

# download URL PART VARIABLE: the rest of PART, or all of it from a server that cannot send a rest.
download() {
  local url=$1 part=$2 mirror=$3 status=0
  load "$url" "$part" || status=$?
  if [[ $status == 33 || $status == 36 ]]; then # no ranges there, or more here than there
    rm -f "$part"
    status=0
    load "$url" "$part" || status=$?
  fi
  [[ $status == 0 ]] ||
    fail "$url: cannot be downloaded (curl ended with $status${message:+: $message}); check the network and run this script again, it goes on where it stopped, or set $mirror to a mirror"
}

# load URL PART: one try. Sets message to what curl says; on a terminal curl shows it, and a progress bar, itself.
load() {
  local options=(--fail --location --continue-at - --connect-timeout 30 --speed-limit 1 --speed-time 60 --output "$2")
  message=
  if [[ -t 2 ]]; then
    curl --progress-bar "${options[@]}" "$1"
  else
    message=$(curl --silent --show-error "${options[@]}" "$1" 2>&1 | head -n 1)
  fi
}
