#!/bin/sh
# Fetches a model package into a folder, and puts a file in place only if its SHA-256 is the one that is wanted. Runs in
# an init container, with what busybox has and curl, or oras for "oci". Variables:
#
#   FETCH_FROM       http, s3, huggingface or oci
#   FETCH_SUMS       a file as sha256sum writes it: the package's files
#   FETCH_TARGET     the package's folder
#   FETCH_URL        http, s3, huggingface: the files are at FETCH_URL/NAME
#   FETCH_REFERENCE  oci: the artifact; FETCH_PLAIN_HTTP=true speaks HTTP with its registry
#
# and to authenticate, if at all: FETCH_AUTHORIZATION (http), FETCH_TOKEN (huggingface), FETCH_ACCESS_KEY_ID,
# FETCH_SECRET_ACCESS_KEY, FETCH_SESSION_TOKEN and FETCH_REGION (s3), DOCKER_CONFIG (oci).
set -eu

say() { echo "fetch-model: $*" >&2; }

# A kubelet may run this again in a pod whose volume is filled already.
whole() { (cd "$1" 2>/dev/null && sha256sum -c "$FETCH_SUMS" >/dev/null 2>&1); }
if whole "$FETCH_TARGET"; then
  say "$FETCH_TARGET is there already, every file as its sha256"
  exit 0
fi

part=$FETCH_TARGET.part
rm -rf "$part"
mkdir -p "$part"

# Text as curl's configuration has it between quotes.
quoted() { printf '%s' "$1" | sed 's/[\\"]/\\&/g'; }

# Options of curl for one file. Credentials are in here: a command line could be seen by others.
options() { # NAME
  printf 'url = "%s"\n' "$(quoted "$FETCH_URL/$1")"
  if [ -n "${FETCH_AUTHORIZATION:-}" ]; then
    printf 'header = "Authorization: %s"\n' "$(quoted "$FETCH_AUTHORIZATION")"
  elif [ -n "${FETCH_TOKEN:-}" ]; then
    printf 'header = "Authorization: Bearer %s"\n' "$(quoted "$FETCH_TOKEN")"
  elif [ -n "${FETCH_ACCESS_KEY_ID:-}" ]; then
    printf 'aws-sigv4 = "aws:amz:%s:s3"\n' "$(quoted "$FETCH_REGION")"
    printf 'user = "%s:%s"\n' "$(quoted "$FETCH_ACCESS_KEY_ID")" "$(quoted "$FETCH_SECRET_ACCESS_KEY")"
    # The SHA-256 of an empty request. S3 wants it, and not every curl sends it by itself.
    echo 'header = "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"'
    if [ -n "${FETCH_SESSION_TOKEN:-}" ]; then
      printf 'header = "x-amz-security-token: %s"\n' "$(quoted "$FETCH_SESSION_TOKEN")"
    fi
  fi
}

case $FETCH_FROM in
  http | s3 | huggingface)
    while read -r _ name; do
      say "fetching $FETCH_URL/$name"
      # --fail: a page that says 404 isn't the file. A transfer under 1 kB/s for a minute has stalled.
      options "$name" | curl --config - --fail --silent --show-error --location --proto '=https,http' \
        --connect-timeout 20 --speed-limit 1024 --speed-time 60 --retry 4 --retry-connrefused --output "$part/$name"
    done <"$FETCH_SUMS"
    ;;
  oci)
    say "fetching $FETCH_REFERENCE"
    if [ "${FETCH_PLAIN_HTTP:-false}" = true ]; then set -- --plain-http; else set --; fi
    oras pull "$@" --no-tty --output "$part" "$FETCH_REFERENCE" >&2
    ;;
  *)
    say "FETCH_FROM is \"$FETCH_FROM\"; it may be http, s3, huggingface or oci"
    exit 64
    ;;
esac

if ! (cd "$part" && sha256sum -c "$FETCH_SUMS" >&2); then
  say "what was fetched differs from model.fetch.files: nothing is put in place"
  exit 1
fi

# The folder may be a mount, so it is filled and not replaced.
mkdir -p "$FETCH_TARGET"
while read -r _ name; do
  mv -f "$part/$name" "$FETCH_TARGET/$name"
done <"$FETCH_SUMS"
rm -rf "$part"
say "$FETCH_TARGET is fetched, every file as its sha256"
