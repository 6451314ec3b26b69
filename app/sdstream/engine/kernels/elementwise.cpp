// ADD and MUL with broadcasts, REPEAT, CONT, CPY, PAD, CONCAT, GELU and SiLU.
//
// ggml processes one row at a time, and a second operand with one element per row (such as a bias
// for pixels) one element at a time. These functions process longer runs of memory.
#include "simd.h"

namespace sdk {

// --- ADD and MUL --------------------------------------------------------------------------------

// The second operand as [repeats][length][times]: each of `length` elements is used `times` times
// in a row, and the whole sequence is repeated.
struct Pattern { int64_t times, length; };

static bool pattern_of(const ggml_tensor * op, const ggml_tensor * b, Pattern & p) {
    p = { 1, 1 };
    int i = 0;
    while (i < 4 && b->ne[i] == 1) p.times *= op->ne[i++];
    while (i < 4 && b->ne[i] == op->ne[i]) p.length *= op->ne[i++];
    while (i < 4) if (b->ne[i++] != 1) return false;
    return true;
}

template <class F>
static void binary(const ggml_compute_params * params, ggml_tensor * op, F f) {
    const float * a = (const float *) op->src[0]->data, * b = (const float *) op->src[1]->data;
    float * c = (float *) op->data;
    Pattern p;
    pattern_of(op, op->src[1], p);
    const Range mine = share(params, elements(op), 64);
    for (int64_t i = mine.first; i < mine.last;) {
        if (p.times > 1) {
            const int64_t unit = i/p.times, run = std::min(mine.last, (unit + 1)*p.times) - i;
            const vf one = set(b[unit % p.length]);
            for (int64_t j = 0; j < run; j += LANES) store(c + i + j, f(load(a + i + j, run - j), one), run - j);
            i += run;
        } else {
            const int64_t at = i % p.length, run = std::min(mine.last - i, p.length - at);
            for (int64_t j = 0; j < run; j += LANES)
                store(c + i + j, f(load(a + i + j, run - j), load(b + at + j, run - j)), run - j);
            i += run;
        }
    }
}

void run_add(const ggml_compute_params * params, ggml_tensor * op) { binary(params, op, add); }
void run_multiply(const ggml_compute_params * params, ggml_tensor * op) { binary(params, op, mul); }

bool takes_binary(const ggml_tensor * op) {
    const ggml_tensor * a = op->src[0], * b = op->src[1];
    Pattern p;
    // Runs shorter than 16 are not faster than in ggml.
    return packed(a) && packed(b) && packed(op) && elements(a) == elements(op) && pattern_of(op, b, p)
        && (p.times > 1 ? p.times >= 16 : p.length >= 16);
}

// --- REPEAT, CONT, CPY, PAD and CONCAT ----------------------------------------------------------

// Repeats each element `times` times in a row, as rotary embeddings need it.
void run_repeat(const ggml_compute_params * params, ggml_tensor * op) {
    const float * a = (const float *) op->src[0]->data;
    float * c = (float *) op->data;
    const int64_t times = op->ne[0];
    const Range mine = share(params, elements(op->src[0]));
    if (times == 2) {
        for (int64_t i = mine.first; i < mine.last; i += LANES) {
            const int64_t left = 2*(mine.last - i);
            vf first, second;
            interleave(load(a + i, mine.last - i), load(a + i, mine.last - i), first, second);
            store(c + 2*i, first, left);
            store(c + 2*i + LANES, second, left - LANES);
        }
        return;
    }
    for (int64_t i = mine.first; i < mine.last; i++)
        for (int64_t j = 0; j < times; j++) c[i*times + j] = a[i];
}

bool takes_repeat(const ggml_tensor * op) {
    const ggml_tensor * a = op->src[0];
    return packed(a) && packed(op) && a->ne[0] == 1 && a->ne[1] == op->ne[1] && a->ne[2] == op->ne[2] && a->ne[3] == op->ne[3];
}

// Copies a tensor and swaps its first two dimensions, in tiles of LANES by LANES.
static void transpose_copy(const ggml_compute_params * params, const ggml_tensor * a, float * to) {
    const int64_t n0 = a->ne[0], n1 = a->ne[1], n2 = a->ne[2], across = (n1 + LANES - 1)/LANES;
    const Range mine = share(params, across*n2*a->ne[3]);
    for (int64_t t = mine.first; t < mine.last; t++) {
        const int64_t i1 = t % across*LANES, i2 = t/across % n2, i3 = t/across/n2, width = std::min<int64_t>(LANES, n1 - i1);
        const char * p = (const char *) a->data + i1*sizeof(float) + i2*a->nb[2] + i3*a->nb[3];
        float * q = to + ((i3*n2 + i2)*n1 + i1)*n0;
        for (int64_t i = 0; i < n0; i += LANES) {
            const int64_t height = std::min<int64_t>(LANES, n0 - i);
            vi r[LANES];
            for (int64_t j = 0; j < LANES; j++) r[j] = j < height ? as_int(load((const float *) (p + (i + j)*a->nb[0]), width)) : izero();
            transpose(r);
            for (int64_t j = 0; j < width; j++) store(q + j*n0 + i, as_float(r[j]), height);
        }
    }
}

// Copies `rows` rows of `n` floats to contiguous memory. Rows are `stride` bytes apart, and the
// elements of a row are `step` bytes apart.
static void copy_rows(const char * p, size_t step, size_t stride, int64_t n, int64_t rows, float * q) {
    for (int64_t r = 0; r < rows; r++, p += stride, q += n) {
        if (step != sizeof(float)) for (int64_t i = 0; i < n; i++) memcpy(q + i, p + i*step, sizeof(float));
        else if (n == 2) memcpy(q, p, 2*sizeof(float));
        else for (int64_t i = 0; i < n; i += LANES) store(q + i, load((const float *) p + i, n - i), n - i);
    }
}

// Copies a tensor with any strides to contiguous memory.
void run_copy(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * a = op->src[0];
    float * to = (float *) op->data;
    if (a->nb[0] != sizeof(float) && a->nb[1] == sizeof(float)) return transpose_copy(params, a, to);
    const int64_t n0 = a->ne[0], n1 = a->ne[1], n2 = a->ne[2];
    const Range mine = share(params, n1*n2*a->ne[3]);
    for (int64_t r = mine.first; r < mine.last;) {
        const int64_t i1 = r % n1, run = std::min(n1 - i1, mine.last - r);     // rows of the same plane
        const char * p = (const char *) a->data + i1*a->nb[1] + r/n1 % n2*a->nb[2] + r/n1/n2*a->nb[3];
        copy_rows(p, a->nb[0], a->nb[1], n0, run, to + r*n0);
        r += run;
    }
}

// Converts rows with any strides between them to contiguous f16. Fused attention casts its keys and
// values in this way.
void run_cast(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * a = op->src[0];
    const int64_t n0 = a->ne[0], n1 = a->ne[1], n2 = a->ne[2];
    const Range mine = share(params, n1*n2*a->ne[3]);
    for (int64_t r = mine.first; r < mine.last; r++) {
        const float * p = (const float *) ((const char *) a->data + r % n1*a->nb[1] + r/n1 % n2*a->nb[2] + r/n1/n2*a->nb[3]);
        uint16_t * q = (uint16_t *) op->data + r*n0;
        for (int64_t i = 0; i < n0; i += LANES) narrow_f16(q + i, load(p + i, n0 - i), n0 - i);
    }
}

bool takes_cast(const ggml_tensor * op) {
    const ggml_tensor * a = op->src[0];
    return a->type == GGML_TYPE_F32 && dense(a) && packed(op, GGML_TYPE_F16) && ggml_are_same_shape(a, op);
}

// Adds zeros after each row, and rows of zeros after the last row of each dimension.
void run_pad(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * a = op->src[0];
    const int64_t n0 = op->ne[0], n1 = op->ne[1], n2 = op->ne[2];
    const Range mine = share(params, n1*n2*op->ne[3]);
    for (int64_t r = mine.first; r < mine.last; r++) {
        const int64_t i1 = r % n1, i2 = r/n1 % n2, i3 = r/n1/n2;
        const int64_t n = i1 < a->ne[1] && i2 < a->ne[2] && i3 < a->ne[3] ? a->ne[0] : 0;
        float * q = (float *) op->data + r*n0;
        if (n) copy_rows((const char *) a->data + i1*a->nb[1] + i2*a->nb[2] + i3*a->nb[3], a->nb[0], 0, n, 1, q);
        std::fill(q + n, q + n0, 0.f);
    }
}

bool takes_pad(const ggml_tensor * op) {
    // Padding before and after each dimension in turn, then a flag for circular padding.
    const int32_t * before = op->op_params;
    return op->src[0]->type == GGML_TYPE_F32 && packed(op) && !before[0] && !before[2] && !before[4] && !before[6] && !before[8];
}

// Copies the rows of both operands into the larger result.
void run_concat(const ggml_compute_params * params, ggml_tensor * op) {
    const int axis = op->op_params[0];
    int64_t before = 0;                 // index in op along the axis where the operand begins
    for (int s = 0; s < 2; s++) {
        const ggml_tensor * a = op->src[s];
        const Range mine = share(params, a->ne[1]*a->ne[2]*a->ne[3]);
        for (int64_t r = mine.first; r < mine.last; r++) {
            const int64_t i1 = r % a->ne[1], i2 = r/a->ne[1] % a->ne[2], i3 = r/a->ne[1]/a->ne[2];
            const char * p = (const char *) a->data + i1*a->nb[1] + i2*a->nb[2] + i3*a->nb[3];
            char * q = (char *) op->data + i1*op->nb[1] + i2*op->nb[2] + i3*op->nb[3] + before*op->nb[axis];
            copy_rows(p, a->nb[0], 0, a->ne[0], 1, (float *) q);
        }
        before += a->ne[axis];
    }
}

bool takes_concat(const ggml_tensor * op) {
    return packed(op) && op->src[0]->type == GGML_TYPE_F32 && op->src[1]->type == GGML_TYPE_F32;
}

bool takes_copy(const ggml_tensor * op) { return op->src[0]->type == GGML_TYPE_F32 && packed(op); }

// --- activations --------------------------------------------------------------------------------

static vf silu(vf x) { return div(x, add(set(1.f), exponential(sub(zero(), x)))); }

// GELU in its tanh form: x*sigmoid(2*sqrt(2/pi)*(x + 0.044715*x^3)).
static vf gelu(vf x) {
    const vf t = mul(mul(set(1.5957691216f), x), fma(mul(set(0.044715f), x), x, set(1.f)));
    return div(x, add(set(1.f), exponential(sub(zero(), t))));
}

template <class F>
static void activation(const ggml_compute_params * params, ggml_tensor * op, F f) {
    const float * a = (const float *) op->src[0]->data;
    float * c = (float *) op->data;
    const Range mine = share(params, elements(op), 64);
    for (int64_t i = mine.first; i < mine.last; i += LANES) {
        // Below -1e4 both functions are zero. The bound avoids NaN for minus infinity.
        const vf x = most(set(-1e4f), load(a + i, mine.last - i));
        store(c + i, f(x), mine.last - i);
    }
}

void run_activation(const ggml_compute_params * params, ggml_tensor * op) {
    if (ggml_unary_op(op->op_params[0]) == GGML_UNARY_OP_GELU) activation(params, op, gelu);
    else                                                       activation(params, op, silu);
}

bool takes_activation(const ggml_tensor * op) {
    return (op->op_params[0] == GGML_UNARY_OP_GELU || op->op_params[0] == GGML_UNARY_OP_SILU) && packed(op) && packed(op->src[0]);
}

}  // namespace sdk
