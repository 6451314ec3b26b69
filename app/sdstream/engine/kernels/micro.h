// The loop nest of all products: C[n][m] = sum over k of A[m][k]*B[n][k], where m is contiguous in
// C. README.md contains a diagram of it. A is packed into panels whose lanes run along m, and B is
// packed into rows along k. The micro kernel keeps ROWS*PANEL results in registers.
#pragma once
#include "amx.h"

namespace sdk {

#if defined(__AVX512F__)
enum : int { VECTOR_ROWS = 12, VECTORS = 2 };    // 24 sums, 2 of A and 1 of B in 32 registers
#else
enum : int { VECTOR_ROWS = 6, VECTORS = 2 };     // 12 sums, 2 of A and 1 of B in 16 registers
#endif
enum : int { PANEL = VECTORS*LANES };
enum : int { DEPTH = 576 };               // units of k in a block: the rows of B fit in the L1 cache
enum : int { CACHE_BYTES = 640 << 10 };   // bytes of panels in a block: they fit in the L2 cache

// A unit is the content of one 32-bit lane: PER values, which are one float or two bf16 of adjacent
// k. The micro kernel processes ROWS rows of B and STEP units of k at once.
struct F32 {
    enum : int { PER = 1, ROWS = VECTOR_ROWS, STEP = 1 };
    static vf multiply_add(vf c, vi a, vi b) { return fma(as_float(a), as_float(b), c); }
    // Returns LANES*PER values of a row as units in row order; `load` returns LANES values from an
    // offset on.
    template <class Load> static vi row(Load load) { return as_int(load(0)); }
    // Returns the units of two vectors, which contain the lanes' values of k and of k + 1.
    static vi zip(vf even, vf) { return as_int(even); }
};

#if defined(__AVX512BF16__)
struct Bf16 {
    enum : int { PER = 2, ROWS = VECTOR_ROWS, STEP = 1 };
    static vf multiply_add(vf c, vi a, vi b) { return _mm512_dpbf16_ps(c, (__m512bh) a, (__m512bh) b); }
    template <class Load> static vi row(Load load) {
        const vf first = load(0);
        return (vi) _mm512_cvtne2ps_pbh(load(LANES), first);
    }
    static vi zip(vf even, vf odd) {
        const vi order = _mm512_set_epi16(31,15,30,14,29,13,28,12,27,11,26,10,25,9,24,8,
                                          23,7,22,6,21,5,20,4,19,3,18,2,17,1,16,0);
        return _mm512_permutexvar_epi16(order, (vi) _mm512_cvtne2ps_pbh(odd, even));
    }
};
// The same values as in Bf16, multiplied in tiles.
struct Amx : Bf16 {
    enum : int { ROWS = 2*TILE, STEP = TILE };
};
#define SDK_CALL(function, ...) \
    (config.products == Products::AMX ? function<Amx>(__VA_ARGS__) : config.products == Products::BF16 ? function<Bf16>(__VA_ARGS__) : function<F32>(__VA_ARGS__))
#else
#define SDK_CALL(function, ...) function<F32>(__VA_ARGS__)
#endif

// --- micro kernel -------------------------------------------------------------------------------

// C[j][v*LANES + lane] (+)= sum over units of A[unit][v][lane] * B[j][unit], for the first `m`
// lanes. The result is added to C if `onto` is true.
template <class E, int N, int V>
void micro(const uint32_t * a, const uint32_t * b, int64_t ldb, int64_t units, float * c, int64_t ldc, int64_t m, bool onto) {
    vf sums[N][V];
    for (int j = 0; j < N; j++) {
        __builtin_prefetch(c + j*ldc, 1);
        for (int v = 0; v < V; v++) sums[j][v] = zero();
    }
    for (int64_t p = 0; p < units; p++) {
        vi va[V];
        for (int v = 0; v < V; v++) va[v] = iload(a + (p*V + v)*LANES);
#pragma GCC unroll 12
        for (int j = 0; j < N; j++) {
            const vi vb = iset(b[j*ldb + p]);
            for (int v = 0; v < V; v++) sums[j][v] = E::multiply_add(sums[j][v], va[v], vb);
        }
    }
    for (int v = 0; v < V; v++) {
        const int64_t count = m - v*LANES;
        for (int j = 0; j < N; j++) {
            float * at = c + j*ldc + v*LANES;
            if (onto) sums[j][v] = add(sums[j][v], load(at, count));
            store(at, sums[j][v], count);
        }
    }
}

// Calls `micro` for 1 to ROWS rows of B and the first `m` lanes of a panel.
template <class E, int V>
void micro_rows(int n, const uint32_t * a, const uint32_t * b, int64_t ldb, int64_t units, float * c, int64_t ldc, int64_t m, bool onto) {
    switch (n) {
#define CASE(N) case N: return micro<E, N, V>(a, b, ldb, units, c, ldc, m, onto);
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if defined(__AVX512F__)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
    }
}

#if defined(__AVX512BF16__)
template <> inline void micro_rows<Amx, 1>(int n, const uint32_t * a, const uint32_t * b, int64_t ldb, int64_t units, float * c, int64_t ldc, int64_t m, bool onto) {
    n > TILE ? micro_amx<2, 1>(n, a, b, ldb, units, c, ldc, m, onto) : micro_amx<1, 1>(n, a, b, ldb, units, c, ldc, m, onto);
}
template <> inline void micro_rows<Amx, 2>(int n, const uint32_t * a, const uint32_t * b, int64_t ldb, int64_t units, float * c, int64_t ldc, int64_t m, bool onto) {
    n > TILE ? micro_amx<2, 2>(n, a, b, ldb, units, c, ldc, m, onto) : micro_amx<1, 2>(n, a, b, ldb, units, c, ldc, m, onto);
}
#endif

template <class E>
void micro_panel(int n, const uint32_t * a, const uint32_t * b, int64_t ldb, int64_t units, float * c, int64_t ldc, int64_t m, bool onto) {
    if (m > LANES) micro_rows<E, 2>(n, a, b, ldb, units, c, ldc, m, onto);
    else           micro_rows<E, 1>(n, a, b, ldb, units, c, ldc, m, onto);
}

// Returns the number of units for `count` values of k, rounded up to a multiple of STEP.
template <class E>
int64_t units_of(int64_t count) { return (count + E::PER*E::STEP - 1)/(E::PER*E::STEP)*E::STEP; }

// --- loop nest ----------------------------------------------------------------------------------

// Returns the length of the blocks of k, a multiple of `step`. Blocks are longer if there are few
// lanes, so that the larger matrix is read in long runs. The length depends only on the shape, so
// the results are the same for any number of threads.
template <class E>
int64_t depth_of(int64_t k, int64_t m, int64_t step) {
    const int64_t longest = (m <= 32 ? 4 : m <= 128 ? 2 : 1)*DEPTH*E::PER/step*step;
    const int64_t blocks = (k + longest - 1)/longest;
    return std::min(longest, ((k + blocks - 1)/blocks + step - 1)/step*step);
}

// A thread's part of C.
struct Part { int64_t m0, m1, n0, n1; };

// Divides C among the threads as a grid. The grid is chosen so that threads pack as little of A and
// B repeatedly as possible. Each thread gets whole panels and whole blocks of `rows` rows.
inline Part part_of(int64_t m, int64_t n, int rows, int ith, int nth) {
    int across = 1;
    double least_cost = 1e300;
    for (int tn = 1; tn <= nth; tn++) {
        if (nth % tn) continue;
        const int tm = nth/tn;
        const double pm = (double) ((m + PANEL*tm - 1)/(PANEL*tm))*PANEL, pn = (double) ((n + rows*tn - 1)/(rows*tn))*rows;
        const double cost = pm*pn + 16*pm + 8*pn;
        if (cost < least_cost) { least_cost = cost; across = tn; }
    }
    const int tn = across, tm = nth/tn, im = ith % tm, in = ith/tm;
    const int64_t pm = (m + PANEL*tm - 1)/(PANEL*tm)*PANEL, pn = (n + rows*tn - 1)/(rows*tn)*rows;
    return { std::min(m, im*pm), std::min(m, (im + 1)*pm), std::min(n, in*pn), std::min(n, (in + 1)*pn) };
}

// Computes a thread's part of C. pack_panel(m, rows, V, k, count, to) packs A, and
// pack_rows(n, rows, k, count, to, ldb) packs B. Both pad with zeros to a multiple of LANES units.
template <class E, class PackPanel, class PackRows>
void nest(const Part & part, int64_t k, int64_t depth, float * c, int64_t ldc, PackPanel pack_panel, PackRows pack_rows) {
    if (part.m0 >= part.m1 || part.n0 >= part.n1) return;
    enum : int { RUN = LANES*E::PER, ROWS = E::ROWS };
    const int64_t units_most = (depth + RUN - 1)/RUN*LANES, ldb = units_most + 16;
    // Each block has as many panels as fit in the cache, and all blocks have about the same height.
    const int64_t highest = std::max<int64_t>(2*PANEL, CACHE_BYTES/(4*units_most)/PANEL*PANEL);
    const int64_t parts = (part.m1 - part.m0 + highest - 1)/highest;
    const int64_t height = ((part.m1 - part.m0 + parts - 1)/parts + PANEL - 1)/PANEL*PANEL;
    uint32_t * a = buffers().panels.get<uint32_t>(height*units_most);
    uint32_t * b = buffers().rows.get<uint32_t>(ROWS*ldb);
    for (int64_t top = part.m0; top < part.m1; top += height) {
        const int64_t end = std::min(top + height, part.m1);
        for (int64_t k0 = 0; k0 < k; k0 += depth) {
            const int64_t count = std::min(depth, k - k0), units = units_of<E>(count);
            for (int64_t m = top; m < end; m += PANEL)
                pack_panel(m, std::min<int64_t>(PANEL, end - m), end - m > LANES ? 2 : 1, k0, count, a + (m - top)*units_most);
            for (int64_t n = part.n0; n < part.n1; n += ROWS) {
                if (aborted()) return;
                const int rows = (int) std::min<int64_t>(ROWS, part.n1 - n);
                pack_rows(n, rows, k0, count, b, ldb);
                for (int64_t m = top; m < end; m += PANEL)
                    micro_panel<E>(rows, a + (m - top)*units_most, b, ldb, units, c + n*ldc + m, ldc, std::min<int64_t>(PANEL, end - m), k0 > 0);
            }
        }
    }
}

}  // namespace sdk
