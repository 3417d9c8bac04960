"""The demo run: a small model, tokenizer, dataset and run directory that train in a minute on a CPU.

Everything is made here, from a seed; nothing is downloaded. The tests and the benchmarks lay out their
runs with the same code.
"""

from autobatch.demo.layout import LLAMA_1B, SmallRun, lay_out

__all__ = ["LLAMA_1B", "SmallRun", "lay_out"]
