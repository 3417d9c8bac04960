/* The card itself: its settings, its memory, and copies to and from it. */

#define _GNU_SOURCE
#include "simulated.h"

#include <pthread.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Set by autobatch.simulated_gpu.environment: "name=...;total_bytes=...;..." */
#define SETTINGS "AUTOBATCH_SIMULATED_GPU"

/* Device memory is address space: nothing is ever written to it. */
#define ARENA_BYTES (1ull << 45)

/* The driver gives a process physical memory in pages of this size. */
#define PAGE_BYTES (2ull << 20)

/* From this size on, host memory that is to be zero is given back to the kernel instead of being written. */
#define DISCARD_BYTES (1ull << 20)

/* What a pool of cudaMallocAsync takes from the driver at a time. */
#define POOL_BYTES (32ull << 20)

struct gpu gpu;
struct pool pools[MAX_GPUS];
__thread int current_gpu;

static ull used[MAX_GPUS];
static char *arena, *arena_next;
static int tracing, installed;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

struct range {
    char *address;
    ull bytes;
    ull room; /* of address space, from the arena; 0: it isn't from there */
    enum kind kind;
    int device;
};

static void *ranges; /* in use, by address */
static void *spare;  /* of the arena, by room */

static ull setting(const char *settings, const char *name, ull otherwise)
{
    size_t length = strlen(name);
    for (const char *at = settings; at && *at; at = strchr(at, ';'), at = at ? at + 1 : 0)
        if (!strncmp(at, name, length) && at[length] == '=')
            return strtoull(at + length + 1, 0, 10);
    return otherwise;
}

/* A process that finds this function sees simulated cards. */
const char *autobatch_simulated_gpu(void) { return gpu.name; }

void gpu_uuid(int physical, char *uuid, size_t length)
{
    snprintf(uuid, length, "GPU-00000000-0000-0000-0000-%012x", physical);
}

int installed_gpus(void) { return installed; }

/* As the CUDA Programming Guide describes CUDA_VISIBLE_DEVICES: the first one that isn't there hides the rest. */
static void see(void)
{
    for (int i = 0; i < installed; i++)
        gpu.visible[i] = i;
    const char *list = getenv("CUDA_VISIBLE_DEVICES");
    if (!list) {
        gpu.count = installed;
        return;
    }
    while (*list) {
        char *end;
        long index = strtol(list, &end, 10);
        if (end == list) {
            for (index = 0; index < installed; index++) {
                char uuid[64];
                size_t given = strcspn(list, ",");
                gpu_uuid((int)index, uuid, sizeof uuid);
                if (given > 4 && !strncmp(list, uuid, given))
                    break;
            }
            end = (char *)list + strcspn(list, ",");
        }
        if (index < 0 || index >= installed)
            return;
        gpu.visible[gpu.count++] = (int)index;
        list = *end == ',' ? end + 1 : end + strlen(end);
    }
}

__attribute__((constructor)) static void begin(void)
{
    const char *settings = getenv(SETTINGS);
    const char *name = settings ? strstr(settings, "name=") : 0;
    if (name)
        snprintf(gpu.name, sizeof gpu.name, "%.*s", (int)strcspn(name + 5, ";"), name + 5);
    gpu.total_bytes = setting(settings, "total_bytes", 0);
    gpu.taken_bytes = setting(settings, "taken_bytes", 0);
    gpu.major = (int)setting(settings, "major", 0);
    gpu.minor = (int)setting(settings, "minor", 0);
    gpu.multiprocessors = (int)setting(settings, "multiprocessors", 0);
    gpu.l2_bytes = (int)setting(settings, "l2_bytes", 0);
    gpu.bus_bits = (int)setting(settings, "bus_bits", 0);
    gpu.clock_khz = (int)setting(settings, "clock_khz", 0);
    gpu.memory_clock_khz = (int)setting(settings, "memory_clock_khz", 0);
    gpu.shared_bytes_per_multiprocessor = (int)setting(settings, "shared_bytes_per_multiprocessor", 0);
    gpu.shared_bytes_per_block = (int)setting(settings, "shared_bytes_per_block", 0);
    gpu.threads_per_multiprocessor = (int)setting(settings, "threads_per_multiprocessor", 0);
    gpu.blocks_per_multiprocessor = (int)setting(settings, "blocks_per_multiprocessor", 0);
    tracing = (int)setting(settings, "trace", 0);
    ull count = setting(settings, "count", 0);
    installed = count > MAX_GPUS ? MAX_GPUS : (int)count;
    arena = arena_next = mmap(0, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED)
        arena = arena_next = 0;
}

/* The driver reads CUDA_VISIBLE_DEVICES at its first call: a process that runs already may set it before that. */
int visible_gpus(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, see);
    return gpu.count;
}

int physical_gpu(int ordinal)
{
    return ordinal >= 0 && ordinal < visible_gpus() ? gpu.visible[ordinal] : 0;
}

int ordinal_of(int physical)
{
    for (int ordinal = 0; ordinal < visible_gpus(); ordinal++)
        if (gpu.visible[ordinal] == physical)
            return ordinal;
    return 0;
}

void trace(const char *function)
{
    if (tracing)
        fprintf(stderr, "simulated GPU: %s answered success\n", function);
}

void *new_handle(void)
{
    static uintptr_t last = 0x1000;
    return (void *)__sync_add_and_fetch(&last, 16);
}

static int by_address(const void *a, const void *b)
{
    const struct range *one = a, *two = b;
    /* Ranges don't overlap; a key of no bytes is a place in one. */
    if (one->address + (one->bytes ? one->bytes - 1 : 0) < two->address)
        return -1;
    return one->address > two->address + (two->bytes ? two->bytes - 1 : 0);
}

static int by_room(const void *a, const void *b)
{
    const struct range *one = a, *two = b;
    if (one->room != two->room)
        return one->room < two->room ? -1 : 1;
    /* A key without address is any range of that room. */
    if (!one->address || !two->address || one->address == two->address)
        return 0;
    return one->address < two->address ? -1 : 1;
}

static struct range *new_range(enum kind kind, int device, void *address, ull bytes, ull room)
{
    struct range *range = malloc(sizeof *range);
    *range = (struct range){address, bytes, room, kind, device};
    return range;
}

static struct range *find(const void *address)
{
    struct range key = {.address = (char *)address};
    struct range **found = tfind(&key, &ranges, by_address);
    return found ? *found : 0;
}

static int take_locked(int device, ull bytes)
{
    if (gpu.taken_bytes + used[device] + bytes > gpu.total_bytes)
        return 0;
    used[device] += bytes;
    return 1;
}

int take(int device, ull bytes)
{
    pthread_mutex_lock(&mutex);
    int taken = take_locked(device, bytes);
    pthread_mutex_unlock(&mutex);
    return taken;
}

void give_back(int device, ull bytes)
{
    pthread_mutex_lock(&mutex);
    used[device] -= bytes;
    pthread_mutex_unlock(&mutex);
}

ull free_bytes(int device)
{
    pthread_mutex_lock(&mutex);
    ull taken = gpu.taken_bytes + used[device];
    pthread_mutex_unlock(&mutex);
    return taken < gpu.total_bytes ? gpu.total_bytes - taken : 0;
}

static ull in_pages(ull bytes)
{
    return (bytes + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1);
}

/* Sizes that differ little get the same room, so that a process which frees and allocates for ever, each time a little
 * more, doesn't come to the arena's end. */
static ull room_for(ull bytes)
{
    ull step = 512;
    while (step * 16 < bytes)
        step *= 2;
    return (bytes + step - 1) & ~(step - 1);
}

static void *reserve_locked(ull room)
{
    struct range key = {.room = room};
    struct range **found = tfind(&key, &spare, by_room);
    if (found) {
        struct range *range = *found;
        void *address = range->address;
        tdelete(range, &spare, by_room);
        free(range);
        return address;
    }
    if (!arena || room > (ull)(arena + ARENA_BYTES - arena_next))
        return 0;
    void *address = arena_next;
    arena_next += room;
    return address;
}

void *reserve(ull bytes)
{
    pthread_mutex_lock(&mutex);
    void *address = reserve_locked(room_for(in_pages(bytes)));
    pthread_mutex_unlock(&mutex);
    return address;
}

void unreserve(void *address, ull bytes)
{
    pthread_mutex_lock(&mutex);
    tsearch(new_range(DEVICE, 0, address, bytes, room_for(in_pages(bytes))), &spare, by_room);
    pthread_mutex_unlock(&mutex);
}

static int take_from_pool(int device, ull bytes)
{
    struct pool *pool = &pools[device];
    if (pool->used + bytes > pool->reserved) {
        ull more = (pool->used + bytes - pool->reserved + POOL_BYTES - 1) / POOL_BYTES * POOL_BYTES;
        if (!take_locked(device, more))
            return 0;
        pool->reserved += more;
    }
    pool->used += bytes;
    if (pool->used > pool->used_high)
        pool->used_high = pool->used;
    if (pool->reserved > pool->reserved_high)
        pool->reserved_high = pool->reserved;
    return 1;
}

int trim_pool(int device, ull keep_bytes)
{
    pthread_mutex_lock(&mutex);
    struct pool *pool = &pools[device];
    ull keep = keep_bytes > pool->used ? keep_bytes : pool->used;
    if (pool->reserved > keep) {
        used[device] -= pool->reserved - keep;
        pool->reserved = keep;
    }
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

void *allocate(enum kind kind, int device, ull bytes)
{
    ull size = kind == POOLED ? (bytes + 511) & ~511ull : in_pages(bytes), room = 0;
    void *address;
    if (kind == PINNED || kind == MANAGED) {
        /* Pages come as they are written, which those of offloaded activations never are. */
        size = (bytes + 4095) & ~4095ull;
        address = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (address == MAP_FAILED)
            return 0;
        pthread_mutex_lock(&mutex);
    } else {
        pthread_mutex_lock(&mutex);
        int taken = kind == POOLED ? take_from_pool(device, size) : take_locked(device, size);
        room = room_for(size);
        address = taken ? reserve_locked(room) : 0;
    }
    if (address)
        tsearch(new_range(kind, device, address, size, room), &ranges, by_address);
    pthread_mutex_unlock(&mutex);
    return address;
}

int release(void *address)
{
    pthread_mutex_lock(&mutex);
    struct range *range = find(address);
    /* What was mapped or registered isn't freed so. */
    if (!range || range->address != address || range->kind == REGISTERED || (range->kind == DEVICE && !range->room)) {
        pthread_mutex_unlock(&mutex);
        return INVALID_VALUE;
    }
    tdelete(range, &ranges, by_address);
    if (range->kind == PINNED || range->kind == MANAGED) {
        munmap(address, range->bytes);
        free(range);
    } else {
        if (range->kind == POOLED)
            pools[range->device].used -= range->bytes;
        else
            used[range->device] -= range->bytes;
        tsearch(range, &spare, by_room);
    }
    pthread_mutex_unlock(&mutex);
    return SUCCESS;
}

void note_range(enum kind kind, int device, void *address, ull bytes)
{
    pthread_mutex_lock(&mutex);
    struct range *range = new_range(kind, device, address, bytes, 0);
    struct range **kept = tsearch(range, &ranges, by_address);
    if (*kept != range)
        free(range);
    pthread_mutex_unlock(&mutex);
}

void forget_ranges(void *address, ull bytes)
{
    pthread_mutex_lock(&mutex);
    struct range *range = find(address);
    for (char *at = address; range && at < (char *)address + bytes; range = find(at)) {
        at = range->address + range->bytes;
        tdelete(range, &ranges, by_address);
        free(range);
    }
    pthread_mutex_unlock(&mutex);
}

int find_range(const void *address, enum kind *kind, int *device)
{
    pthread_mutex_lock(&mutex);
    struct range *range = find(address);
    if (range) {
        *kind = range->kind;
        *device = ordinal_of(range->device);
    }
    pthread_mutex_unlock(&mutex);
    return range != 0;
}

static int on_card(const void *address)
{
    return arena && (const char *)address >= arena && (const char *)address < arena + ARENA_BYTES;
}

static void make_zero(char *to, size_t bytes)
{
    if (bytes >= DISCARD_BYTES) {
        char *first = (char *)(((uintptr_t)to + 4095) & ~4095ul);
        size_t whole = (size_t)(to + bytes - first) & ~4095ul;
        if (!madvise(first, whole, MADV_DONTNEED)) {
            memset(to, 0, (size_t)(first - to));
            memset(first + whole, 0, (size_t)(to + bytes - first) - whole);
            return;
        }
    }
    memset(to, 0, bytes);
}

void copy(void *to, const void *from, size_t bytes)
{
    if (on_card(to))
        return;
    if (on_card(from))
        make_zero(to, bytes);
    else
        memcpy(to, from, bytes);
}

void fill(void *to, int value, size_t bytes)
{
    if (!on_card(to))
        memset(to, value, bytes);
}

/* cudaDeviceAttr and CUdevice_attribute share these numbers. */
int attribute(int number)
{
    switch (number) {
    case 1: return 1024;                   /* threads of a block */
    case 2: case 3: return 1024;           /* its x and y */
    case 4: return 64;                     /* its z */
    case 5: return 2147483647;             /* a grid's x */
    case 6: case 7: return 65535;          /* its y and z */
    case 8: return 49152;                  /* shared memory of a block, unless it opts in for more */
    case 9: return 65536;                  /* constant memory */
    case 10: return 32;                    /* threads of a warp */
    case 11: return 2147483647;            /* pitch of a copy */
    case 12: case 82: return 65536;        /* registers of a block, of a multiprocessor */
    case 13: return gpu.clock_khz;
    case 14: return 512;                   /* alignment of textures */
    case 15: case 19: case 31: case 41: return 1; /* overlap, mapped host memory, concurrent kernels, one address space */
    case 16: return gpu.multiprocessors;
    case 36: return gpu.memory_clock_khz;
    case 37: return gpu.bus_bits;
    case 38: return gpu.l2_bytes;
    case 39: return gpu.threads_per_multiprocessor;
    case 40: return 3;                     /* copy engines */
    case 75: return gpu.major;
    case 76: return gpu.minor;
    case 78: case 83: case 89: case 90: case 95: return 1; /* priorities, managed memory, cooperative launch */
    case 81: return gpu.shared_bytes_per_multiprocessor;
    case 97: return gpu.shared_bytes_per_block;
    case 99: return 1;                     /* host memory can be registered */
    case 102: return 1;                    /* cuMemAddressReserve and its kind */
    case 106: return gpu.blocks_per_multiprocessor;
    case 111: return gpu.major >= 8 ? 1024 : 0; /* shared memory that the driver keeps of a block */
    case 115: return 1;                    /* memory pools */
    case 120: return gpu.major >= 9;       /* clusters */
    default: return 0;
    }
}
