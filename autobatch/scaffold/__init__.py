"""Makes a run directory: finetune.yaml from a config, finetune.slurm from the template."""
