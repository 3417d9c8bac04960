/* Libraries above the runtime, as far as PyTorch believes what they say: versions, handles, sizes. What they
 * compute is computed by nobody. */

#include "simulated.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- cuBLAS, cuBLASLt ---- */

int cublasCreate_v2(void **handle) { *handle = new_handle(); return SUCCESS; }
int cublasGetVersion_v2(void *handle, int *version) { (void)handle; *version = CUDA_VERSION * 10; return SUCCESS; }
int cublasGetMathMode(void *handle, int *mode) { (void)handle; *mode = 0; return SUCCESS; }
int cublasGetPointerMode_v2(void *handle, int *mode) { (void)handle; *mode = 0; return SUCCESS; }

int cublasLtCreate(void **handle) { *handle = new_handle(); return SUCCESS; }
size_t cublasLtGetVersion(void) { return CUDA_VERSION * 10; }
int cublasLtMatmulDescCreate(void **made, int compute, int scale)
{
    (void)compute, (void)scale;
    *made = new_handle();
    return SUCCESS;
}
int cublasLtMatrixLayoutCreate(void **made, int type, uint64_t rows, uint64_t columns, int64_t leading)
{
    (void)type, (void)rows, (void)columns, (void)leading;
    *made = new_handle();
    return SUCCESS;
}
int cublasLtMatmulPreferenceCreate(void **made) { *made = new_handle(); return SUCCESS; }

struct heuristic { uint64_t algorithm[8]; size_t workspace_bytes; int status; float waves; int reserved[4]; };

/* One algorithm, without workspace of its own: PyTorch allocates what it offers before it asks. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *matmul, void *a, void *b, void *c, void *d, void *preference,
                                   int asked, struct heuristic *found, int *count)
{
    (void)handle, (void)matmul, (void)a, (void)b, (void)c, (void)d, (void)preference;
    *count = asked > 0;
    if (*count)
        memset(found, 0, sizeof *found);
    return SUCCESS;
}

/* ---- cuDNN ---- */

size_t cudnnGetVersion(void) { return CUDNN_VERSION; }
size_t cudnnGetCudartVersion(void) { return CUDA_VERSION; }
int cudnnCreate(void **handle) { *handle = new_handle(); return SUCCESS; }

int cudnnGetProperty(int which, int *value)
{
    int parts[] = {CUDNN_VERSION / 10000, CUDNN_VERSION / 100 % 100, CUDNN_VERSION % 100};
    *value = which >= 0 && which < 3 ? parts[which] : 0;
    return SUCCESS;
}

/* Its graphs, which attention is, say by descriptors what is to be computed. None is looked into: whatever is asked for
 * has one engine, in one configuration, without workspace or notes. cuDNN's own engines take a workspace for some
 * backward passes; how large isn't known here. */
enum { CUDNN_BOOLEAN = 2, CUDNN_INT64 = 3, CUDNN_DESCRIPTOR = 15, CUDNN_INT32 = 23 };

int cudnnBackendCreateDescriptor(int type, void **made) { (void)type; *made = new_handle(); return SUCCESS; }
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t asked, int64_t *count, void *values)
{
    (void)descriptor, (void)name;
    size_t bytes = type == CUDNN_INT64 ? 8 : type == CUDNN_INT32 || type == CUDNN_BOOLEAN ? 4 : 0;
    if (values && asked > 0)
        memset(values, 0, bytes);
    /* Descriptors are the caller's, who made them to have them filled. */
    if (count)
        *count = bytes || type == CUDNN_DESCRIPTOR;
    return SUCCESS;
}

/* ---- NCCL: ranks that think that they have talked ---- */

typedef struct { char bytes[128]; } unique_id;
struct communicator { int ranks, rank, device; };

static int join(struct communicator **made, int ranks, int rank)
{
    *made = malloc(sizeof **made);
    **made = (struct communicator){ranks, rank, current_gpu};
    return SUCCESS;
}

int ncclGetVersion(int *version) { *version = NCCL_VERSION; return SUCCESS; }
int ncclGetUniqueId(unique_id *id) { memset(id, 1, sizeof *id); return SUCCESS; }
int ncclCommInitRank(struct communicator **made, int ranks, unique_id id, int rank)
{
    (void)id;
    return join(made, ranks, rank);
}
int ncclCommInitRankConfig(struct communicator **made, int ranks, unique_id id, int rank, void *config)
{
    (void)id, (void)config;
    return join(made, ranks, rank);
}
int ncclCommInitRankScalable(struct communicator **made, int ranks, int rank, int roots, unique_id *ids, void *config)
{
    (void)roots, (void)ids, (void)config;
    return join(made, ranks, rank);
}
int ncclCommSplit(struct communicator *whole, int color, int key, struct communicator **made, void *config)
{
    (void)color, (void)config;
    return join(made, whole->ranks, key);
}
int ncclCommShrink(struct communicator *whole, int *left_out, int count, struct communicator **made, void *config,
                   int flags)
{
    (void)left_out, (void)config, (void)flags;
    return join(made, whole->ranks - count, whole->rank);
}
int ncclCommCount(struct communicator *of, int *ranks) { *ranks = of->ranks; return SUCCESS; }
int ncclCommUserRank(struct communicator *of, int *rank) { *rank = of->rank; return SUCCESS; }
int ncclCommCuDevice(struct communicator *of, int *device) { *device = of->device; return SUCCESS; }
int ncclCommGetAsyncError(struct communicator *of, int *error) { (void)of; *error = SUCCESS; return SUCCESS; }
int ncclCommDestroy(struct communicator *of) { free(of); return SUCCESS; }
int ncclCommAbort(struct communicator *of) { free(of); return SUCCESS; }
int ncclCommRegister(void *of, void *buffer, size_t bytes, void **handle)
{
    (void)of, (void)buffer, (void)bytes;
    *handle = new_handle();
    return SUCCESS;
}
int ncclCommWindowRegister(void *of, void *buffer, size_t bytes, void **window, int flags)
{
    (void)of, (void)buffer, (void)bytes, (void)flags;
    *window = new_handle();
    return SUCCESS;
}
int ncclRedOpCreatePreMulSum(int *made, void *scalar, int type, int residence, void *of)
{
    (void)scalar, (void)type, (void)residence, (void)of;
    *made = 5;
    return SUCCESS;
}
int ncclMemAlloc(void **address, size_t bytes)
{
    *address = allocate(DEVICE, physical_gpu(current_gpu), bytes);
    return *address ? SUCCESS : 1;
}
int ncclMemFree(void *address) { return release(address); }

/* ---- the compiler, the profiler ---- */

int nvrtcVersion(int *major, int *minor)
{
    *major = CUDA_VERSION / 1000;
    *minor = CUDA_VERSION % 1000 / 10;
    return SUCCESS;
}
int nvrtcCreateProgram(void **made) { *made = new_handle(); return SUCCESS; }
static int one_byte(size_t *bytes) { *bytes = 1; return SUCCESS; }
int nvrtcGetPTXSize(void *program, size_t *bytes) { (void)program; return one_byte(bytes); }
int nvrtcGetCUBINSize(void *program, size_t *bytes) { (void)program; return one_byte(bytes); }
int nvrtcGetProgramLogSize(void *program, size_t *bytes) { (void)program; return one_byte(bytes); }
int nvrtcGetPTX(void *program, char *image) { (void)program; *image = 0; return SUCCESS; }
int nvrtcGetCUBIN(void *program, char *image) { (void)program; *image = 0; return SUCCESS; }
int nvrtcGetProgramLog(void *program, char *said) { (void)program; *said = 0; return SUCCESS; }
int nvrtcGetLoweredName(void *program, const char *name, const char **lowered)
{
    (void)program;
    *lowered = name;
    return SUCCESS;
}

int cuptiGetVersion(uint32_t *version) { *version = CUDA_VERSION / 1000; return SUCCESS; }
/* CUPTI_ERROR_MAX_LIMIT_REACHED: no record is left. */
int cuptiActivityGetNextRecord(void *buffer, size_t bytes, void **record)
{
    (void)buffer, (void)bytes, (void)record;
    return 12;
}
