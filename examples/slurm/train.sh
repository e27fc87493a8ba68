# . examples/slurm/train.sh [group=option ...] [key=value ...]: trains, passes signals on to the ranks, leaves the exit code in $code.
# setsid gives the launcher a session of its own, so that its process group contains nothing else.
setsid deepspeed --num_gpus "${NUM_GPUS:-1}" coconut_ds/train.py "$@" &
launcher=$!
trap 'pkill -TERM -g "$launcher" -f -- --local_rank=' TERM USR1 USR2 HUP
wait "$launcher"
code=$?
while kill -0 "$launcher" 2>/dev/null; do
    # The signal ended the wait, not the launcher.
    wait "$launcher"
    code=$?
done
