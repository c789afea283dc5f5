#!/usr/bin/env bash
# What runs on each worker of a TPU VM: `clip-italian launch tpu` copies this file to ~/clip_italian
# and calls it over ssh. gcloud repeats a command whose ssh broke, so every call may come twice.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
root=$PWD
export PATH="$HOME/.local/bin:$PATH"

# setup PACKAGE: a Python that is new enough, and this package with what a TPU needs.
setup() {
  local package=$1
  [[ $package == git+* ]] || package="file://$root/$package"
  if ! command -v uv > /dev/null; then
    curl -LsSf https://astral.sh/uv/0.9.26/install.sh | sh
  fi
  # uv takes the image's own Python where that fits, and fetches one where it is older.
  [ -x venv/bin/python ] || uv venv --python '>=3.11,<3.13' venv
  uv pip install --python venv/bin/python --reinstall-package clip-italian \
    "clip-italian[data,tpu,gcs,wandb] @ $package"
}

# secrets < FILE: tokens for the environment of the training; whole or not at all.
secrets() {
  umask 077
  cat > secrets.part
  if [ "$(tail -n 1 secrets.part)" != '# end' ]; then
    rm -f secrets.part
    echo "the tokens did not arrive whole" >&2
    return 1
  fi
  mv secrets.part secrets
}

# data URL: the shards of a bucket, to this worker's own disk; what is there is not copied again.
data() {
  local folder
  folder=data/$(basename "$1")
  mkdir -p "$folder"
  gcloud storage rsync --recursive "$1" "$folder"
}

# start N WORDS...: the N-th attempt, in a session of its own that outlives this ssh.
start() {
  local folder=attempts/$1
  shift
  mkdir -p attempts
  mkdir "$folder" 2> /dev/null || { echo "started already"; return; }
  setsid bash worker.sh run "$folder" "$@" > "$folder/log" 2>&1 < /dev/null &
  echo $! > "$folder/pid"
}

# run FOLDER WORDS...: the training itself; writes its exit status when it ends.
run() {
  local folder=$1 status=0
  shift
  trap : TERM # a shutdown tells all processes; the training saves, and its status is still written
  if [ -f secrets ]; then
    set -a
    # shellcheck disable=SC1091
    . ./secrets
    set +a
  fi
  "$@" || status=$?
  echo "$status" > "$folder/status.part"
  mv "$folder/status.part" "$folder/status"
}

# alive FOLDER: does that attempt run? After a reboot its number may be another process's.
alive() {
  local pid
  pid=$(cat "$1/pid" 2> /dev/null) || return 1
  grep -qa worker.sh "/proc/$pid/cmdline" 2> /dev/null
}

# probe: the newest attempt, and whether it runs.
probe() {
  local newest
  mkdir -p attempts
  newest=$(find attempts -mindepth 1 -maxdepth 1 -printf '%f\n' | sort -n | tail -n 1)
  if alive "attempts/$newest"; then
    echo "attempt $newest running"
  else
    echo "attempt ${newest:-0} ended"
  fi
}

# follow N LINE: the log from that line on, each line with its number, until the attempt ends. The
# lines before it have been written: those that come while it looks are not skipped.
follow() {
  local folder=attempts/$1 number=$2 line
  [ -f "$folder/log" ] || return 0 # it never started here
  # tail waits for a process of ours: it would take a dead one that nobody has fetched for alive.
  while alive "$folder"; do sleep 0.3; done > /dev/null 2>&1 &
  tail -s 0.1 -f -n "+$number" --pid $! "$folder/log" |
    while IFS= read -r line || [ -n "$line" ]; do
      printf '%d\t%s\n' "$number" "$line"
      number=$((number + 1))
    done
}

# status N SECONDS: how the attempt ended here; waits a while for it to end.
status() {
  local folder=attempts/$1 left=$2
  while [ "$left" -gt 0 ] && [ ! -f "$folder/status" ] && alive "$folder"; do
    sleep 1
    left=$((left - 1))
  done
  if [ -f "$folder/status" ]; then
    echo "exit status $(cat "$folder/status")"
  elif alive "$folder"; then
    echo "exit status running"
  else
    echo "exit status lost"
  fi
}

# stop N: asks the attempt to save and end, and ends it after a minute.
stop() {
  local folder=attempts/$1 pid left=60
  alive "$folder" || return 0
  pid=$(cat "$folder/pid")
  kill -TERM -- "-$pid"
  while [ "$left" -gt 0 ] && alive "$folder"; do
    sleep 1
    left=$((left - 1))
  done
  if alive "$folder"; then
    kill -KILL -- "-$pid"
  fi
}

case $1 in
  setup | secrets | data | start | run | probe | follow | status | stop) "$@" ;;
  *) echo "no such step: $1" >&2; exit 2 ;;
esac
