"""A recipe that looks at the values of its weights, which fake tensors don't have."""

import sys

from omegaconf import OmegaConf
from torchtune import config


def main() -> None:
    model = config.instantiate(OmegaConf.load(sys.argv[sys.argv.index("--config") + 1]).model)
    next(model.parameters()).detach().numpy()


if __name__ == "__main__":
    main()
