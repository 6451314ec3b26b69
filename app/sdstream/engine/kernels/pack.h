// Packing of rows of weights and activations of any type into the units of the micro kernel.
#pragma once
#include "micro.h"

namespace sdk {

struct Rows {              // a matrix whose rows are contiguous in k
    const char * data;
    int64_t stride;        // bytes from row to row
    ggml_type type;
};

// --- types --------------------------------------------------------------------------------------

// Returns LANES values of a q8_0 block, from LANES*part on. The block is an f16 scale and 32 int8.
inline vf q8_0_part(const char * block, int part) {
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    __m128i q;
    if (LANES == 16) q = _mm_loadu_si128((const __m128i *) (block + 2 + 16*part));
    else             q = _mm_loadl_epi64((const __m128i *) (block + 2 + 8*part));
    return mul(set(_cvtsh_ss(scale)), widen_int8(q));
}

// The same for a q4_0 block, which is an f16 scale and 16 bytes. The low nibbles of all bytes are
// values 0 to 15, and the high nibbles are values 16 to 31.
inline vf q4_0_part(const char * block, int part) {
    uint16_t scale;
    memcpy(&scale, block, sizeof scale);
    __m128i q = _mm_loadu_si128((const __m128i *) (block + 2));
    if (part*LANES >= 16) q = _mm_srli_epi16(q, 4);
    if (LANES == 8 && part % 2) q = _mm_srli_si128(q, 8);
    q = _mm_sub_epi8(_mm_and_si128(q, _mm_set1_epi8(15)), _mm_set1_epi8(8));
    return mul(set(_cvtsh_ss(scale)), widen_int8(q));
}

// Returns whether `row_load` can read the type; ggml's functions convert all other types.
inline bool loads_directly(ggml_type t) {
    return t == GGML_TYPE_F32 || t == GGML_TYPE_F16 || t == GGML_TYPE_BF16 || t == GGML_TYPE_Q8_0 || t == GGML_TYPE_Q4_0;
}

// Returns LANES values from k on, which is a multiple of LANES. Only the first `left` values exist.
inline vf row_load(ggml_type type, const char * row, int64_t k, int64_t left) {
    switch (type) {
        case GGML_TYPE_F32:  return load((const float *) row + k, left);
        case GGML_TYPE_F16:  return left >= LANES ? widen_f16((const uint16_t *) row + k) : widen_f16((const uint16_t *) row + k, left);
        case GGML_TYPE_BF16: return widen_bf16((const uint16_t *) row + k, left);
        case GGML_TYPE_Q8_0: return left <= 0 ? zero() : q8_0_part(row + k/32*34, (int) (k % 32/LANES));
        case GGML_TYPE_Q4_0: return left <= 0 ? zero() : q4_0_part(row + k/32*18, (int) (k % 32/LANES));
        default:             return zero();
    }
}

inline void row_floats(const Rows & of, int64_t row, int64_t k, int64_t count, float * to) {
    const ggml_type_traits * t = ggml_get_type_traits(of.type);
    t->to_float(of.data + row*of.stride + k/t->blck_size*t->type_size, to, count);
}

// --- packing ------------------------------------------------------------------------------------

// Packs `n` rows of `count` values from k on into units in row order; the distance of rows in `to`
// is `ldb` units.
template <class E>
void pack_rows(const Rows & of, int64_t row, int n, int64_t k, int64_t count, uint32_t * to, int64_t ldb) {
    for (int j = 0; j < n; j++) {
        const char * p = of.data + (row + j)*of.stride;
        int64_t i = 0;
        if (of.type == GGML_TYPE_F16)        // weights of convolutions are read only once, from memory
            for (const uint16_t * h = (const uint16_t *) p + k; i + LANES*E::PER <= count; i += LANES*E::PER) {
                _mm_prefetch((const char *) (h + i) + E::ROWS*of.stride, _MM_HINT_T1);
                istore(to + j*ldb + i/E::PER, E::row([&](int at) { return widen_f16(h + i + at); }));
            }
        for (; i < count; i += LANES*E::PER)
            istore(to + j*ldb + i/E::PER, E::row([&](int at) { return row_load(of.type, p, k + i + at, count - i - at); }));
    }
}

// Packs LANES rows of type T into one vector of a panel. Only the first `rows` rows exist.
template <class E, ggml_type T>
void pack_lanes(const Rows & of, int64_t row, int64_t rows, int64_t k, int64_t count, int V, uint32_t * to) {
    const int64_t block = ggml_blck_size(T), bytes = ggml_type_size(T), next = V*LANES*of.stride;
    for (int64_t i = 0; i < count; i += LANES*E::PER) {
        vi r[LANES];
        for (int j = 0; j < LANES; j++) {
            if (j >= rows) { r[j] = izero(); continue; }
            const char * p = of.data + (row + j)*of.stride;
            _mm_prefetch(p + next + (k + i)/block*bytes, _MM_HINT_T1);    // for the next panel
            r[j] = E::row([&](int at) { return row_load(T, p, k + i + at, count - i - at); });
        }
        transpose(r);
        for (int64_t u = 0; u < LANES; u++) istore(to + (i/E::PER + u)*V*LANES, r[u]);
    }
}

// Packs `m` rows into a panel [unit][V][lane]. Lanes from `m` on are zero, and so are the values
// from `count` on, up to a multiple of LANES units.
template <class E>
void pack_panel(const Rows & of, int64_t row, int64_t m, int V, int64_t k, int64_t count, uint32_t * to) {
    for (int v = 0; v < V; v++) {
        const int64_t rows = std::min<int64_t>(LANES, m - v*LANES);
        Rows from = of;
        int64_t first = row + v*LANES, start = k;
        if (!loads_directly(of.type)) {
            const int64_t stride = count + 2*LANES;
            float * f = buffers().floats.get<float>(LANES*stride);
            for (int64_t i = 0; i < rows; i++) row_floats(of, first + i, k, count, f + i*stride);
            from = { (const char *) f, stride*(int64_t) sizeof(float), GGML_TYPE_F32 };
            first = start = 0;
        }
        switch (from.type) {       // once for all rows
#define CASE(T) case T: pack_lanes<E, T>(from, first, rows, start, count, V, to + v*LANES); break;
            CASE(GGML_TYPE_F32) CASE(GGML_TYPE_F16) CASE(GGML_TYPE_BF16) CASE(GGML_TYPE_Q8_0) CASE(GGML_TYPE_Q4_0)
#undef CASE
            default: break;
        }
    }
}

}  // namespace sdk
