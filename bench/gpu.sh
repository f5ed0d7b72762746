#!/bin/sh
# Everything that a machine with a GPU is asked: are the kernels right, are whole programs right,
# how fast are they, how fast is PyTorch. One JSON and one text report. bench/README.md tells more.
#
#   sh bench/gpu.sh pack [--rehearse]      where everything is built: fills out/gpu
#   sh bench/gpu.sh [--plan] [--limit SECONDS] [--only WORD]
#                                          where the GPU is: as much as the time permits; call it
#                                          again to go on
# Status: 0 all done and right, 1 all done and something failed, 75 time is up: call again,
# 3 no GPU.
set -eu
cd "$(dirname "$0")/.."
if [ "${1:-}" = pack ]; then
    shift
    exec python3 bench/gpu/pack.py "$@"
fi
exec python3 bench/gpu/run.py "$@"
