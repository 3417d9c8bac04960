/* A simulated GPU: what NVIDIA's libraries would answer to PyTorch, with memory that is counted and kernels that
 * don't run. The declarations that the files here share; NVIDIA's own headers aren't needed. */

#ifndef AUTOBATCH_SIMULATED_H
#define AUTOBATCH_SIMULATED_H

#include <stddef.h>
#include <stdint.h>

typedef unsigned long long ull;

enum { MAX_GPUS = 64 };

/* cudaError_t and CUresult share these numbers. */
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101 };

enum kind { DEVICE, POOLED, PINNED, MANAGED, REGISTERED };

/* What one card is; every card of a process is the same. */
struct gpu {
    char name[256];
    ull total_bytes;   /* as the driver reports it */
    ull taken_bytes;   /* by other processes and, on a real card, by the context */
    int count, visible[MAX_GPUS]; /* that this process sees, and which they are */
    int major, minor;
    int multiprocessors, l2_bytes, bus_bits, clock_khz, memory_clock_khz;
    int shared_bytes_per_multiprocessor, shared_bytes_per_block;
    int threads_per_multiprocessor, blocks_per_multiprocessor;
};

extern struct gpu gpu;
extern __thread int current_gpu;

/* Cards that this process sees; 0 when CUDA_VISIBLE_DEVICES hides them. */
int visible_gpus(void);
/* The number that a card has where all are seen. */
int physical_gpu(int ordinal);
int ordinal_of(int physical);
int installed_gpus(void);
void gpu_uuid(int physical, char *uuid, size_t length);

/* Counts `bytes` on a card; 0 when the card is full. */
int take(int device, ull bytes);
void give_back(int device, ull bytes);
ull free_bytes(int device);

/* Address space without pages behind it, from which device pointers are given. */
void *reserve(ull bytes);
void unreserve(void *address, ull bytes);
/* A range of `kind`; NULL when the card, or the host, has no room for it. */
void *allocate(enum kind kind, int device, ull bytes);
/* Ends the range that begins at `address`; INVALID_VALUE when there is none. */
int release(void *address);
/* Notes a range that isn't ours to free: mapped handles, host memory that was registered. */
void note_range(enum kind kind, int device, void *address, ull bytes);
void forget_ranges(void *address, ull bytes);
/* Whether a range holds `address`; tells its kind and, as this process counts cards, its card. */
int find_range(const void *address, enum kind *kind, int *device);

/* cudaMallocAsync's memory pool of each card. */
struct pool { ull used, used_high, reserved, reserved_high, threshold; };
extern struct pool pools[MAX_GPUS];
int trim_pool(int device, ull keep_bytes);

/* Moves what exists: between host buffers. What comes from a card is zero. */
void copy(void *to, const void *from, size_t bytes);
void fill(void *to, int value, size_t bytes);

/* A new handle for anything that has one. */
void *new_handle(void);

int attribute(int number);

/* Tells that a call was answered with "success" alone, where that was asked for. */
void trace(const char *function);

#endif
