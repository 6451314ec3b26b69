// The vector functions that the operations use: 16 lanes of AVX-512 or 8 lanes of AVX2.
//
// The sources are compiled into a separate library for each instruction set, so that no inline
// function of one is linked into the other. The argument `n` is the number of active lanes, counted
// from the first lane: less than 1 means none, LANES or more means all. The memory of inactive
// lanes is neither read nor written.
#pragma once
#include <immintrin.h>
#include <math.h>
#include "host.h"

namespace sdk {

#if defined(__AVX512F__)

enum : int { LANES = 16 };
typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;

inline vm low(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (vm) ((1u << n) - 1); }
inline vm range(int first, int last) { return (vm) (low(last) & ~low(first)); }
inline bool any(vm m) { return m != 0; }

inline vf zero() { return _mm512_setzero_ps(); }
inline vf set(float x) { return _mm512_set1_ps(x); }
inline vf set(const float * p) { return _mm512_set1_ps(*p); }
inline vf load(const float * p) { return _mm512_loadu_ps(p); }
inline vf load(const float * p, int64_t n) { return _mm512_maskz_loadu_ps(low(n), p); }
inline vf load_if(const float * p, vm m) { return _mm512_maskz_loadu_ps(m, p); }
inline vf gather_if(const float * p, vi at, vm m) {
    return _mm512_mask_i32gather_ps(zero(), m, at, p, 4);
}
inline void store(float * p, vf x) { _mm512_storeu_ps(p, x); }
inline void store(float * p, vf x, int64_t n) { _mm512_mask_storeu_ps(p, low(n), x); }
inline vf blend(vm m, vf no, vf yes) { return _mm512_mask_mov_ps(no, m, yes); }
inline vf keep(int64_t n, vf x, vf other) { return blend(low(n), other, x); }

inline vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm512_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
inline vf fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
inline vf most(vf a, vf b) { return _mm512_max_ps(a, b); }     // b if one of them is NaN
inline vf least(vf a, vf b) { return _mm512_min_ps(a, b); }    // b if one of them is NaN
inline vf absolute(vf a) { return _mm512_abs_ps(a); }
inline vf nearest(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vm above(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }    // true for NaN
inline vf times_2_to(vf p, vf n) { return _mm512_scalef_ps(p, n); }

inline float sum(vf a) { return _mm512_reduce_add_ps(a); }
inline float largest(vf a) { return _mm512_reduce_max_ps(a); }

inline vi izero() { return _mm512_setzero_si512(); }
inline vi iset(uint32_t x) { return _mm512_set1_epi32((int) x); }
inline vi iload(const void * p) { return _mm512_load_si512(p); }
inline void istore(void * p, vi x) { _mm512_store_si512(p, x); }
inline vi as_int(vf x) { return _mm512_castps_si512(x); }
inline vf as_float(vi x) { return _mm512_castsi512_ps(x); }
inline vf to_float(vi x) { return _mm512_cvtepi32_ps(x); }
inline vi rounded(vf x) { return _mm512_cvtps_epi32(x); }
inline vi iadd(vi a, vi b) { return _mm512_add_epi32(a, b); }
inline int32_t isum(vi a) { return _mm512_reduce_add_epi32(a); }
inline vi multiples(int step) {
    return _mm512_mullo_epi32(_mm512_set_epi32(15,14,13,12,11,10,9,8,7,6,5,4,3,2,1,0), _mm512_set1_epi32(step));
}

inline vf widen_f16(const void * p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p)); }
inline vf widen_f16(const void * p, int64_t n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(low(n), p)); }
inline void narrow_f16(void * p, vf x, int64_t n) {
    _mm256_mask_storeu_epi16(p, low(n), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline vf widen_bf16(const void * p, int64_t n) {
    return as_float(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(low(n), p)), 16));
}
inline vf widen_int8(__m128i q) { return to_float(_mm512_cvtepi8_epi32(q)); }    // LANES bytes
inline void narrow_int8(void * p, vi x) { _mm_storeu_si128((__m128i *) p, _mm512_cvtepi32_epi8(x)); }

// Transposes a square matrix of 32-bit lanes.
inline void transpose(vi r[LANES]) {
    vi t[16];
    for (int i = 0; i < 8; i++) {
        t[2*i]     = _mm512_unpacklo_epi32(r[2*i], r[2*i + 1]);
        t[2*i + 1] = _mm512_unpackhi_epi32(r[2*i], r[2*i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4*i]     = _mm512_unpacklo_epi64(t[4*i],     t[4*i + 2]);
        r[4*i + 1] = _mm512_unpackhi_epi64(t[4*i],     t[4*i + 2]);
        r[4*i + 2] = _mm512_unpacklo_epi64(t[4*i + 1], t[4*i + 3]);
        r[4*i + 3] = _mm512_unpackhi_epi64(t[4*i + 1], t[4*i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i]      = _mm512_shuffle_i32x4(r[i],     r[i + 4],  0x88);
        t[i + 4]  = _mm512_shuffle_i32x4(r[i],     r[i + 4],  0xdd);
        t[i + 8]  = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i]      = _mm512_shuffle_i32x4(t[i],     t[i + 8],  0x88);
        r[i + 8]  = _mm512_shuffle_i32x4(t[i],     t[i + 8],  0xdd);
        r[i + 4]  = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

// `interleave` returns a[0] b[0] a[1] b[1] …, and `deinterleave` is its inverse.
inline void interleave(vf a, vf b, vf & first, vf & second) {
    const vi lo = _mm512_set_epi32(23,7,22,6,21,5,20,4,19,3,18,2,17,1,16,0);
    const vi hi = _mm512_set_epi32(31,15,30,14,29,13,28,12,27,11,26,10,25,9,24,8);
    first = _mm512_permutex2var_ps(a, lo, b);
    second = _mm512_permutex2var_ps(a, hi, b);
}
inline void deinterleave(vf first, vf second, vf & evens, vf & odds) {
    const vi even = _mm512_set_epi32(30,28,26,24,22,20,18,16,14,12,10,8,6,4,2,0);
    const vi odd = _mm512_set_epi32(31,29,27,25,23,21,19,17,15,13,11,9,7,5,3,1);
    evens = _mm512_permutex2var_ps(first, even, second);
    odds = _mm512_permutex2var_ps(first, odd, second);
}

// Adds to each lane of `c` the sum of four products of unsigned bytes of `u` and signed bytes of
// `s`.
inline vi dot4(vi c, vi u, vi s) { return _mm512_dpbusd_epi32(c, u, s); }
// These compute the same in two steps, for CPUs without that instruction: `dot2` adds two products
// in 16 bits, and `add_pairs` adds two of these sums.
inline vi dot2(vi c, vi u, vi s) { return _mm512_add_epi16(c, _mm512_maddubs_epi16(u, s)); }
inline vi add_pairs(vi c, vi x) { return iadd(c, _mm512_madd_epi16(x, _mm512_set1_epi16(1))); }

#elif defined(__AVX2__)

enum : int { LANES = 8 };
typedef __m256 vf;
typedef __m256i vi;
typedef __m256i vm;

inline vm low(int64_t n) {
    const int count = n >= 8 ? 8 : n <= 0 ? 0 : (int) n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_set_epi32(7,6,5,4,3,2,1,0));
}
inline vm range(int first, int last) { return _mm256_andnot_si256(low(first), low(last)); }
inline bool any(vm m) { return !_mm256_testz_si256(m, m); }

inline vf zero() { return _mm256_setzero_ps(); }
inline vf set(float x) { return _mm256_set1_ps(x); }
inline vf set(const float * p) { return _mm256_broadcast_ss(p); }
inline vf load(const float * p) { return _mm256_loadu_ps(p); }
inline vf load(const float * p, int64_t n) { return n >= 8 ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, low(n)); }
inline vf load_if(const float * p, vm m) { return _mm256_maskload_ps(p, m); }
inline vf gather_if(const float * p, vi at, vm m) {
    return _mm256_mask_i32gather_ps(zero(), p, at, _mm256_castsi256_ps(m), 4);
}
inline void store(float * p, vf x) { _mm256_storeu_ps(p, x); }
inline void store(float * p, vf x, int64_t n) {
    if (n >= 8) _mm256_storeu_ps(p, x); else _mm256_maskstore_ps(p, low(n), x);
}
inline vf blend(vm m, vf no, vf yes) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }
inline vf keep(int64_t n, vf x, vf other) { return n >= 8 ? x : blend(low(n), other, x); }

inline vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
inline vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
inline vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
inline vf div(vf a, vf b) { return _mm256_div_ps(a, b); }
inline vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
inline vf fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
inline vf most(vf a, vf b) { return _mm256_max_ps(a, b); }     // b if one of them is NaN
inline vf least(vf a, vf b) { return _mm256_min_ps(a, b); }    // b if one of them is NaN
inline vf absolute(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
inline vf nearest(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vm above(vf a, vf b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)); }    // true for NaN
// Multiplies by two factors, because 2^n may be outside the range of float when the result is not.
inline vf times_2_to(vf p, vf n) {
    const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    const __m256i a = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i b = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(whole, half), bias), 23);
    return mul(mul(p, _mm256_castsi256_ps(a)), _mm256_castsi256_ps(b));
}

inline float sum(vf a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float largest(vf a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline vi izero() { return _mm256_setzero_si256(); }
inline vi iset(uint32_t x) { return _mm256_set1_epi32((int) x); }
inline vi iload(const void * p) { return _mm256_load_si256((const __m256i *) p); }
inline void istore(void * p, vi x) { _mm256_store_si256((__m256i *) p, x); }
inline vi as_int(vf x) { return _mm256_castps_si256(x); }
inline vf as_float(vi x) { return _mm256_castsi256_ps(x); }
inline vf to_float(vi x) { return _mm256_cvtepi32_ps(x); }
inline vi rounded(vf x) { return _mm256_cvtps_epi32(x); }
inline vi iadd(vi a, vi b) { return _mm256_add_epi32(a, b); }
inline int32_t isum(vi a) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline vi multiples(int step) {
    return _mm256_mullo_epi32(_mm256_set_epi32(7,6,5,4,3,2,1,0), _mm256_set1_epi32(step));
}

// AVX2 has no masked loads of 16-bit lanes, so the active lanes are copied first.
struct alignas(16) Halves { uint16_t lanes[8]; };
inline __m128i halves(const void * p, int64_t n) {
    if (n >= 8) return _mm_loadu_si128((const __m128i *) p);
    Halves few = {};
    if (n > 0) memcpy(few.lanes, p, n*sizeof(uint16_t));
    return _mm_load_si128((const __m128i *) few.lanes);
}
inline vf widen_f16(const void * p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p)); }
inline vf widen_f16(const void * p, int64_t n) { return _mm256_cvtph_ps(halves(p, n)); }
inline void narrow_f16(void * p, vf x, int64_t n) {
    const __m128i h = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    if (n >= 8) _mm_storeu_si128((__m128i *) p, h);
    else if (n > 0) memcpy(p, &h, n*sizeof(uint16_t));
}
inline vf widen_bf16(const void * p, int64_t n) {
    return as_float(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves(p, n)), 16));
}
inline vf widen_int8(__m128i q) { return to_float(_mm256_cvtepi8_epi32(q)); }    // LANES bytes
inline void narrow_int8(void * p, vi x) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i *) p, _mm_packs_epi16(words, words));
}

inline void transpose(vi r[LANES]) {
    vi t[8];
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
        t[i]     = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        t[i + 4] = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

inline void interleave(vf a, vf b, vf & first, vf & second) {
    const vf lo = _mm256_unpacklo_ps(a, b), hi = _mm256_unpackhi_ps(a, b);
    first = _mm256_permute2f128_ps(lo, hi, 0x20);
    second = _mm256_permute2f128_ps(lo, hi, 0x31);
}
inline void deinterleave(vf first, vf second, vf & evens, vf & odds) {
    const vf lo = _mm256_permute2f128_ps(first, second, 0x20), hi = _mm256_permute2f128_ps(first, second, 0x31);
    evens = _mm256_shuffle_ps(lo, hi, 0x88);
    odds = _mm256_shuffle_ps(lo, hi, 0xdd);
}

inline vi dot4(vi c, vi u, vi s) { return _mm256_dpbusd_avx_epi32(c, u, s); }
inline vi dot2(vi c, vi u, vi s) { return _mm256_add_epi16(c, _mm256_maddubs_epi16(u, s)); }
inline vi add_pairs(vi c, vi x) { return iadd(c, _mm256_madd_epi16(x, _mm256_set1_epi16(1))); }

#else
#error "compile with the flags of build.py: AVX-512 or AVX2"
#endif

// Returns e^x with a relative error of about 2e-7. NaN stays NaN. Values below -87.3 give about
// 1e-38.
inline vf exponential(vf x) {
    x = least(set(88.7f), most(set(-87.3f), x));
    const vf n = nearest(mul(x, set(1.44269504f)));
    vf r = fnma(n, set(0.693359375f), x);
    r = fnma(n, set(-2.12194440e-4f), r);
    vf p = set(1.9875691500e-4f);
    for (float q : { 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f })
        p = fma(p, r, set(q));
    return times_2_to(add(fma(p, mul(r, r), r), set(1.f)), n);
}

}  // namespace sdk
