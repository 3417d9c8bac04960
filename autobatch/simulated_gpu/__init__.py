"""A simulated GPU: PyTorch's CUDA build without a GPU, on libraries that count memory and run no kernel.

    recipe -> torch (CUDA build): caching allocator, autograd, inductor, Triton     the real ones
                                |
             cudaMalloc, cuMemCreate, cudaLaunchKernel, cublasGemmEx, ...
                                |
                 sources/*.c: count bytes, run nothing                              ours

`gpus` knows the cards, `library` compiles the C sources once for an environment, `environment` is what a process
is started with to see a simulated card instead of a real one.

What it is good for is memory: every allocation is the one that PyTorch makes on such a card. Results don't exist:
whatever is read back is zero, and every kernel takes equally long. A process that has the libraries loaded says so
(`environment.simulated_gpu`), and whatever it measured is called simulated.
"""
