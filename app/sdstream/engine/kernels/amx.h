// AMX: products of bf16 in registers of 16 rows of 16 units, which are sums or operands.
//
// The functions have the instructions as an attribute: the compiler emits them nowhere else, and
// nothing runs them before `has_amx` and `request_amx` were true. Every compiler that knows the
// flags of build.py knows these as well.
#pragma once
#include "simd.h"

namespace sdk {

// Whether the product of two tiles is right on this machine, and this process may compute in them.
bool has_amx();

// Ask the system for tiles, for all threads of this process.
bool request_amx();

#if defined(__AVX512BF16__)

#define SDK_AMX __attribute__((target("amx-tile,amx-bf16")))

// What is at `p` and elsewhere must be in memory now: GCC's intrinsics do not say that they read it.
inline void written(const void * p) { __asm__ volatile("" : : "r"(p) : "memory"); }

enum : int { TILE = 16 };     // rows, and units of a row

// Registers 0 to 7 as whole tiles.
struct alignas(64) TileLayout {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = { 64, 64, 64, 64, 64, 64, 64, 64 };
    uint8_t rows[16] = { TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE };
};

// While this lives, the thread has tiles. Afterwards its state is as small as before, for the
// system to save and for the processor to rest.
class AmxState {
  public:
    AmxState() { if (config.products == Products::AMX) begin(); }
    ~AmxState() { if (config.products == Products::AMX) end(); }
    AmxState(const AmxState &) = delete;
    AmxState & operator=(const AmxState &) = delete;
  private:
    SDK_AMX static void begin() {
        static const TileLayout layout;
        written(&layout);
        _tile_loadconfig(&layout);
    }
    SDK_AMX static void end() { _tile_release(); }
};

// As `micro` of micro.h for BLOCKS times TILE rows of B, of which `n` count; memory of the others
// is read. `units` is a multiple of TILE.
template <int BLOCKS, int V>
SDK_AMX void micro_amx(int n, const uint32_t * a, const uint32_t * b, int64_t ldb, int64_t units, float * c, int64_t ldc, int64_t m, bool onto) {
    alignas(64) float edge[BLOCKS*TILE][V*LANES];
    const bool whole = n == BLOCKS*TILE && m >= V*LANES;
    float * at = whole ? c : edge[0];
    const int64_t stride = (whole ? ldc : V*LANES)*sizeof(float);
    if (onto && !whole)
        for (int j = 0; j < n; j++)
            for (int v = 0; v < V; v++) store(edge[j] + v*LANES, load(c + j*ldc + v*LANES, m - v*LANES));
    written(at);
    float * below = at + TILE*stride/sizeof(float);
    if (onto) {
        _tile_loadd(0, at, stride);
        if (V == 2) _tile_loadd(1, at + LANES, stride);
        if (BLOCKS == 2) _tile_loadd(2, below, stride);
        if (BLOCKS == 2 && V == 2) _tile_loadd(3, below + LANES, stride);
    } else {
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    }
    for (int64_t p = 0; p < units; p += TILE) {
        _tile_loadd(4, b + p, ldb*sizeof(uint32_t));
        _tile_loadd(6, a + p*V*LANES, V*LANES*sizeof(uint32_t));
        _tile_dpbf16ps(0, 4, 6);
        if (V == 2) {
            _tile_loadd(7, a + (p*V + 1)*LANES, V*LANES*sizeof(uint32_t));
            _tile_dpbf16ps(1, 4, 7);
        }
        if (BLOCKS == 2) {
            _tile_loadd(5, b + TILE*ldb + p, ldb*sizeof(uint32_t));
            _tile_dpbf16ps(2, 5, 6);
            if (V == 2) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, at, stride);
    if (V == 2) _tile_stored(1, at + LANES, stride);
    if (BLOCKS == 2) _tile_stored(2, below, stride);
    if (BLOCKS == 2 && V == 2) _tile_stored(3, below + LANES, stride);
    if (!whole)
        for (int j = 0; j < n; j++)
            for (int v = 0; v < V; v++) store(c + j*ldc + v*LANES, load(edge[j] + v*LANES), m - v*LANES);
}

#else

struct AmxState { AmxState() {} };    // AVX2: there are none

#endif

}  // namespace sdk
