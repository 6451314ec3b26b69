// Figures for scripts/bench: the multiply-adds of the operations, and the rate that the micro
// kernel reaches when all operands are in the level 1 cache.
#include <time.h>
#include "dispatch.h"
#include "micro.h"

namespace sdk {

// The number that the definition of the operation needs; Winograd computes fewer.
int64_t multiply_adds(const ggml_tensor * op) {
    const ggml_tensor * a = op->src[0], * b = op->src[1], * c = op->src[2];
    switch (op->op) {
        case GGML_OP_MUL_MAT:        return elements(op)*a->ne[0];
        case GGML_OP_CONV_2D:        return elements(op)*a->ne[0]*a->ne[1]*a->ne[2];
        case GGML_OP_FLASH_ATTN_EXT: return a->ne[1]*a->ne[2]*a->ne[3]*b->ne[1]*(b->ne[0] + c->ne[0]);
        default:                     return 0;
    }
}

namespace {

double cpu_seconds() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9*now.tv_nsec;
}

template <class E> double peak() {
    const int n = E::ROWS, units = 128, calls = 20000, rounds = 5;
    Scratch panel, rows, results;
    uint32_t * a = panel.get<uint32_t>(units*PANEL), * b = rows.get<uint32_t>(units*n);
    float * c = results.get<float>(n*PANEL);
    std::fill_n(a, units*PANEL, 0);    // zeros, since subnormal values would be slow
    std::fill_n(b, units*n, 0);
    double best = 0;
    for (int round = 0; round < rounds; round++) {    // other work on the machine slows a round down
        const double began = cpu_seconds();
        for (int call = 0; call < calls; call++)
            micro_panel<E>(n, a, b, units, units, c, PANEL, PANEL, false);
        best = std::max(best, (double) calls*units*E::PER*n*PANEL/(cpu_seconds() - began));
    }
    return best;
}

}  // namespace

}  // namespace sdk

extern "C" {

// Returns how many multiply-adds the kernels have computed. Those of operations that ggml computes
// are not counted.
SDK_EXPORT int64_t sdk_multiply_adds(void) { return sdk::computed(); }

// Returns multiply-adds per CPU second of one thread, for the kind of products in use.
SDK_EXPORT double sdk_peak(void) {
    const sdk::AmxState state;
    using namespace sdk;
    return SDK_CALL(peak);
}

}
