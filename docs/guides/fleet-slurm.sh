#!/bin/bash
# A cluster of the allocation's nodes, and the suites on it: sbatch docs/guides/fleet-slurm.sh
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=12:00:00
set -euo pipefail
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --nodes=1 --ntasks=1 -w "$head" python -m harness offer --head &
sleep 20
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks-per-node=1 --exclude="$head" python -m harness offer --join "$head:6379" &
fi
srun --overlap --nodes=1 --ntasks=1 -w "$head" python -m pytest suites -m h100 --on "$head:6379" "$@"
