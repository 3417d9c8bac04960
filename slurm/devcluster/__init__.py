"""A Slurm cluster of one machine, for development and tests: no systemd, no cgroups, no configuration.

    python3 -m slurm.devcluster up
    eval "$(python3 -m slurm.devcluster env)"
    srun --gres=gpu:1 env | grep CUDA_VISIBLE_DEVICES
    python3 -m slurm.devcluster down

It needs root, Debian's packages and nothing of Python but the standard library.

    cluster    up, down, status, restart: what the commands and the tests call
    keeper     the process behind a running cluster: starts the daemons, ends them when told to, or when
               the process that the cluster belongs to has ended
    daemons    how each daemon is started, and when it is ready
    conf       the text of the configuration files
    layout     where the files are
    processes  finding and ending what belongs to a cluster
    packages   Debian's packages
"""
