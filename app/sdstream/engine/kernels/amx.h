// AMX: products of bf16 in tile registers of 16 rows with 16 units each, for sums and operands.
//
// Only functions with the target attribute contain AMX instructions, and they run only after
// `has_amx` and `request_amx` have returned true. Each compiler that supports the flags of build.py
// supports this attribute as well.
#pragma once
#include "simd.h"

namespace sdk {

// Returns whether this machine multiplies two tiles correctly and this process may use tiles.
bool has_amx();

// Requests the use of tiles from the operating system, for all threads of this process.
bool request_amx();

#if defined(__AVX512BF16__)

#define SDK_AMX __attribute__((target("amx-tile,amx-bf16")))

// Forces the compiler to write all pending values to memory, those at `p` included: GCC's
// intrinsics do not declare that they read memory.
inline void written(const void * p) { __asm__ volatile("" : : "r"(p) : "memory"); }

enum : int { TILE = 16 };     // number of rows, and of units in a row

// Configuration that uses registers 0 to 7 as full tiles.
struct alignas(64) TileLayout {
    uint8_t palette = 1, start = 0, unused[14] = {};
    uint16_t bytes[16] = { 64, 64, 64, 64, 64, 64, 64, 64 };
    uint8_t rows[16] = { TILE, TILE, TILE, TILE, TILE, TILE, TILE, TILE };
};

// Enables tiles for the current thread during the lifetime of the object. Releasing them afterwards
// makes the thread's state smaller for context switches and lets the processor save power.
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

// Does the same as `micro` of micro.h for BLOCKS*TILE rows of B, of which `n` are valid. The memory
// of the other rows is read too. `units` is a multiple of TILE.
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

struct AmxState { AmxState() {} };    // the AVX2 library does not use tiles

#endif

}  // namespace sdk
