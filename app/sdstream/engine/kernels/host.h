// Declarations of ggml's private structs, and helpers that all operations use.
//
// The structs and functions below are private to ggml (src/ggml-cpu/ggml-cpu-impl.h,
// src/ggml-cpu/traits.h, src/ggml-backend-impl.h). They are declared again here because a wheel of
// the runtime contains only the public headers. Their layout may change with each release:
// dispatch.cpp compares the size of a tensor before it registers anything, native/kernels.py
// compares the release and the sources, and check.cpp compares the results. The library is linked
// to the runtime's library and calls ggml's functions.
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <vector>
#include "ggml.h"
#include "ggml-backend.h"

// Parameters of one thread of a graph, which is thread `ith` of `nth`.
struct ggml_compute_params {
    int ith, nth;
    size_t wsize;
    void * wdata;
    struct ggml_threadpool * threadpool;
    bool use_ref;
};

struct ggml_backend_buffer_type {
    void * interface[6];
    ggml_backend_dev_t device;
    void * context;
};

// Functions of the runtime's library. ggml_barrier waits for all threads of the operation.
extern "C" void ggml_barrier(struct ggml_threadpool * threadpool);
std::vector<ggml_backend_buffer_type_t> & ggml_backend_cpu_get_extra_buffer_types();

namespace sdk {

// Integer products: none; q4_0 and q8_0, with an instruction that adds four products; or only q4_0,
// with an instruction that adds two.
enum class Int8 { NONE = 0, DOT = 1, PAIRS = 2 };

// Products of f32, products of bf16 pairs with f32 sums, or such products in AMX tiles.
enum class Products { F32 = 0, BF16 = 1, AMX = 2 };

// The kinds of products that the CPU supports and the operator allows.
struct Config {
    Products products = Products::F32;
    Int8 int8 = Int8::NONE;
};
extern Config config;

// Points to a byte that is not zero if the image was cancelled. Operations then return early, and
// their results are undefined.
extern const volatile char * abort_flag;
inline bool aborted() { return abort_flag && *abort_flag; }

// Memory of one thread, which is reused by later operations.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch &) = delete;
    Scratch & operator=(const Scratch &) = delete;
    ~Scratch() { free(data_); }
    template <class T> T * get(size_t count) {
        const size_t bytes = (count*sizeof(T) + 4095)/4096*4096;
        if (bytes > size_) {
            free(data_);
            data_ = aligned_alloc(4096, bytes);
            size_ = data_ ? bytes : 0;
            if (!data_) abort();    // as ggml does
        }
        return (T *) data_;
    }
  private:
    void * data_ = nullptr;
    size_t size_ = 0;
};

struct Buffers { Scratch panels, rows, floats, sums, values, weights; };
inline Buffers & buffers() { static thread_local Buffers own; return own; }

// --- tensors ------------------------------------------------------------------------------------

inline int64_t elements(const ggml_tensor * t) { return t->ne[0]*t->ne[1]*t->ne[2]*t->ne[3]; }

// True if the elements of a row are contiguous.
inline bool dense(const ggml_tensor * t) { return t->nb[0] == ggml_type_size(t->type); }

// True if the tensor has the given type and all of its elements are contiguous.
inline bool packed(const ggml_tensor * t, ggml_type type = GGML_TYPE_F32) {
    if (t->type != type) return false;
    size_t bytes = ggml_type_size(type);
    for (int i = 0; i < 4; i++) {
        if (t->nb[i] != bytes && t->ne[i] != 1) return false;
        bytes *= t->ne[i];
    }
    return true;
}

inline float float_param(const ggml_tensor * t, int index) {
    float value;
    memcpy(&value, t->op_params + index, sizeof value);
    return value;
}

struct Range { int64_t first, last; };

// Returns a thread's share of `count` items, in whole multiples of `grain`.
inline Range share(const ggml_compute_params * params, int64_t count, int64_t grain = 1) {
    const int64_t grains = (count + grain - 1)/grain, each = (grains + params->nth - 1)/params->nth*grain;
    return { std::min(count, params->ith*each), std::min(count, (params->ith + 1)*each) };
}

// --- operations: `takes` accepts or rejects the shapes, `run` computes one thread's part ---------

bool takes_product(const ggml_tensor * op);
void run_product(const ggml_compute_params * params, ggml_tensor * op);
bool takes_product_int8(const ggml_tensor * op);
size_t product_int8_bytes(const ggml_tensor * op);
void run_product_int8(const ggml_compute_params * params, ggml_tensor * op);
bool takes_convolution(const ggml_tensor * op);
void run_convolution(const ggml_compute_params * params, ggml_tensor * op);
bool takes_winograd(const ggml_tensor * op);
size_t winograd_bytes(const ggml_tensor * op);
void run_winograd(const ggml_compute_params * params, ggml_tensor * op);
bool takes_attention(const ggml_tensor * op);
void run_attention(const ggml_compute_params * params, ggml_tensor * op);
bool takes_binary(const ggml_tensor * op);
void run_add(const ggml_compute_params * params, ggml_tensor * op);
void run_multiply(const ggml_compute_params * params, ggml_tensor * op);
bool takes_repeat(const ggml_tensor * op);
void run_repeat(const ggml_compute_params * params, ggml_tensor * op);
bool takes_copy(const ggml_tensor * op);
void run_copy(const ggml_compute_params * params, ggml_tensor * op);
bool takes_cast(const ggml_tensor * op);
void run_cast(const ggml_compute_params * params, ggml_tensor * op);
bool takes_pad(const ggml_tensor * op);
void run_pad(const ggml_compute_params * params, ggml_tensor * op);
bool takes_concat(const ggml_tensor * op);
void run_concat(const ggml_compute_params * params, ggml_tensor * op);
bool takes_activation(const ggml_tensor * op);
void run_activation(const ggml_compute_params * params, ggml_tensor * op);
bool takes_soft_max(const ggml_tensor * op);
void run_soft_max(const ggml_compute_params * params, ggml_tensor * op);
bool takes_group_norm(const ggml_tensor * op);
void run_group_norm(const ggml_compute_params * params, ggml_tensor * op);

}  // namespace sdk
