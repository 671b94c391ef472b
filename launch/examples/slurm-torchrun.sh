#!/bin/bash
# A run on Slurm, without Ray: sbatch slurm-torchrun.sh
# One task a node starts torchrun, which starts one process a GPU. The data set and the run's folder lie on a file system that all
# nodes see. Submitted again, killed or preempted, the run goes on from its newest checkpoint.
#SBATCH --job-name=dist-teracon
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dist-teracon-%j.log
set -euo pipefail

config=${CONFIG:-configs/ttl.yaml}
run=${RUN:-$SLURM_SUBMIT_DIR/runs/ttl}
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / SLURM_GPUS_ON_NODE))

srun torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "${nodes[0]}:29500" \
    -m dist_teracon.launch.torchrun -- "$config" --run "$run" "$@"
