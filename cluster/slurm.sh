#!/usr/bin/env bash
# A Ray cluster of a Slurm allocation, a node each, and the pipeline on it. From the project's folder, on storage that
# every node sees, after 'make env vbench-env' and 'make profile NAME=wan-1.3b' with compute.workers set to the number of
# GPUs:  sbatch cluster/slurm.sh [what 'dvc repro' is to make]
# Requeued after a node's death, it goes on where it was: finished stages in DVC's cache, training at its last checkpoint.
#SBATCH --job-name=causvid
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.log
set -euo pipefail

export PATH="$PWD/.venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_ADDRESS
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | sha256sum | cut -d ' ' -f 1)
read -r first < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
read -r address _ < <(getent ahostsv4 "$first")
RAY_ADDRESS=$address:6379
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 # seconds until every node must be there

srun --kill-on-bad-exit=1 ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --include-dashboard=false -- dvc repro "$@"
