"""What a borrowed GPU should tell in a few minutes; `launch/gpu_check.sh` runs it."""
