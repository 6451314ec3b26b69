// The table of operations that the kernels compute, and its registration with ggml.
//
// For each operation, ggml's CPU backend asks every "extra buffer type" whether it computes the
// operation (ggml_cpu_extra_compute_forward). An exported function returns the list of these types,
// a std::vector. This library is loaded after the runtime and appends an entry to the list, so the
// runtime itself is not changed.
#include <atomic>
#include "dispatch.h"
#include "amx.h"

namespace sdk {

Config config;
const volatile char * abort_flag;

namespace {

bool enabled;
std::atomic<int64_t> calls, products;

enum : int { OBJECT_BYTES = 32 };     // size of ggml_object in ggml.c

struct Operation {
    ggml_op op;
    bool (*takes)(const ggml_tensor *);
    void (*run)(const ggml_compute_params *, ggml_tensor *);
    size_t (*work_bytes)(const ggml_tensor *);
};

// The first row whose `takes` accepts an operation computes it.
const Operation operations[] = {
    { GGML_OP_MUL_MAT,        takes_product_int8, run_product_int8, product_int8_bytes },
    { GGML_OP_MUL_MAT,        takes_product,      run_product,      nullptr },
    { GGML_OP_CONV_2D,        takes_winograd,     run_winograd,     winograd_bytes },
    { GGML_OP_CONV_2D,        takes_convolution,  run_convolution,  nullptr },
    { GGML_OP_FLASH_ATTN_EXT, takes_attention,    run_attention,    nullptr },
    { GGML_OP_ADD,            takes_binary,       run_add,          nullptr },
    { GGML_OP_MUL,            takes_binary,       run_multiply,     nullptr },
    { GGML_OP_REPEAT,         takes_repeat,       run_repeat,       nullptr },
    { GGML_OP_CONT,           takes_copy,         run_copy,         nullptr },
    { GGML_OP_CPY,            takes_cast,         run_cast,         nullptr },
    { GGML_OP_PAD,            takes_pad,          run_pad,          nullptr },
    { GGML_OP_CONCAT,         takes_concat,       run_concat,       nullptr },
    { GGML_OP_UNARY,          takes_activation,   run_activation,   nullptr },
    { GGML_OP_SOFT_MAX,       takes_soft_max,     run_soft_max,     nullptr },
    { GGML_OP_GROUP_NORM,     takes_group_norm,   run_group_norm,   nullptr },
};

const Operation * operation_of(const ggml_tensor * op) {
    if (!enabled) return nullptr;
    for (const Operation & one : operations)
        if (one.op == op->op && one.takes(op)) return &one;
    return nullptr;
}

// The following two classes have the virtual functions of ggml/src/ggml-cpu/traits.h in the same
// order.
struct Traits {
    virtual ~Traits() = default;
    virtual bool work_size(int, const ggml_tensor * op, size_t & size) {
        const Operation * found = operation_of(op);
        size = found && found->work_bytes ? found->work_bytes(op) : 0;
        return found != nullptr;
    }
    virtual bool compute_forward(ggml_compute_params * params, ggml_tensor * op) {
        const Operation * found = operation_of(op);
        if (!found) return false;
        const AmxState state;
        found->run(params, op);
        if (params->ith == 0) {
            calls++;
            products += multiply_adds(op);
        }
        return true;
    }
};

struct Extra {
    Traits traits;
    virtual ~Extra() = default;
    virtual bool supports_op(ggml_backend_dev_t, const ggml_tensor *) { return false; }
    virtual Traits * get_tensor_traits(const ggml_tensor * op) { return operation_of(op) ? &traits : nullptr; }
};

}  // namespace

void enable(bool wanted) { enabled = wanted; }
int64_t taken() { return calls; }
int64_t computed() { return products; }

}  // namespace sdk

extern "C" {

// Returns the release of the runtime whose headers were used, and a hash of these sources.
SDK_EXPORT const char * sdk_identity(void) { return SDK_IDENTITY; }

// Replaces the runtime's operations. `abort_flag` is null or points to a byte that outlives the
// library. Returns 0 on success, 1 if the runtime's tensors have another size (because of another
// release or other compiler flags), or 2 if the operating system denies AMX tiles.
SDK_EXPORT int sdk_install(int products, int int8, const char * abort_flag) {
    static sdk::Extra extra;
    static ggml_backend_buffer_type type = {};
    if (ggml_tensor_overhead() != sdk::OBJECT_BYTES + sizeof(ggml_tensor)) return 1;
    if ((sdk::Products) products == sdk::Products::AMX && !sdk::request_amx()) return 2;
    sdk::config.products = (sdk::Products) products;
    sdk::config.int8 = (sdk::Int8) int8;
    sdk::abort_flag = abort_flag;
    if (!type.context) {
        type.context = &extra;
        ggml_backend_cpu_get_extra_buffer_types().push_back(&type);
    }
    sdk::enable(true);
    return 0;
}

// Leaves all operations to ggml again.
SDK_EXPORT void sdk_disable(void) { sdk::enable(false); }

}
