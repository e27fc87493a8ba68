# Downloads files and checks their sha256. The other scripts in this folder source it. Needs curl and sha256sum.
#
# A list has one file per line: sha256 (or "unknown", or "content:" and the sha256 of its problems, which the conversion
# checks), bytes (or "-"), number of problems, file name. A file is downloaded to NAME.part; a later run continues where an earlier one stopped. The file gets its final name when it is
# complete and its sha256 is correct.

fail() {
  printf '%s\n' "$1" >&2
  exit 1
}

sum_of() {
  sha256sum <"$1" | cut -d ' ' -f 1
}

# fetch_all LIST FOLDER VARIABLE: downloads every file of the list from "url_of NAME", which the caller defines.
# VARIABLE is the name of the environment variable that sets a mirror; it is used in messages only.
fetch_all() {
  local list=$1 folder=$2 mirror=$3 sum bytes problems name
  mkdir -p "$folder"
  while read -r sum bytes problems name; do
    if [[ -n $sum && $sum != \#* ]]; then
      [[ $sum != content:* ]] || sum=content
      fetch "$(url_of "$name")" "$folder/$name" "$sum" "$bytes" "$mirror"
    fi
  done <"$list"
}

# fetch URL FILE SUM BYTES VARIABLE
fetch() {
  local url=$1 file=$2 sum=$3 bytes=$4 mirror=$5 found
  if [[ -f $file ]]; then
    found=$(sum_of "$file")
    [[ $sum == unknown || $sum == content || $found == "$sum" ]] ||
      fail "$file: found sha256 $found, expected $sum; delete the file and run this script again"
    echo "$file: already there"
  else
    if [[ ! -f $file.part || $(sum_of "$file.part") != "$sum" ]]; then
      echo "$file: downloading (bytes: $bytes)"
      download "$url" "$file.part" "$mirror"
    fi
    [[ -f $file.part ]] || : >"$file.part" # curl writes no file if the download is empty
    found=$(sum_of "$file.part")
    if [[ $sum != unknown && $sum != content && $found != "$sum" ]]; then
      rm -f "$file.part" # continuing a wrong file would never correct it
      fail "$url: found sha256 $found, expected $sum; deleted the download; run this script again or set $mirror to a mirror"
    fi
    mv "$file.part" "$file"
  fi
  [[ $sum != unknown ]] || echo "$file: sha256 $found, not checked: none is on record; the number of problems is checked"
}

# download URL PART VARIABLE: downloads the rest of PART, or all of it if the server cannot send parts of files.
download() {
  local url=$1 part=$2 mirror=$3 status=0
  load "$url" "$part" || status=$?
  if [[ $status == 33 || $status == 36 ]]; then # the server cannot send parts, or PART is longer than its file
    rm -f "$part"
    status=0
    load "$url" "$part" || status=$?
  fi
  [[ $status == 0 ]] ||
    fail "$url: cannot be downloaded (curl ended with $status${message:+: $message}); check the network and run this script again, which continues where it stopped, or set $mirror to a mirror"
}

# load URL PART: one attempt. Sets message to the output of curl; on a terminal curl itself shows it, with a progress bar.
load() {
  local options=(--fail --location --continue-at - --connect-timeout 30 --speed-limit 1 --speed-time 60 --output "$2")
  message=
  if [[ -t 2 ]]; then
    curl --progress-bar "${options[@]}" "$1"
  else
    message=$(curl --silent --show-error "${options[@]}" "$1" 2>&1 | head -n 1)
  fi
}
