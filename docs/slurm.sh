#!/bin/bash
# Trains on a SLURM cluster, through preemption and time limits, until the run is complete:
#
#     sbatch docs/slurm.sh simsiam --data cifar10 --out runs/simsiam
#
# What follows the name of this script is given to `genssl train`. The job inherits PATH from where it is
# submitted: put genssl on it first (. .venv/bin/activate). More in docs/slurm.md.

#SBATCH --job-name=genssl
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue                  # after preemption or a failed node SLURM queues the job again by itself
#SBATCH --open-mode=append         # and its log goes on
#SBATCH --output=genssl-%j.log
#SBATCH --signal=TERM@120          # two minutes before the time limit, to what srun starts, not to this shell

# Converted images, where every node sees them
export GENSSL_CACHE="${GENSSL_CACHE:-$SLURM_SUBMIT_DIR/genssl-cache}"

# At a cancellation TERM goes to this shell as well, which must live to see how the training ends. A trap that
# does nothing is for this shell alone; a signal that is ignored would be ignored by the training, too.
trap : TERM

# The same command every time: it begins the run, continues it, or finds it complete
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" genssl train "$@" --auto-resume
code=$?

# 143: a TERM was heeded, everything is saved. While the job still counts as running, that was the coming time
# limit or preemption, after which SLURM does not queue a job again once its script has ended: do it here. A
# cancelled job is no longer running, and stays cancelled.
if [ "$code" -eq 143 ] && [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
