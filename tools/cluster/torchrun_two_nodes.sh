#!/usr/bin/env bash
# Train a student on two machines without a scheduler. Run the same line on both, with the name of either in HEAD:
#
#   HEAD=node0 tools/cluster/torchrun_two_nodes.sh efficientvit_sam/l0_feature \
#       teacher.checkpoint=/shared/sam_vit_h_4b8939.pth data.images=/shared/sa1b cache.dir=/shared/sam_vit_h \
#       run=/shared/runs/l0_feature
#
# HEAD   the machine at which both meet; the other one must reach its port
# PORT   that port; default: 29500
# GPUS   processes on each machine; default: one for each GPU that nvidia-smi lists
#
# The photos, the cache and the run directory must lie on a file system that both machines see.
# SIGTERM or Ctrl-C to either torchrun ends the run on both machines, and the last finished step is kept.
# Run the same lines again after that or after a failure: the run goes on from its last checkpoint.
set -euo pipefail

HEAD="${HEAD:?give the name of the machine at which both meet: HEAD=NAME}"
PORT="${PORT:-29500}"
GPUS="${GPUS:-$(nvidia-smi --list-gpus | wc -l)}"

exec torchrun --nnodes 2 --nproc-per-node "$GPUS" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id distill \
    "$(command -v distill)" train "$@" trainer.devices="$GPUS" trainer.num_nodes=2 resume=true
