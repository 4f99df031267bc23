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
others=$((SLURM_JOB_NUM_NODES - 1))
# Ray stays in the foreground: what a step leaves behind ends with the step.
srun --nodes=1 --ntasks=1 -w "$head" python -m harness offer --head --block &
started=$!
until (exec 3<>"/dev/tcp/$head/6379") 2>/dev/null; do
    kill -0 "$started"
    sleep 1
done
if [ "$others" -gt 0 ]; then
    srun --nodes="$others" --ntasks="$others" --exclude="$head" python -m harness offer --join "$head:6379" --block &
fi
srun --overlap --nodes=1 --ntasks=1 -w "$head" python -m pytest suites -m h100 --on "$head:6379" "$@"
