#!/usr/bin/env bash
# A training on GPU nodes under Slurm, one process on each node; not yet run on a real cluster.
#
#   sbatch clip_italian/launch/slurm.sh --config configs/clip_italian.py --workdir /shared/run7
#
# All words are flags of the training. Give it from the clone, with its .venv on a disk that all
# nodes share (pip install -e '.[data,cuda12]'), and change the numbers below to your cluster's.
#SBATCH --job-name=clip-italian
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --output=clip-italian-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300
set -u

# JAX reads Slurm's variables by itself, but takes one GPU for each process unless told otherwise.
JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))
export JAX_LOCAL_DEVICE_IDS

# Five minutes before the end of the time, or at a preemption, the training is told to save and
# exits 75. This script is told as well, and waits. The first to end must not kill the others.
trap : TERM
srun --kill-on-bad-exit=0 .venv/bin/clip-italian train "$@"
status=$?

if [ "$status" -eq 75 ]; then
  echo "saved; back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
