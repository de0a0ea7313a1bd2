#!/bin/bash
# One run over the processes of several machines: torchrun under SLURM.
#
#   sbatch examples/cluster/slurm.sh
#
# SHARED is a folder that all machines see. Where the job is stopped (SIGTERM before the time is up)
# or a machine fails, it is queued again, and the same command goes on from the last checkpoint.
#SBATCH --job-name=evostep
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail

SHARED=${SHARED:-$HOME/evostep}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs that share a machine do not meet

cd "$SHARED"
srun --kill-on-bad-exit=1 \
  torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 3 \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" \
  -m evostep train --arm openai-es --seed 0 --data cifar10 --model resnet18 --threads 1 --out runs/one
