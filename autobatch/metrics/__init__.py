"""What is known of a training once it has run: its logs, its card's samples, Slurm's accounting."""
