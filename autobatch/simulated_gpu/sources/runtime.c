/* The CUDA runtime (libcudart) that has something to say; every other function of it answers "success". */

#define _GNU_SOURCE
#include "simulated.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef struct { unsigned x, y, z; } dim3;
typedef void *stream_t;

static __thread int last_error;

static int said(int error)
{
    if (error)
        last_error = error;
    return error;
}

int cudaGetLastError(void)
{
    int error = last_error;
    last_error = SUCCESS;
    return error;
}

int cudaPeekAtLastError(void) { return last_error; }

static const char *error_name(int error)
{
    switch (error) {
    case SUCCESS: return "cudaSuccess";
    case INVALID_VALUE: return "cudaErrorInvalidValue";
    case OUT_OF_MEMORY: return "cudaErrorMemoryAllocation";
    case NO_DEVICE: return "cudaErrorNoDevice";
    case INVALID_DEVICE: return "cudaErrorInvalidDevice";
    default: return "cudaErrorUnknown";
    }
}

static const char *error_text(int error)
{
    switch (error) {
    case SUCCESS: return "no error";
    case INVALID_VALUE: return "invalid argument";
    case OUT_OF_MEMORY: return "out of memory";
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case INVALID_DEVICE: return "invalid device ordinal";
    default: return "unknown error";
    }
}

const char *cudaGetErrorName(int error) { return error_name(error); }
const char *cudaGetErrorString(int error) { return error_text(error); }

/* ---- devices ---- */

int cudaGetDeviceCount(int *count)
{
    *count = visible_gpus();
    return said(*count ? SUCCESS : NO_DEVICE);
}

int cudaGetDevice(int *device)
{
    *device = current_gpu;
    return SUCCESS;
}

int cudaSetDevice(int device)
{
    if (device < 0 || device >= visible_gpus())
        return said(visible_gpus() ? INVALID_DEVICE : NO_DEVICE);
    current_gpu = device;
    return SUCCESS;
}

int cudaDriverGetVersion(int *version) { *version = CUDA_VERSION; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = CUDA_VERSION; return SUCCESS; }

int cudaDeviceGetAttribute(int *value, int number, int device)
{
    (void)device;
    *value = attribute(number);
    return SUCCESS;
}

int cudaDeviceGetPCIBusId(char *id, int length, int device)
{
    snprintf(id, (size_t)length, "0000:%02x:00.0", physical_gpu(device) + 1);
    return SUCCESS;
}

int cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    *can = device != peer;
    return SUCCESS;
}

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    if (least)
        *least = 0;
    if (greatest)
        *greatest = -5;
    return SUCCESS;
}

/* cudaDeviceProp of CUDA 12 and of 13, which left out what cudaDeviceGetAttribute says too. */
#if CUDA_VERSION < 13000
#define ONLY_12(...) __VA_ARGS__
#define ONLY_13(...)
#else
#define ONLY_12(...)
#define ONLY_13(...) __VA_ARGS__
#endif

struct properties {
    char name[256];
    char uuid[16];
    char luid[8];
    unsigned luidDeviceNodeMask;
    size_t totalGlobalMem, sharedMemPerBlock;
    int regsPerBlock, warpSize;
    size_t memPitch;
    int maxThreadsPerBlock, maxThreadsDim[3], maxGridSize[3];
    ONLY_12(int clockRate;)
    size_t totalConstMem;
    int major, minor;
    size_t textureAlignment, texturePitchAlignment;
    ONLY_12(int deviceOverlap;)
    int multiProcessorCount;
    ONLY_12(int kernelExecTimeoutEnabled;)
    int integrated, canMapHostMemory;
    ONLY_12(int computeMode;)
    int maxTexture1D, maxTexture1DMipmap;
    ONLY_12(int maxTexture1DLinear;)
    int maxTexture2D[2], maxTexture2DMipmap[2], maxTexture2DLinear[3], maxTexture2DGather[2];
    int maxTexture3D[3], maxTexture3DAlt[3], maxTextureCubemap, maxTexture1DLayered[2], maxTexture2DLayered[3];
    int maxTextureCubemapLayered[2], maxSurface1D, maxSurface2D[2], maxSurface3D[3], maxSurface1DLayered[2];
    int maxSurface2DLayered[3], maxSurfaceCubemap, maxSurfaceCubemapLayered[2];
    size_t surfaceAlignment;
    int concurrentKernels, ECCEnabled, pciBusID, pciDeviceID, pciDomainID, tccDriver, asyncEngineCount;
    int unifiedAddressing;
    ONLY_12(int memoryClockRate;)
    int memoryBusWidth, l2CacheSize, persistingL2CacheMaxSize, maxThreadsPerMultiProcessor;
    int streamPrioritiesSupported, globalL1CacheSupported, localL1CacheSupported;
    size_t sharedMemPerMultiprocessor;
    int regsPerMultiprocessor, managedMemory, isMultiGpuBoard, multiGpuBoardGroupID, hostNativeAtomicSupported;
    ONLY_12(int singleToDoublePrecisionPerfRatio;)
    int pageableMemoryAccess, concurrentManagedAccess, computePreemptionSupported;
    int canUseHostPointerForRegisteredMem, cooperativeLaunch;
    ONLY_12(int cooperativeMultiDeviceLaunch;)
    size_t sharedMemPerBlockOptin;
    int pageableMemoryAccessUsesHostPageTables, directManagedMemAccessFromHost, maxBlocksPerMultiProcessor;
    int accessPolicyMaxWindowSize;
    size_t reservedSharedMemPerBlock;
    int hostRegisterSupported, sparseCudaArraySupported, hostRegisterReadOnlySupported;
    int timelineSemaphoreInteropSupported, memoryPoolsSupported, gpuDirectRDMASupported;
    unsigned gpuDirectRDMAFlushWritesOptions;
    int gpuDirectRDMAWritesOrdering;
    unsigned memoryPoolSupportedHandleTypes;
    int deferredMappingCudaArraySupported, ipcEventSupported, clusterLaunch, unifiedFunctionPointers;
    ONLY_13(int deviceNumaConfig, deviceNumaId, mpsEnabled, hostNumaId;)
    ONLY_13(unsigned gpuPciDeviceID, gpuPciSubsystemID;)
    ONLY_13(int hostNumaMultinodeIpcSupported;)
    ONLY_12(int reserved2[2], reserved1[1];)
    int reserved[CUDA_VERSION < 13000 ? 60 : 56];
};

static int properties(struct properties *p, int device)
{
    if (device < 0 || device >= visible_gpus())
        return said(INVALID_DEVICE);
    memset(p, 0, sizeof *p);
    memcpy(p->name, gpu.name, sizeof p->name);
    p->uuid[15] = (char)physical_gpu(device);
    p->totalGlobalMem = gpu.total_bytes;
    p->sharedMemPerBlock = 49152;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->memPitch = 2147483647;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->major = gpu.major;
    p->minor = gpu.minor;
    p->textureAlignment = 512;
    p->multiProcessorCount = gpu.multiprocessors;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->streamPrioritiesSupported = 1;
    p->managedMemory = p->concurrentManagedAccess = p->cooperativeLaunch = p->hostRegisterSupported = 1;
    p->memoryPoolsSupported = 1;
    p->pciBusID = physical_gpu(device) + 1;
    p->asyncEngineCount = 3;
    p->memoryBusWidth = gpu.bus_bits;
    p->l2CacheSize = gpu.l2_bytes;
    p->maxThreadsPerMultiProcessor = gpu.threads_per_multiprocessor;
    p->sharedMemPerMultiprocessor = (size_t)gpu.shared_bytes_per_multiprocessor;
    p->sharedMemPerBlockOptin = (size_t)gpu.shared_bytes_per_block;
    p->maxBlocksPerMultiProcessor = gpu.blocks_per_multiprocessor;
    p->reservedSharedMemPerBlock = (size_t)attribute(111);
    p->clusterLaunch = attribute(120);
#if CUDA_VERSION < 13000
    p->clockRate = gpu.clock_khz;
    p->memoryClockRate = gpu.memory_clock_khz;
    p->deviceOverlap = 1;
#endif
    return SUCCESS;
}

int cudaGetDeviceProperties(void *p, int device) { return properties(p, device); }
int cudaGetDeviceProperties_v2(void *p, int device) { return properties(p, device); }

/* ---- memory ---- */

static int into(void **address, enum kind kind, size_t bytes)
{
    if (!bytes) {
        *address = 0;
        return SUCCESS;
    }
    *address = allocate(kind, physical_gpu(current_gpu), bytes);
    return said(*address ? SUCCESS : OUT_OF_MEMORY);
}

int cudaMalloc(void **address, size_t bytes) { return into(address, DEVICE, bytes); }
int cudaMallocManaged(void **address, size_t bytes, unsigned flags) { (void)flags; return into(address, MANAGED, bytes); }
int cudaHostAlloc(void **address, size_t bytes, unsigned flags) { (void)flags; return into(address, PINNED, bytes); }
int cudaMallocHost(void **address, size_t bytes) { return into(address, PINNED, bytes); }
int cudaFree(void *address) { return address ? said(release(address)) : SUCCESS; }
int cudaFreeHost(void *address) { return address ? said(release(address)) : SUCCESS; }

int cudaMallocAsync(void **address, size_t bytes, stream_t stream)
{
    (void)stream;
    return into(address, POOLED, bytes);
}

int cudaMallocFromPoolAsync(void **address, size_t bytes, void *pool, stream_t stream)
{
    (void)pool;
    return cudaMallocAsync(address, bytes, stream);
}

int cudaFreeAsync(void *address, stream_t stream)
{
    (void)stream;
    return cudaFree(address);
}

int cudaHostRegister(void *address, size_t bytes, unsigned flags)
{
    (void)flags;
    note_range(REGISTERED, 0, address, bytes);
    return SUCCESS;
}

int cudaHostUnregister(void *address)
{
    forget_ranges(address, 1);
    return SUCCESS;
}

int cudaHostGetDevicePointer(void **device, void *host, unsigned flags)
{
    (void)flags;
    *device = host;
    return SUCCESS;
}

int cudaMemGetInfo(size_t *available, size_t *total)
{
    *available = free_bytes(physical_gpu(current_gpu));
    *total = gpu.total_bytes;
    return SUCCESS;
}

int cudaDeviceGetDefaultMemPool(void **pool, int device) { *pool = &pools[physical_gpu(device)]; return SUCCESS; }
int cudaDeviceGetMemPool(void **pool, int device) { return cudaDeviceGetDefaultMemPool(pool, device); }
int cudaMemPoolTrimTo(void *pool, size_t keep) { return trim_pool((int)((struct pool *)pool - pools), keep); }

int cudaMemPoolGetAttribute(void *pool_, int number, void *value)
{
    struct pool *pool = pool_;
    switch (number) {
    case 4: *(ull *)value = pool->threshold; break;
    case 5: *(ull *)value = pool->reserved; break;
    case 6: *(ull *)value = pool->reserved_high; break;
    case 7: *(ull *)value = pool->used; break;
    case 8: *(ull *)value = pool->used_high; break;
    default: *(int *)value = 1;
    }
    return SUCCESS;
}

int cudaMemPoolSetAttribute(void *pool_, int number, void *value)
{
    struct pool *pool = pool_;
    switch (number) {
    case 4: pool->threshold = *(ull *)value; break;
    case 6: pool->reserved_high = pool->reserved; break;
    case 8: pool->used_high = pool->used; break;
    }
    return SUCCESS;
}

struct pointer { int type, device; void *on_device, *on_host; };

int cudaPointerGetAttributes(struct pointer *p, void *address)
{
    enum kind kind;
    memset(p, 0, sizeof *p);
    if (!find_range(address, &kind, &p->device)) {
        p->on_host = address;
        return SUCCESS;
    }
    int on_host = kind == PINNED || kind == REGISTERED;
    p->type = on_host ? 1 : kind == MANAGED ? 3 : 2;
    p->on_device = address;
    p->on_host = on_host || kind == MANAGED ? address : 0;
    return SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { (void)kind; copy(to, from, bytes); return SUCCESS; }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, stream_t stream)
{
    (void)kind, (void)stream;
    copy(to, from, bytes);
    return SUCCESS;
}

int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height,
                      int kind, stream_t stream)
{
    (void)kind, (void)stream;
    for (size_t row = 0; row < height; row++)
        copy(to + row * to_pitch, from + row * from_pitch, width);
    return SUCCESS;
}

int cudaMemcpy2D(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height, int kind)
{
    return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, height, kind, 0);
}

int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t offset, int kind)
{
    (void)symbol, (void)offset, (void)kind;
    memset(to, 0, bytes);
    return SUCCESS;
}

int cudaMemset(void *to, int value, size_t bytes) { fill(to, value, bytes); return SUCCESS; }
int cudaMemsetAsync(void *to, int value, size_t bytes, stream_t stream)
{
    (void)stream;
    fill(to, value, bytes);
    return SUCCESS;
}

/* Unified memory is where it is used: bitsandbytes' paged optimizers ask for it ahead. */
int cudaMemPrefetchAsync(const void *address, size_t bytes, int device, stream_t stream)
{
    (void)address, (void)bytes, (void)device, (void)stream;
    return SUCCESS;
}

int cudaMemAdvise(const void *address, size_t bytes, int advice, int device)
{
    (void)address, (void)bytes, (void)advice, (void)device;
    return SUCCESS;
}

int cudaGetSymbolAddress(void **address, const void *symbol)
{
    (void)symbol;
    static void *symbols;
    if (!symbols)
        symbols = reserve(1);
    *address = symbols;
    return SUCCESS;
}

/* ---- streams, events, kernels ---- */

int cudaStreamCreate(stream_t *stream) { *stream = new_handle(); return SUCCESS; }
int cudaStreamCreateWithFlags(stream_t *stream, unsigned flags) { (void)flags; return cudaStreamCreate(stream); }
int cudaStreamCreateWithPriority(stream_t *stream, unsigned flags, int priority)
{
    (void)flags, (void)priority;
    return cudaStreamCreate(stream);
}
int cudaStreamGetPriority(stream_t stream, int *priority) { (void)stream; *priority = 0; return SUCCESS; }
int cudaStreamGetFlags(stream_t stream, unsigned *flags) { (void)stream; *flags = 1; return SUCCESS; }
int cudaStreamIsCapturing(stream_t stream, int *status) { (void)stream; *status = 0; return SUCCESS; }

/* The arguments behind these three differ from version to version, and say nothing of a stream that isn't captured. */
int cudaStreamGetCaptureInfo(stream_t stream, int *status, ull *id)
{
    (void)stream;
    if (status)
        *status = 0;
    if (id)
        *id = 0;
    return SUCCESS;
}
int cudaStreamGetCaptureInfo_v2(stream_t stream, int *status, ull *id)
{
    return cudaStreamGetCaptureInfo(stream, status, id);
}

int cudaLaunchHostFunc(stream_t stream, void (*function)(void *), void *data)
{
    (void)stream;
    function(data);
    return SUCCESS;
}

int cudaStreamAddCallback(stream_t stream, void (*function)(stream_t, int, void *), void *data, unsigned flags)
{
    (void)flags;
    function(stream, SUCCESS, data);
    return SUCCESS;
}

int cudaEventCreate(void **event) { *event = new_handle(); return SUCCESS; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { (void)flags; return cudaEventCreate(event); }

/* All kernels take equally long: whoever compares them finds no difference. */
int cudaEventElapsedTime(float *ms, void *began, void *ended)
{
    (void)began, (void)ended;
    *ms = 1.0f;
    return SUCCESS;
}
int cudaEventElapsedTime_v2(float *ms, void *began, void *ended) { return cudaEventElapsedTime(ms, began, ended); }

struct function {
    size_t shared_bytes, const_bytes, local_bytes;
    int threads, registers, ptx_version, binary_version, cache_mode, dynamic_shared_bytes;
};

int cudaFuncGetAttributes(struct function *f, const void *function)
{
    (void)function;
    memset(f, 0, sizeof *f);
    f->threads = 1024;
    f->registers = 64;
    f->ptx_version = f->binary_version = 10 * gpu.major + gpu.minor;
    f->dynamic_shared_bytes = gpu.shared_bytes_per_block;
    return SUCCESS;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads, size_t shared)
{
    (void)function, (void)shared;
    int fitting = threads > 0 ? gpu.threads_per_multiprocessor / threads : 1;
    *blocks = fitting > 0 ? fitting : 1;
    return SUCCESS;
}
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function, int threads,
                                                           size_t shared, unsigned flags)
{
    (void)flags;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}
int cudaOccupancyMaxActiveClusters(int *clusters, const void *function, const void *config)
{
    (void)function, (void)config;
    *clusters = gpu.multiprocessors / 2;
    return SUCCESS;
}

void **__cudaRegisterFatBinary(void *binary)
{
    (void)binary;
    static void *handle[2];
    return handle;
}
char __cudaInitModule(void **handle) { (void)handle; return 1; }
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, stream_t stream)
{
    (void)grid, (void)block, (void)shared, (void)stream;
    return SUCCESS;
}
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream)
{
    *grid = *block = (dim3){1, 1, 1};
    *shared = 0;
    *(void **)stream = 0;
    return SUCCESS;
}
int __cudaGetKernel(void **kernel, const void *function) { *kernel = (void *)function; return SUCCESS; }
int cudaGetFuncBySymbol(void **function, const void *symbol) { *function = (void *)symbol; return SUCCESS; }

static int success(void) { return SUCCESS; }

/* Functions of the driver by name. Newer forms of one have a suffix; those without it here take the newer's arguments. */
int cudaGetDriverEntryPoint(const char *name, void **function, ull flags, int *status)
{
    (void)flags;
    char newer[128];
    snprintf(newer, sizeof newer, "%s_v2", name);
    void *found = dlsym(RTLD_DEFAULT, name);
    if (!found)
        found = dlsym(RTLD_DEFAULT, newer);
    if (!found)
        trace(name);
    *function = found ? found : (void *)success;
    if (status)
        *status = 0;
    return SUCCESS;
}
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, ull flags, int *status)
{
    (void)version;
    return cudaGetDriverEntryPoint(name, function, flags, status);
}
