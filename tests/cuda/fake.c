/* A CUDA without a GPU: enough of its runtime for ONNX Runtime's CUDA provider to load a graph, place every node, and
 * go through the motions of a run. Device memory is the machine's, copies are copies, and kernels do nothing, so the
 * numbers that come out mean nothing. What is real is everything that ONNX Runtime decides: which device it takes,
 * which node has a kernel for which type, what is copied between devices, and the limit of its arena. A product that
 * would run in TensorFloat-32 fails.
 *
 * One source for five libraries: -DLIBRARY=1 to 5 picks libcudart, libcublas, libcublasLt, libcurand and libcuda.
 * FAKE_CUDA_DEVICES says how many devices there are: 1 by default, 0 for none.
 */

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101 };

/* Functions that have nothing to do but succeed. */
#define NOTHING(name) int name(void) { return OK; }

/* Functions that give back a handle by their first argument. */
#define HANDLE(name) int name(void **handle) { *handle = &handle_of_all; return OK; }

__attribute__((unused)) static int handle_of_all;

#if LIBRARY == 1

static const size_t MEMORY = 80ul << 30;

static __thread int present;

static int devices(void) {
  const char *text = getenv("FAKE_CUDA_DEVICES");
  return text ? atoi(text) : 1;
}

int cudaGetDeviceCount(int *count) {
  *count = devices();
  return *count ? OK : NO_DEVICE;
}

int cudaSetDevice(int device) {
  if (device < 0 || device >= devices()) return devices() ? INVALID_DEVICE : NO_DEVICE;
  present = device;
  return OK;
}

int cudaGetDevice(int *device) {
  *device = present;
  return OK;
}

/* Writes a field of cudaDeviceProp, whose layout is CUDA 13's. */
static void put(char *properties, size_t offset, long value, size_t bytes) {
  memcpy(properties + offset, &value, bytes);
}

int cudaGetDeviceProperties(char *properties, int device) {
  if (device < 0 || device >= devices()) return INVALID_DEVICE;
  memset(properties, 0, 1008);
  strcpy(properties, "no GPU");
  put(properties, 288, (long)MEMORY, 8);
  put(properties, 296, 49152, 8);  /* shared memory of a block */
  put(properties, 304, 65536, 4);  /* registers of a block */
  put(properties, 308, 32, 4);     /* a warp */
  put(properties, 320, 1024, 4);   /* threads of a block */
  put(properties, 324, 1024, 4);
  put(properties, 328, 1024, 4);
  put(properties, 332, 64, 4);
  put(properties, 336, 2147483647, 4); /* blocks of a grid */
  put(properties, 340, 65535, 4);
  put(properties, 344, 65535, 4);
  put(properties, 360, 9, 4); /* an H100's compute capability, 9.0 */
  put(properties, 384, 132, 4);    /* multiprocessors */
  put(properties, 604, 2048, 4);   /* threads of a multiprocessor */
  put(properties, 624, 233472, 8); /* shared memory of a multiprocessor */
  put(properties, 632, 65536, 4);  /* registers of a multiprocessor */
  put(properties, 672, 232448, 8); /* shared memory of a block that asks for more */
  return OK;
}

int cudaDeviceGetAttribute(int *value, int attribute, int device) {
  (void)device;
  switch (attribute) {
    case 1: *value = 1024; break;    /* threads of a block */
    case 8: *value = 49152; break;   /* shared memory of a block */
    case 10: *value = 32; break;     /* a warp */
    case 16: *value = 132; break;    /* multiprocessors */
    case 39: *value = 2048; break;   /* threads of a multiprocessor */
    case 75: *value = 9; break;      /* compute capability */
    case 81: *value = 233472; break; /* shared memory of a multiprocessor */
    case 97: *value = 232448; break; /* shared memory of a block that asks for more */
    default: *value = 0;
  }
  return OK;
}

int cudaRuntimeGetVersion(int *version) { *version = 13000; return OK; }
int cudaDriverGetVersion(int *version) { *version = 13000; return OK; }

const char *cudaGetErrorName(int error) { return error == NO_DEVICE ? "cudaErrorNoDevice" : "cudaError"; }

const char *cudaGetErrorString(int error) {
  switch (error) {
    case NO_DEVICE: return "no CUDA-capable device is detected";
    case INVALID_DEVICE: return "invalid device ordinal";
    case OUT_OF_MEMORY: return "out of memory";
    default: return "an error of the CUDA that does nothing";
  }
}

int cudaMalloc(void **memory, size_t bytes) {
  *memory = bytes > MEMORY ? NULL : aligned_alloc(256, (bytes + 255) & ~255ul);
  if (!*memory) return OUT_OF_MEMORY;
  // No kernel writes anything, and vectors must be numbers.
  memset(*memory, 0, bytes);
  return OK;
}

int cudaMallocHost(void **memory, size_t bytes) { return cudaMalloc(memory, bytes); }
int cudaHostAlloc(void **memory, size_t bytes, unsigned flags) { (void)flags; return cudaMalloc(memory, bytes); }

int cudaMallocFromPoolAsync(void **memory, size_t bytes, void *pool, void *stream) {
  (void)pool, (void)stream;
  return cudaMalloc(memory, bytes);
}

int cudaFree(void *memory) { free(memory); return OK; }
int cudaFreeHost(void *memory) { free(memory); return OK; }
int cudaFreeAsync(void *memory, void *stream) { (void)stream; free(memory); return OK; }

int cudaMemGetInfo(size_t *left, size_t *total) {
  *left = *total = MEMORY;
  return OK;
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) {
  (void)kind;
  memcpy(to, from, bytes);
  return OK;
}

int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
  (void)stream;
  return cudaMemcpy(to, from, bytes, kind);
}

int cudaMemcpy2DAsync(char *to, size_t to_pitch, const char *from, size_t from_pitch, size_t width, size_t height,
                      int kind, void *stream) {
  (void)kind, (void)stream;
  for (size_t row = 0; row < height; row++) memcpy(to + row * to_pitch, from + row * from_pitch, width);
  return OK;
}

int cudaMemcpyFromSymbol(void *to, const void *symbol, size_t bytes, size_t offset, int kind) {
  (void)symbol, (void)offset, (void)kind;
  memset(to, 0, bytes);
  return OK;
}

int cudaMemset(void *memory, int value, size_t bytes) { memset(memory, value, bytes); return OK; }

int cudaMemsetAsync(void *memory, int value, size_t bytes, void *stream) {
  (void)stream;
  return cudaMemset(memory, value, bytes);
}

int cudaEventElapsedTime(float *milliseconds, void *from, void *to) {
  (void)from, (void)to;
  *milliseconds = 0;
  return OK;
}

int cudaStreamIsCapturing(void *stream, int *status) {
  (void)stream;
  *status = 0;
  return OK;
}

int cudaFuncGetAttributes(void *attributes, const void *function) {
  (void)function;
  memset(attributes, 0, 64);
  return OK;
}

int cudaPointerGetAttributes(void *attributes, const void *pointer) {
  (void)pointer;
  memset(attributes, 0, 32);
  return OK;
}

int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 1; return OK; }

int __cudaPopCallConfiguration(void *grid, void *block, size_t *shared, void **stream) {
  memset(grid, 0, 12);
  memset(block, 0, 12);
  *shared = 0;
  *stream = NULL;
  return OK;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *registered;
  (void)binary;
  return &registered;
}

HANDLE(__cudaGetKernel)
HANDLE(cudaEventCreate)
HANDLE(cudaEventCreateWithFlags)
HANDLE(cudaGraphInstantiate)
HANDLE(cudaLibraryGetKernel)
HANDLE(cudaLibraryLoadData)
HANDLE(cudaMemPoolCreate)
HANDLE(cudaStreamCreate)
HANDLE(cudaStreamCreateWithFlags)
NOTHING(__cudaLaunchKernel)
NOTHING(__cudaPushCallConfiguration)
NOTHING(__cudaRegisterFatBinaryEnd)
NOTHING(__cudaRegisterFunction)
NOTHING(__cudaRegisterVar)
NOTHING(__cudaUnregisterFatBinary)
NOTHING(cudaDeviceSynchronize)
NOTHING(cudaEventDestroy)
NOTHING(cudaEventRecord)
NOTHING(cudaEventRecordWithFlags)
NOTHING(cudaEventSynchronize)
NOTHING(cudaFuncSetAttribute)
NOTHING(cudaGetDriverEntryPointByVersion)
NOTHING(cudaGetLastError)
NOTHING(cudaGraphDestroy)
NOTHING(cudaGraphExecDestroy)
NOTHING(cudaGraphLaunch)
NOTHING(cudaKernelSetAttributeForDevice)
NOTHING(cudaLaunchCooperativeKernel)
NOTHING(cudaLaunchHostFunc)
NOTHING(cudaLaunchKernel)
NOTHING(cudaLaunchKernelExC)
NOTHING(cudaLibraryUnload)
NOTHING(cudaMemPoolDestroy)
NOTHING(cudaMemPoolGetAttribute)
NOTHING(cudaMemPoolSetAttribute)
NOTHING(cudaMemPoolTrimTo)
NOTHING(cudaPeekAtLastError)
NOTHING(cudaStreamBeginCapture)
NOTHING(cudaStreamDestroy)
NOTHING(cudaStreamEndCapture)
NOTHING(cudaStreamSynchronize)
NOTHING(cudaStreamWaitEvent)

#elif LIBRARY == 2

/* The mode in which products of 32-bit floats keep 10 bits of each factor's fraction. */
enum { TENSOR_FLOAT_32 = 3, NOT_SUPPORTED = 15 };

static __thread int math_mode;

/* Products that fail in that mode: nobody asked for it. */
#define EXACT_PRODUCT(name) int name(void) { return (math_mode & 3) == TENSOR_FLOAT_32 ? NOT_SUPPORTED : OK; }

const char *cublasGetStatusName(int status) { (void)status; return "CUBLAS_STATUS"; }
const char *cublasGetStatusString(int status) { (void)status; return "a status of the cuBLAS that does nothing"; }

int cublasGetMathMode(void *handle, int *mode) {
  (void)handle;
  *mode = math_mode;
  return OK;
}

int cublasSetMathMode(void *handle, int mode) {
  (void)handle;
  math_mode = mode;
  return OK;
}

EXACT_PRODUCT(cublasGemmEx)
EXACT_PRODUCT(cublasGemmStridedBatchedEx)
EXACT_PRODUCT(cublasSgemmBatched)
EXACT_PRODUCT(cublasSgemmStridedBatched)
EXACT_PRODUCT(cublasSgemm_v2)
HANDLE(cublasCreate_v2)
NOTHING(cublasDestroy_v2)
NOTHING(cublasDgeam)
NOTHING(cublasDgemmBatched)
NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasDgemm_v2)
NOTHING(cublasDgetrfBatched)
NOTHING(cublasDgetriBatched)
NOTHING(cublasGemmBatchedEx)
NOTHING(cublasScopy_v2)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSgeam)
NOTHING(cublasSgetrfBatched)
NOTHING(cublasSgetriBatched)
NOTHING(cublasSscal_v2)

#elif LIBRARY == 3

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, void *results, int *found) {
  (void)handle, (void)product, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)wanted, (void)results;
  *found = 1;
  return OK;
}

HANDLE(cublasLtCreate)
HANDLE(cublasLtMatmulDescCreate)
HANDLE(cublasLtMatmulPreferenceCreate)
HANDLE(cublasLtMatrixLayoutCreate)
HANDLE(cublasLtMatrixTransformDescCreate)
NOTHING(cublasLtDestroy)
NOTHING(cublasLtMatmul)
NOTHING(cublasLtMatmulAlgoConfigSetAttribute)
NOTHING(cublasLtMatmulAlgoInit)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatrixTransform)
NOTHING(cublasLtMatrixTransformDescDestroy)

#elif LIBRARY == 4

/* The provider asks the loader for it and calls nothing of it. */
NOTHING(curandCreateGenerator)

#elif LIBRARY == 5

NOTHING(cuInit)
NOTHING(cuTensorMapEncodeTiled)

#endif
