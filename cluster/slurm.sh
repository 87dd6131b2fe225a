#!/usr/bin/env bash
# Start a Ray cluster on the nodes of a Slurm allocation and run the pipeline on it. Submit in the project's folder:
#   sbatch cluster/slurm.sh [TARGET ...]    (targets of 'dvc repro')
# Before it, run 'make env vbench-env' and 'make profile NAME=wan-1.3b', and set compute.workers to the number of GPUs.
# The folder must be on storage that every node can read and write. If a node fails, Slurm requeues the job, which then
# continues: DVC restores finished stages from its cache, and training resumes from its last checkpoint.
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
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 # seconds within which every node must have joined

srun --kill-on-bad-exit=1 ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --include-dashboard=false -- dvc repro "$@"
