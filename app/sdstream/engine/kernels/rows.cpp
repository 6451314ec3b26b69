// Operations on whole rows or groups: SOFT_MAX and GROUP_NORM.
#include "simd.h"

namespace sdk {

// --- SOFT_MAX, without a mask, ALiBi or sinks ---------------------------------------------------

void run_soft_max(const ggml_compute_params * params, ggml_tensor * op) {
    const float scale = float_param(op, 0);
    const int64_t n = op->ne[0];
    const Range mine = share(params, elements(op)/n);
    for (int64_t r = mine.first; r < mine.last; r++) {
        const float * x = (const float *) op->src[0]->data + r*n;
        float * y = (float *) op->data + r*n;
        vf top = set(-INFINITY);
        for (int64_t i = 0; i < n; i += LANES) top = most(top, keep(n - i, load(x + i, n - i), set(-INFINITY)));
        const vf s = set(scale), peak = set(std::max(largest(top)*scale, -1e30f));
        vf total = zero();
        for (int64_t i = 0; i < n; i += LANES) {
            const vf d = sub(mul(load(x + i, n - i), s), peak);
            // Exponents below -87 would give denormal numbers, so their results are set to zero.
            const vf e = keep(n - i, blend(above(d, set(-87.f)), zero(), exponential(d)), zero());
            total = add(total, e);
            store(y + i, e, n - i);
        }
        const vf inverse = set(1.f/sum(total));
        for (int64_t i = 0; i < n; i += LANES) store(y + i, mul(load(y + i, n - i), inverse), n - i);
    }
}

bool takes_soft_max(const ggml_tensor * op) {
    return !op->src[1] && !op->src[2] && float_param(op, 1) == 0 && float_param(op, 0) > 0 && packed(op) && packed(op->src[0]);
}

// --- GROUP_NORM ---------------------------------------------------------------------------------

enum : int { BLOCK = 4096 };       // a block is summed as floats, the blocks' sums as doubles

// Returns the sum of f(x) over n floats.
template <class F>
static double block_sum(const float * x, int64_t n, F f) {
    double total = 0;
    for (int64_t b = 0; b < n; b += BLOCK) {
        vf s0 = zero(), s1 = zero();
        for (int64_t i = b; i < std::min(n, b + BLOCK); i += 2*LANES) {
            s0 = add(s0, keep(n - i, f(load(x + i, n - i)), zero()));
            s1 = add(s1, keep(n - i - LANES, f(load(x + i + LANES, n - i - LANES)), zero()));
        }
        total += sum(add(s0, s1));
    }
    return total;
}

void run_group_norm(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * a = op->src[0];
    const float epsilon = float_param(op, 1);
    const int64_t groups = op->op_params[0], each = (a->ne[2] + groups - 1)/groups, plane = a->ne[0]*a->ne[1];
    for (int64_t g = params->ith; g < groups*a->ne[3]; g += params->nth) {
        const int64_t c0 = std::min(a->ne[2], g % groups*each), c1 = std::min(a->ne[2], c0 + each), n = (c1 - c0)*plane;
        if (n == 0) continue;
        const float * x = (const float *) a->data + (g/groups*a->ne[2] + c0)*plane;
        float * y = (float *) op->data + (g/groups*a->ne[2] + c0)*plane;
        const vf mean = set((float) (block_sum(x, n, [](vf v) { return v; })/(double) n));
        const double square = block_sum(x, n, [&](vf v) { const vf d = sub(v, mean); return mul(d, d); });
        const vf scale = set(1.f/sqrtf((float) (square/(double) n) + epsilon));
        for (int64_t i = 0; i < n; i += LANES) store(y + i, mul(sub(load(x + i, n - i), mean), scale), n - i);
    }
}

bool takes_group_norm(const ggml_tensor * op) { return packed(op) && packed(op->src[0]); }

}  // namespace sdk
