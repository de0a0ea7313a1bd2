#!/bin/bash
# A comparison whose runs are shared out over several machines: Ray under SLURM.
#
#   sbatch examples/cluster/slurm-ray.sh
#
# SHARED is a folder that all machines see, called the same on each; results are below it. The head
# does runs, too. Queued again, the same command goes on: runs that are finished are not repeated.
#SBATCH --job-name=evostep-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --requeue
set -euo pipefail

SHARED=${SHARED:-$HOME/evostep}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
PORT=$((20000 + SLURM_JOB_ID % 10000))
export RAY_USAGE_STATS_ENABLED=0

cd "$SHARED"
# `ray start --block` on all; --exact leaves room for the command itself
srun --exact --nodes=1 --ntasks=1 -w "$HEAD" \
  ray start --head --port "$PORT" --num-cpus "$SLURM_CPUS_PER_TASK" --block &
sleep 20
if [ "$SLURM_NNODES" -gt 1 ]; then
  srun --exact --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$HEAD" \
    ray start --address "$HEAD:$PORT" --num-cpus "$SLURM_CPUS_PER_TASK" --block &
fi
sleep 20
srun --overlap --nodes=1 --ntasks=1 -w "$HEAD" \
  evostep compare --data cifar10 --model resnet18 --arms sgd,sgd-all,mutation,openai-es \
  --seeds 20 --threads 2 --out results/sweep --executor ray --address "$HEAD:$PORT"
