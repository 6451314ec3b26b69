// MUL_MAT with weights of q8_0 and q4_0, computed with integers.
//
// Weights are unsigned bytes (q + 128 for q8_0, the nibble for q4_0). Activations are int8 with one
// scale for each block of 32, as in ggml. The weights' offset is subtracted with the help of the
// sums of the activations. The loop nest is the same as in micro.h, but a "unit" is four bytes of
// adjacent k.
#include "pack.h"

namespace sdk {

#if defined(__AVX512F__)
enum : int { ROWS8 = 6 };      // registers: 12 sums of the block, 12 total sums, 2 of A and 1 of B
#else
enum : int { ROWS8 = 2 };      // registers: 4 sums of the block and 4 total sums; more would spill
#endif
enum : int { HEIGHT8 = 512 };  // rows of weights in a block: their panels fit in the L2 cache
enum : int { DEPTH8 = 36 };     // quantisation blocks of k to process at once
enum : int { UNITS = 8 };      // units in a block of 32 values
enum : int { AMX_ROWS = 128 }; // from this many rows of activations on, bf16 in tiles is faster

// The packed operands of up to DEPTH8 blocks of k.
struct Operands {
    const char * panel;          // [block][unit][V][lane] of 4 bytes
    const float * panel_scales;  // [block][V][lane]
    const uint32_t * rows;
    const float * row_scales;
    const int32_t * row_offsets;
    int64_t ldb, lds, blocks;
};

// Without DOT the sums of a block have 16 bits. The products of q4_0 fit (8 times 2*15*127), but
// those of q8_0 do not.
template <int N, int V, bool DOT>
static void micro8(const Operands & o, float * c, int64_t ldc, int64_t m, bool onto) {
    vf sums[N][V];
    for (int j = 0; j < N; j++) {
        __builtin_prefetch(c + j*ldc, 1);
        for (int v = 0; v < V; v++) sums[j][v] = zero();
    }
    for (int64_t p = 0; p < o.blocks; p++) {
        vi block[N][V];
        for (int j = 0; j < N; j++) for (int v = 0; v < V; v++) block[j][v] = DOT ? iset((uint32_t) o.row_offsets[j*o.lds + p]) : izero();
#pragma GCC unroll 8
        for (int g = 0; g < UNITS; g++) {
            vi va[V];
            for (int v = 0; v < V; v++) va[v] = iload(o.panel + ((p*UNITS + g)*V + v)*4*LANES);
#pragma GCC unroll 6
            for (int j = 0; j < N; j++) {
                const vi vb = iset(o.rows[j*o.ldb + p*UNITS + g]);
                for (int v = 0; v < V; v++) block[j][v] = DOT ? dot4(block[j][v], va[v], vb) : dot2(block[j][v], va[v], vb);
            }
        }
        if (!DOT)
            for (int j = 0; j < N; j++) for (int v = 0; v < V; v++) block[j][v] = add_pairs(iset((uint32_t) o.row_offsets[j*o.lds + p]), block[j][v]);
        for (int v = 0; v < V; v++) {
            const vf s = load(o.panel_scales + (p*V + v)*LANES);
            for (int j = 0; j < N; j++)
                sums[j][v] = fma(to_float(block[j][v]), mul(s, set(o.row_scales + j*o.lds + p)), sums[j][v]);
        }
    }
    for (int v = 0; v < V; v++)
        for (int j = 0; j < N; j++) {
            float * at = c + j*ldc + v*LANES;
            if (onto) sums[j][v] = add(sums[j][v], load(at, m - v*LANES));
            store(at, sums[j][v], m - v*LANES);
        }
}

template <bool DOT>
static void micro8_panel(int n, const Operands & o, float * c, int64_t ldc, int64_t m, bool onto) {
    switch (n) {
#define CASE(N) case N: return m > LANES ? micro8<N, 2, DOT>(o, c, ldc, m, onto) : micro8<N, 1, DOT>(o, c, ldc, m, onto);
        CASE(1) CASE(2)
#if defined(__AVX512F__)
        CASE(3) CASE(4) CASE(5) CASE(6)
#endif
#undef CASE
    }
}

static int64_t block_bytes(ggml_type type) { return type == GGML_TYPE_Q8_0 ? 34 : 18; }
static int offset_of(ggml_type type) { return type == GGML_TYPE_Q8_0 ? 128 : 8; }

// Returns the 32 weights of a block as unsigned bytes.
static __m256i unsigned_bytes(ggml_type type, const char * block) {
    if (type == GGML_TYPE_Q8_0)
        return _mm256_xor_si256(_mm256_loadu_si256((const __m256i *) (block + 2)), _mm256_set1_epi8((char) 0x80));
    const __m128i q = _mm_loadu_si128((const __m128i *) (block + 2));
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(q, 4), q), _mm256_set1_epi8(15));
}

// Packs one block of up to LANES rows into [unit][V][lane], and its scales.
static void pack_block8(const Rows & of, int64_t row, int64_t rows, int V, int64_t block, char * to, float * scales) {
    alignas(64) uint32_t bytes[LANES][UNITS] = {};
    alignas(64) uint16_t halves[LANES] = {};
    for (int64_t j = 0; j < rows; j++) {
        const char * b = of.data + (row + j)*of.stride + block*block_bytes(of.type);
        _mm_prefetch(b + V*LANES*of.stride, _MM_HINT_T1);
        _mm256_store_si256((__m256i *) bytes[j], unsigned_bytes(of.type, b));
        memcpy(halves + j, b, sizeof(uint16_t));
    }
    for (int half = 0; half < LANES/8; half++) {       // transpose 8 rows of 8 units each
        __m256i r[8], t[8];
        for (int j = 0; j < 8; j++) r[j] = _mm256_load_si256((const __m256i *) bytes[half*8 + j]);
        for (int i = 0; i < 4; i++) {
            t[2*i]     = _mm256_unpacklo_epi32(r[2*i], r[2*i + 1]);
            t[2*i + 1] = _mm256_unpackhi_epi32(r[2*i], r[2*i + 1]);
        }
        for (int i = 0; i < 2; i++) {
            r[4*i]     = _mm256_unpacklo_epi64(t[4*i],     t[4*i + 2]);
            r[4*i + 1] = _mm256_unpackhi_epi64(t[4*i],     t[4*i + 2]);
            r[4*i + 2] = _mm256_unpacklo_epi64(t[4*i + 1], t[4*i + 3]);
            r[4*i + 3] = _mm256_unpackhi_epi64(t[4*i + 1], t[4*i + 3]);
        }
        for (int i = 0; i < 4; i++) {
            char * at = to + (int64_t) i*V*4*LANES + half*32;
            _mm256_store_si256((__m256i *) at, _mm256_permute2x128_si256(r[i], r[i + 4], 0x20));
            _mm256_store_si256((__m256i *) (at + (int64_t) 4*V*4*LANES), _mm256_permute2x128_si256(r[i], r[i + 4], 0x31));
        }
    }
    store(scales, widen_f16(halves));
}

static void pack_panel8(const Rows & of, int64_t row, int64_t m, int V, int64_t first, int64_t blocks, char * to, float * scales) {
    for (int64_t p = 0; p < blocks; p++)
        for (int v = 0; v < V; v++)
            pack_block8(of, row + v*LANES, std::min<int64_t>(LANES, m - v*LANES), V, first + p,
                        to + (p*UNITS*V + v)*4*LANES, scales + (p*V + v)*LANES);
}

// Quantises a row of activations. The scale of a block that contains NaN or infinity is NaN.
static void pack_row8(const float * x, int64_t blocks, int offset, uint32_t * to, float * scales, int32_t * offsets) {
    for (int64_t p = 0; p < blocks; p++, x += 32) {
        vf values[32/LANES], top = zero(), nothing = zero();
        for (int i = 0; i < 32/LANES; i++) {
            values[i] = load(x + i*LANES);
            top = most(top, absolute(values[i]));
            nothing = fma(values[i], zero(), nothing);
        }
        const float amount = largest(top);
        const vf inverse = set(amount > 0 ? 127.f/amount : 0.f);
        vi total = izero();
        for (int i = 0; i < 32/LANES; i++) {
            const vi q = rounded(mul(values[i], inverse));
            narrow_int8((char *) (to + p*UNITS) + i*LANES, q);
            total = iadd(total, q);
        }
        scales[p] = amount/127.f + sum(nothing);
        offsets[p] = -offset*isum(total);
    }
}

// All activations of an operation. All threads together quantise them once into the work buffer.
struct Activations {
    int64_t rows, blocks;          // number of rows in all planes, and of blocks in a row
    uint32_t * bytes;              // [row][block][unit]
    float * scales;                // [row][block]
    int32_t * offsets;             // [row][block]
};

static Activations activations_of(const ggml_tensor * op, void * work) {
    const ggml_tensor * x = op->src[1];
    const int64_t rows = x->ne[1]*x->ne[2]*x->ne[3], blocks = x->ne[0]/32;
    uint32_t * bytes = (uint32_t *) (((uintptr_t) work + 63)/64*64);
    float * scales = (float *) (bytes + rows*blocks*UNITS);
    return { rows, blocks, bytes, scales, (int32_t *) (scales + rows*blocks) };
}

size_t product_int8_bytes(const ggml_tensor * op) {
    const ggml_tensor * x = op->src[1];
    return 64 + elements(x)/32*(32 + sizeof(float) + sizeof(int32_t));
}

static void quantise(const ggml_compute_params * params, const ggml_tensor * x, int offset, const Activations & to) {
    const Range mine = share(params, to.rows);
    for (int64_t r = mine.first; r < mine.last; r++) {
        const int64_t i1 = r % x->ne[1], i2 = r/x->ne[1] % x->ne[2], i3 = r/x->ne[1]/x->ne[2];
        const char * from = (const char *) x->data + i1*x->nb[1] + i2*x->nb[2] + i3*x->nb[3];
        pack_row8((const float *) from, to.blocks, offset, to.bytes + r*to.blocks*UNITS, to.scales + r*to.blocks, to.offsets + r*to.blocks);
    }
}

void run_product_int8(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * w = op->src[0], * x = op->src[1];
    const int64_t r2 = x->ne[2]/w->ne[2], r3 = x->ne[3]/w->ne[3], planes = x->ne[2]*x->ne[3];
    const Activations b = activations_of(op, params->wdata);
    quantise(params, x, offset_of(w->type), b);
    ggml_barrier(params->threadpool);       // every thread must reach it, even after an abort
    const Part part = part_of(w->ne[1], x->ne[1], VECTOR_ROWS, params->ith, params->nth);
    if (part.m0 >= part.m1 || part.n0 >= part.n1) return;
    const int64_t parts = (b.blocks + DEPTH8 - 1)/DEPTH8, each = (b.blocks + parts - 1)/parts;
    const int64_t height = std::min<int64_t>(HEIGHT8, (part.m1 - part.m0 + PANEL - 1)/PANEL*PANEL);
    char  * a        = buffers().panels.get<char>(height*each*32);
    float * a_scales = buffers().floats.get<float>(height*each);
    for (int64_t i = 0; i < planes; i++) {
        const int64_t i3 = i/x->ne[2], i2 = i % x->ne[2], ldc = op->nb[1]/sizeof(float);
        const Rows of = { (const char *) w->data + i3/r3*w->nb[3] + i2/r2*w->nb[2], (int64_t) w->nb[1], w->type };
        float * c = (float *) ((char *) op->data + i3*op->nb[3] + i2*op->nb[2]);
        for (int64_t top = part.m0; top < part.m1; top += height) {
            const int64_t end = std::min(top + height, part.m1);
            for (int64_t first = 0; first < b.blocks; first += each) {
                const int64_t blocks = std::min(each, b.blocks - first);
                for (int64_t m = top; m < end; m += PANEL)
                    pack_panel8(of, m, std::min<int64_t>(PANEL, end - m), end - m > LANES ? 2 : 1, first, blocks, a + (m - top)*each*32, a_scales + (m - top)*each);
                for (int64_t n = part.n0; n < part.n1; n += ROWS8) {
                    if (aborted()) return;
                    const int64_t at = (i*x->ne[1] + n)*b.blocks + first;
                    const int rows = (int) std::min<int64_t>(ROWS8, part.n1 - n);
                    for (int64_t m = top; m < end; m += PANEL) {
                        const Operands o = { a + (m - top)*each*32, a_scales + (m - top)*each, b.bytes + at*UNITS, b.scales + at, b.offsets + at, b.blocks*UNITS, b.blocks, blocks };
                        if (config.int8 == Int8::DOT) micro8_panel<true>(rows, o, c + n*ldc + m, ldc, end - m, first > 0);
                        else                          micro8_panel<false>(rows, o, c + n*ldc + m, ldc, end - m, first > 0);
                    }
                }
            }
        }
    }
}

bool takes_product_int8(const ggml_tensor * op) {
    const ggml_tensor * w = op->src[0], * x = op->src[1];
    if (config.products == Products::AMX && x->ne[1] >= AMX_ROWS) return false;
    return (w->type == GGML_TYPE_Q4_0 ? config.int8 != Int8::NONE : w->type == GGML_TYPE_Q8_0 && config.int8 == Int8::DOT) && x->type == GGML_TYPE_F32 && takes_product(op);
}

}  // namespace sdk
