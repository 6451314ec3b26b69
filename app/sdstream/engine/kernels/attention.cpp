// FLASH_ATTN_EXT: scores, softmax and the weighted sum of values for ROWS queries at a time.
//
// All scores of these queries fit in the cache, so a plain softmax is sufficient.
#include "pack.h"

namespace sdk {

// Exponents below this would give denormal numbers, so their results are set to zero.
static const float SMALLEST = -87.f;

// Scales and masks the scores of a row and writes their exponentials as units. Returns the inverse
// of the exponentials' sum.
template <class E>
static float normalise(float * row, int64_t keys, int64_t padded, float scale, const uint16_t * mask, uint32_t * to) {
    vf top = set(-INFINITY);
    for (int64_t j = 0; j < keys; j += LANES) {
        vf x = mul(load(row + j), set(scale));
        if (mask) x = add(x, widen_f16(mask + j, keys - j));
        x = keep(keys - j, x, set(-INFINITY));
        store(row + j, x);
        top = most(top, x);
    }
    const vf peak = set(std::max(largest(top), -1e30f));
    vf total = zero();
    for (int64_t j = 0; j < padded; j += LANES*E::PER)
        istore(to + j/E::PER, E::row([&](int at) {
            const vf x = sub(load(row + j + at), peak);
            const vf e = keep(keys - j - at, blend(above(x, set(SMALLEST)), zero(), exponential(x)), zero());
            total = add(total, e);
            return e;
        }));
    return 1.f/sum(total);
}

// Packs values [key][column] into panels whose lanes are the columns.
template <class E>
static void pack_values(const ggml_tensor * v, const char * data, int64_t keys, int64_t units, uint32_t * to) {
    const int64_t columns = v->ne[0];
    for (int64_t at = 0; at < columns; at += PANEL)
        for (int64_t u = 0; u < units; u++)
            for (int l = 0; l < VECTORS; l++) {
                const int64_t from = at + l*LANES;
                const auto of = [&](int64_t key) {
                    return key < keys && from < columns ? row_load(v->type, data + key*v->nb[1], from, columns - from) : zero();
                };
                istore(to + at*units + (u*VECTORS + l)*LANES, E::zip(of(E::PER*u), of(E::PER*u + E::PER - 1)));
            }
}

// Returns the number of keys up to the last one that the mask shows to any query. The runtime pads
// keys to multiples of 256 and masks the padding.
static int64_t visible_keys(const ggml_tensor * mask, int64_t keys, int64_t queries) {
    const uint16_t hidden = 0xFC00;  // -infinity
    int64_t seen = 0;
    for (int64_t i = 0; i < mask->ne[2]*mask->ne[3]; i++)
        for (int64_t row = 0; row < queries; row++) {
            const char * at = (const char *) mask->data + row*mask->nb[1] + i % mask->ne[2]*mask->nb[2] + i/mask->ne[2]*mask->nb[3];
            for (int64_t key = keys; key > seen; key--)
                if (((const uint16_t *) at)[key - 1] != hidden) seen = key;
        }
    return seen;
}

template <class E>
static void attention(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * q = op->src[0], * k = op->src[1], * v = op->src[2], * mask = op->src[3];
    const float scale = float_param(op, 0);
    const int64_t width = q->ne[0], columns = v->ne[0], queries = q->ne[1], keys = mask ? visible_keys(mask, k->ne[1], q->ne[1]) : k->ne[1], heads = q->ne[2]*q->ne[3];
    enum : int { ROWS = E::ROWS };
    const int64_t units = units_of<E>(width), key_units = units_of<E>(keys), panel = PANEL*((units + LANES - 1)/LANES*LANES);
    const int64_t panels = (keys + PANEL - 1)/PANEL, padded = panels*PANEL, ldp = padded/E::PER + 16, ldq = (width + PANEL - 1)/PANEL*PANEL/E::PER + 16;
    const bool by_head = heads >= 2*params->nth || heads % params->nth == 0;
    const Range mine = by_head ? Range{ 0, queries } : share(params, queries, ROWS);
    if (mine.first >= mine.last) return;
    uint32_t * pk = buffers().panels.get<uint32_t>(panels*panel);
    uint32_t * pv = buffers().values.get<uint32_t>((columns + PANEL - 1)/PANEL*PANEL*key_units);
    uint32_t * pq = buffers().rows.get<uint32_t>(ROWS*ldq);
    float    * s  = buffers().sums.get<float>(ROWS*padded);
    uint32_t * pp = buffers().weights.get<uint32_t>(ROWS*ldp);
    for (int64_t h = by_head ? params->ith : 0; h < heads; h += by_head ? params->nth : 1) {
        const int64_t i3 = h/q->ne[2], i2 = h % q->ne[2], k2 = i2/(q->ne[2]/k->ne[2]), k3 = i3/(q->ne[3]/k->ne[3]);
        const Rows rq = { (const char *) q->data + i3*q->nb[3] + i2*q->nb[2], (int64_t) q->nb[1], q->type };
        const Rows rk = { (const char *) k->data + k3*k->nb[3] + k2*k->nb[2], (int64_t) k->nb[1], k->type };
        for (int64_t j = 0; j < panels; j++) pack_panel<E>(rk, j*PANEL, std::min<int64_t>(PANEL, keys - j*PANEL), VECTORS, 0, width, pk + j*panel);
        pack_values<E>(v, (const char *) v->data + k3*v->nb[3] + k2*v->nb[2], keys, key_units, pv);
        for (int64_t q0 = mine.first; q0 < mine.last; q0 += ROWS) {
            if (aborted()) return;
            const int n = (int) std::min<int64_t>(ROWS, mine.last - q0);
            pack_rows<E>(rq, q0, n, 0, width, pq, ldq);
            for (int64_t j = 0; j < panels; j++)
                micro_rows<E, VECTORS>(n, pk + j*panel, pq, ldq, units, s + j*PANEL, padded, PANEL, false);
            float inverse[ROWS];
            for (int r = 0; r < n; r++) {
                const char * m = mask ? (const char *) mask->data + (q0 + r)*mask->nb[1] + i2 % mask->ne[2]*mask->nb[2] + i3 % mask->ne[3]*mask->nb[3] : nullptr;
                inverse[r] = normalise<E>(s + r*padded, keys, padded, scale, (const uint16_t *) m, pp + r*ldp);
            }
            // op is [column, head, query]
            float * out = (float *) ((char *) op->data + i3*op->nb[3] + q0*op->nb[2] + i2*op->nb[1]);
            const int64_t ldo = op->nb[2]/sizeof(float);
            for (int64_t j = 0; j < columns; j += PANEL)
                micro_rows<E, VECTORS>(n, pv + j*key_units, pp, ldp, key_units, out + j, ldo, columns - j, false);
            for (int r = 0; r < n; r++)
                for (int64_t j = 0; j < columns; j += LANES)
                    store(out + r*ldo + j, mul(load(out + r*ldo + j, columns - j), set(inverse[r])), columns - j);
        }
    }
}

void run_attention(const ggml_compute_params * params, ggml_tensor * op) { SDK_CALL(attention, params, op); }

bool takes_attention(const ggml_tensor * op) {
    const ggml_tensor * q = op->src[0], * k = op->src[1], * v = op->src[2], * mask = op->src[3];
    const auto fits = [](const ggml_tensor * t) { return (t->type == GGML_TYPE_F16 || t->type == GGML_TYPE_F32) && dense(t); };
    // ALiBi, soft caps and sinks are not supported.
    return float_param(op, 1) == 0 && float_param(op, 2) == 0 && !op->src[4]
        && v->ne[2] == k->ne[2] && v->ne[3] == k->ne[3]
        && q->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 && dense(q) && fits(k) && fits(v) && (!mask || mask->type == GGML_TYPE_F16);
}

}  // namespace sdk
