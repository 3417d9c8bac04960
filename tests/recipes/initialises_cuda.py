"""Initialises CUDA as it is imported, as torchtune does on a machine with a card."""

import torch

torch.zeros(1, device="cuda")
