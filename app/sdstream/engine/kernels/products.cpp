// MUL_MAT with weights of any type, computed in f32, in pairs of bf16 or in AMX tiles of bf16.
#include "pack.h"

namespace sdk {

// ggml computes products with fewer rows of activations: packing does not pay if weights are reused
// so rarely.
enum : int { LEAST_ROWS = 4, LEAST_DEPTH = 16 };

template <class E>
static void product(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * w = op->src[0], * x = op->src[1];
    const int64_t r2 = x->ne[2]/w->ne[2], r3 = x->ne[3]/w->ne[3], planes = x->ne[2]*x->ne[3];
    const bool by_plane = planes >= 2*params->nth;     // for example the heads of an attention
    const Part part = by_plane ? Part{ 0, w->ne[1], 0, x->ne[1] } : part_of(w->ne[1], x->ne[1], E::ROWS, params->ith, params->nth);
    for (int64_t i = by_plane ? params->ith : 0; i < planes; i += by_plane ? params->nth : 1) {
        const int64_t i3 = i/x->ne[2], i2 = i % x->ne[2];
        const Rows a = { (const char *) w->data + i3/r3*w->nb[3] + i2/r2*w->nb[2], (int64_t) w->nb[1], w->type };
        const Rows b = { (const char *) x->data + i3*x->nb[3] + i2*x->nb[2], (int64_t) x->nb[1], x->type };
        float * c = (float *) ((char *) op->data + i3*op->nb[3] + i2*op->nb[2]);
        nest<E>(part, w->ne[0], depth_of<E>(w->ne[0], w->ne[1], 256), c, op->nb[1]/sizeof(float),
            [&](int64_t m, int64_t rows, int V, int64_t k, int64_t count, uint32_t * to) { pack_panel<E>(a, m, rows, V, k, count, to); },
            [&](int64_t n, int rows, int64_t k, int64_t count, uint32_t * to, int64_t ldb) { pack_rows<E>(b, n, rows, k, count, to, ldb); });
    }
}

void run_product(const ggml_compute_params * params, ggml_tensor * op) { SDK_CALL(product, params, op); }

bool takes_product(const ggml_tensor * op) {
    const ggml_tensor * w = op->src[0], * x = op->src[1];
    return (x->type == GGML_TYPE_F32 || x->type == GGML_TYPE_F16) && op->type == GGML_TYPE_F32
        && x->ne[1] >= LEAST_ROWS && w->ne[0] >= LEAST_DEPTH
        && (loads_directly(w->type) || ggml_get_type_traits(w->type)->to_float) && dense(w) && dense(x) && dense(op);
}

}  // namespace sdk
