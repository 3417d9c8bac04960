/* The CUDA driver (libcuda) and the management library (libnvidia-ml) that have something to say. */

#include "simulated.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Each card has one context: its address in this table. */
static char contexts[MAX_GPUS];

int cuInit(unsigned flags)
{
    (void)flags;
    return visible_gpus() ? SUCCESS : NO_DEVICE;
}

int cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return SUCCESS; }
int cuDeviceGetCount(int *count) { *count = visible_gpus(); return SUCCESS; }

int cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return ordinal >= 0 && ordinal < visible_gpus() ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetAttribute(int *value, int number, int device)
{
    (void)device;
    *value = attribute(number);
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int device)
{
    (void)device;
    snprintf(name, (size_t)length, "%s", gpu.name);
    return SUCCESS;
}

int cuDeviceGetUuid_v2(char *uuid, int device)
{
    memset(uuid, 0, 16);
    uuid[15] = (char)physical_gpu(device);
    return SUCCESS;
}
int cuDeviceGetUuid(char *uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

int cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    (void)device;
    *bytes = gpu.total_bytes;
    return SUCCESS;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
{
    (void)device;
    if (flags)
        *flags = 0;
    if (active)
        *active = 1;
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &contexts[device]; return SUCCESS; }
int cuCtxGetCurrent(void **context) { *context = &contexts[current_gpu]; return SUCCESS; }
int cuCtxGetDevice(int *device) { *device = current_gpu; return SUCCESS; }

int cuCtxSetCurrent(void *context)
{
    if (context)
        current_gpu = (int)((char *)context - contexts);
    return SUCCESS;
}
int cuCtxPushCurrent_v2(void *context) { return cuCtxSetCurrent(context); }
int cuCtxPopCurrent_v2(void **context) { return cuCtxGetCurrent(context); }

static const char *text(int error) { return error == OUT_OF_MEMORY ? "out of memory" : "invalid argument"; }
int cuGetErrorString(int error, const char **said) { *said = error ? text(error) : "no error"; return SUCCESS; }
int cuGetErrorName(int error, const char **said)
{
    *said = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error ? "CUDA_ERROR_INVALID_VALUE" : "CUDA_SUCCESS";
    return SUCCESS;
}

/* ---- memory ---- */

static int into(void **address, enum kind kind, size_t bytes)
{
    *address = allocate(kind, physical_gpu(current_gpu), bytes);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemAlloc_v2(void **address, size_t bytes) { return into(address, DEVICE, bytes); }
int cuMemAllocManaged(void **address, size_t bytes, unsigned flags) { (void)flags; return into(address, MANAGED, bytes); }
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { (void)flags; return into(address, PINNED, bytes); }
int cuMemFree_v2(void *address) { return release(address); }
int cuMemFreeHost(void *address) { return release(address); }
int cuMemcpyDtoH_v2(void *to, void *from, size_t bytes) { copy(to, from, bytes); return SUCCESS; }
int cuMemcpyDtoHAsync_v2(void *to, void *from, size_t bytes, void *stream)
{
    (void)stream;
    copy(to, from, bytes);
    return SUCCESS;
}
int cuMemcpyHtoD_v2(void *to, void *from, size_t bytes) { copy(to, from, bytes); return SUCCESS; }

int cuMemGetInfo_v2(size_t *available, size_t *total)
{
    *available = free_bytes(physical_gpu(current_gpu));
    *total = gpu.total_bytes;
    return SUCCESS;
}

/* Memory that is made and mapped apart, as expandable segments do. */
struct memory { ull bytes; int device; };
struct memory_wish { int type, handle_types; struct { int type, id; } where; };

int cuMemGetAllocationGranularity(size_t *bytes, const void *wish, int which)
{
    (void)wish, (void)which;
    *bytes = 2 << 20;
    return SUCCESS;
}

int cuMemCreate(struct memory **handle, size_t bytes, const struct memory_wish *wish, ull flags)
{
    (void)flags;
    int device = physical_gpu(wish->where.id);
    if (!take(device, bytes))
        return OUT_OF_MEMORY;
    *handle = malloc(sizeof **handle);
    **handle = (struct memory){bytes, device};
    return SUCCESS;
}

int cuMemRelease(struct memory *handle)
{
    give_back(handle->device, handle->bytes);
    free(handle);
    return SUCCESS;
}

int cuMemAddressReserve(void **address, size_t bytes, size_t alignment, void *wanted, ull flags)
{
    (void)alignment, (void)wanted, (void)flags;
    *address = reserve(bytes);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemAddressFree(void *address, size_t bytes)
{
    unreserve(address, bytes);
    return SUCCESS;
}

int cuMemMap(void *address, size_t bytes, size_t offset, struct memory *handle, ull flags)
{
    (void)offset, (void)flags;
    note_range(DEVICE, handle->device, address, bytes);
    return SUCCESS;
}

int cuMemUnmap(void *address, size_t bytes)
{
    forget_ranges(address, bytes);
    return SUCCESS;
}

int cuPointerGetAttribute(void *value, int number, void *address)
{
    enum kind kind;
    int device;
    if (!find_range(address, &kind, &device))
        return INVALID_VALUE;
    switch (number) {
    case 1: *(void **)value = &contexts[device]; break;                             /* context */
    case 2: *(unsigned *)value = kind == PINNED || kind == REGISTERED ? 1 : 2; break; /* memory's type */
    case 3: case 4: *(void **)value = address; break;                               /* on the card, on the host */
    case 8: *(int *)value = kind == MANAGED; break;
    case 9: *(int *)value = device; break;
    default: *(int *)value = 0;
    }
    return SUCCESS;
}

/* ---- kernels ---- */

int cuModuleLoad(void **module, const char *file) { (void)file; *module = new_handle(); return SUCCESS; }
int cuModuleLoadData(void **module, const void *image) { (void)image; *module = new_handle(); return SUCCESS; }
int cuModuleLoadDataEx(void **module, const void *image, unsigned count, int *options, void **values)
{
    (void)image, (void)count, (void)options, (void)values;
    *module = new_handle();
    return SUCCESS;
}
int cuModuleGetFunction(void **function, void *module, const char *name)
{
    (void)module, (void)name;
    *function = new_handle();
    return SUCCESS;
}
int cuLibraryLoadData(void **library, const void *image) { (void)image; *library = new_handle(); return SUCCESS; }
int cuLibraryGetKernel(void **kernel, void *library, const char *name)
{
    (void)library, (void)name;
    *kernel = new_handle();
    return SUCCESS;
}
int cuStreamCreate(void **stream, unsigned flags) { (void)flags; *stream = new_handle(); return SUCCESS; }
int cuEventCreate(void **event, unsigned flags) { (void)flags; *event = new_handle(); return SUCCESS; }

int cuFuncGetAttribute(int *value, int number, void *function)
{
    (void)function;
    /* A block's threads, and registers; a kernel that uses no shared and spills to no local memory. */
    *value = number == 0 ? 1024 : number == 4 ? 64 : 0;
    return SUCCESS;
}

int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared)
{
    (void)function, (void)shared;
    int fitting = threads > 0 ? gpu.threads_per_multiprocessor / threads : 1;
    *blocks = fitting > 0 ? fitting : 1;
    return SUCCESS;
}

int cuOccupancyMaxActiveClusters(int *clusters, void *function, const void *config)
{
    (void)function, (void)config;
    *clusters = gpu.multiprocessors / 2;
    return SUCCESS;
}

/* ---- management: counts all cards, whichever CUDA_VISIBLE_DEVICES lets a process use ---- */

int nvmlDeviceGetCount_v2(unsigned *count)
{
    *count = (unsigned)installed_gpus();
    return SUCCESS;
}
int nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = &contexts[index]; return SUCCESS; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **handle)
{
    unsigned bus = 1;
    sscanf(id, "%*x:%x", &bus);
    *handle = &contexts[bus - 1];
    return SUCCESS;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned length)
{
    gpu_uuid((int)((char *)handle - contexts), uuid, length);
    return SUCCESS;
}

int nvmlDeviceGetName(void *handle, char *name, unsigned length)
{
    (void)handle;
    snprintf(name, length, "%s", gpu.name);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *handle, ull info[3])
{
    int device = (int)((char *)handle - contexts);
    info[0] = gpu.total_bytes;
    info[1] = free_bytes(device);
    info[2] = info[0] - info[1];
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses(void *handle, unsigned *count, void *processes)
{
    (void)handle, (void)processes;
    *count = 0;
    return SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, void *processes)
{
    return nvmlDeviceGetComputeRunningProcesses(handle, count, processes);
}

/* NVML_ERROR_NOT_SUPPORTED: cards without links to one another. */
int nvmlDeviceGetNvLinkRemoteDeviceType(void *handle, unsigned link, int *type)
{
    (void)handle, (void)link, (void)type;
    return 3;
}
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *handle, unsigned link, void *info)
{
    (void)handle, (void)link, (void)info;
    return 3;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) { snprintf(version, length, "0.0"); return SUCCESS; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = CUDA_VERSION; return SUCCESS; }
