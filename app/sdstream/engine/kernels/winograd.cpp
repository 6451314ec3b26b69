// CONV_2D with 3x3 kernels by Winograd's F(2x2, 3x3): 4 instead of 9 products for each output.
//
// A lane is a tile of 2x2 outputs, and each of the 16 positions of a tile is a separate matrix
// product. The method is worthwhile if each transformed kernel is used for many tiles, as in
// autoencoders and in the upper levels of a UNet. All threads together transform the kernels once,
// into ggml's work buffer.
// Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2015.
#include "image.h"

namespace sdk {

enum : int { POSITIONS = 16 };

// Returns the units of one row of transformed kernels, padded so that rows do not share cache sets.
template <class E>
static int64_t row_units(int64_t channels) { return (channels + LANES*E::PER - 1)/(LANES*E::PER)*LANES + 16; }

// Transforms kernels [out][in][9] into units [position][out][in/PER], for the outputs in `range`.
template <class E>
static void transform_kernels(const Rows & of, int64_t channels, int64_t outputs, Range range, uint32_t * to, int64_t ldu) {
    const int64_t row = (channels + 2*LANES - 1)/(2*LANES)*2*LANES + 2*LANES;
    float * g = buffers().floats.get<float>(9*channels + 4*LANES + POSITIONS*row);
    float * t = g + (9*channels + 2*LANES)/LANES*LANES;
    const vi at = multiples(9);
    const vf half = set(0.5f);
    for (int64_t o = range.first; o < range.last; o++) {
        const char * p = of.data + o*of.stride;
        for (int64_t i = 0; i < 9*channels; i += LANES) store(g + i, row_load(of.type, p, i, 9*channels - i));
        for (int64_t i = 0; i < channels; i += LANES) {
            const vm wanted = low(channels - i);
            vf k[3][3], h[4][3];
            for (int j = 0; j < 9; j++) k[j/3][j % 3] = gather_if(g + 9*i + j, at, wanted);
            for (int j = 0; j < 3; j++) {
                const vf outer = mul(half, add(k[0][j], k[2][j])), inner = mul(half, k[1][j]);
                h[0][j] = k[0][j]; h[1][j] = add(outer, inner); h[2][j] = sub(outer, inner); h[3][j] = k[2][j];
            }
            for (int r = 0; r < 4; r++) {
                const vf outer = mul(half, add(h[r][0], h[r][2])), inner = mul(half, h[r][1]);
                float * d = t + 4*r*row + i;
                store(d, h[r][0]);
                store(d + row, add(outer, inner));
                store(d + 2*row, sub(outer, inner));
                store(d + 3*row, h[r][2]);
            }
        }
        for (int q = 0; q < POSITIONS; q++)
            for (int64_t i = 0; i < channels; i += LANES*E::PER)
                istore(to + (q*outputs + o)*ldu + i/E::PER, E::row([&](int more) { return load(t + q*row + i + more, channels - i - more); }));
    }
}

// Loads four adjacent pixels for each of LANES tiles in a row: x[j] contains pixel j of each tile.
static void load_tiles(const float * p, const vm * mask, vf x[4]) {
    deinterleave(load_if(p, mask[0]), load_if(p + LANES, mask[1]), x[0], x[1]);
    deinterleave(load_if(p + 2, mask[2]), load_if(p + LANES + 2, mask[3]), x[2], x[3]);
}

// The position of a group of LANES tiles in a row: image, row of tiles, first tile.
struct Tiles { int64_t image, ty, tx; };

// Returns group `number` of an operation's tiles; a number past the end returns the last group.
static Tiles tiles_of(const ggml_tensor * op, int64_t number) {
    const int64_t across = (op->ne[0]/2 + LANES - 1)/LANES, down = op->ne[1]/2;
    const int64_t n = std::min(number, across*down*op->ne[3] - 1);
    return { n/across/down, n/across % down, n % across*LANES };
}

// Transforms the pixels of a group of tiles into vector `v` of the units
// [position][channel/PER][VECTORS][lane].
template <class E>
static void transform_image(const Convolution & c, const Tiles & at, int v, uint32_t * to) {
    const int64_t filled = c.channels/E::PER, units = units_of<E>(c.channels), x = 2*at.tx - 1, y = 2*at.ty - 1;    // upper left input pixel
    vm mask[4][4];
    for (int r = 0; r < 4; r++)
        for (int h = 0; h < 4; h++) {                              // loads at x, x + LANES, x + 2, x + LANES + 2
            const int64_t first = x + (h & 1)*LANES + (h >> 1)*2;
            const bool inside = y + r >= 0 && y + r < c.height;
            mask[r][h] = inside ? range((int) std::clamp<int64_t>(-first, 0, LANES), (int) std::clamp<int64_t>(c.width - first, 0, LANES)) : low(0);
        }
    for (int64_t u = 0; u < filled; u++) {
        vf d[E::PER][4][4];
        for (int e = 0; e < E::PER; e++) {
            const float * p = c.image + (E::PER*u + e)*c.plane + y*c.row + x;
            for (int r = 0; r < 4; r++, p += c.row) {
                vf i[4];
                _mm_prefetch((const char *) (p + 2*LANES), _MM_HINT_T0);
                load_tiles(p, mask[r], i);
                d[e][r][0] = sub(i[0], i[2]); d[e][r][1] = add(i[1], i[2]);
                d[e][r][2] = sub(i[2], i[1]); d[e][r][3] = sub(i[1], i[3]);
            }
        }
        for (int q = 0; q < 4; q++) {
            vf o[E::PER][4];
            for (int e = 0; e < E::PER; e++) {
                o[e][0] = sub(d[e][0][q], d[e][2][q]); o[e][1] = add(d[e][1][q], d[e][2][q]);
                o[e][2] = sub(d[e][2][q], d[e][1][q]); o[e][3] = sub(d[e][1][q], d[e][3][q]);
            }
            for (int r = 0; r < 4; r++)
                istore(to + (((r*4 + q)*units + u)*VECTORS + v)*LANES, E::zip(o[0][r], o[E::PER - 1][r]));
        }
    }
    for (int q = 0; q < POSITIONS; q++)
        for (int64_t u = filled; u < units; u++) istore(to + ((q*units + u)*VECTORS + v)*LANES, izero());
}

// Transforms vector `v` of the sums [position][ROWS][PANEL] into two output rows for each of `rows`
// channels.
template <class E>
static void transform_sums(const float * s, int v, int rows, float * to, int64_t ldc, int64_t width, int64_t tiles) {
    for (int j = 0; j < rows; j++) {
        vf m[4][4], h[2][4];
        for (int q = 0; q < POSITIONS; q++) m[q/4][q % 4] = load(s + (q*E::ROWS + j)*PANEL + v*LANES);
        for (int q = 0; q < 4; q++) {
            h[0][q] = add(m[0][q], add(m[1][q], m[2][q]));
            h[1][q] = sub(m[1][q], add(m[2][q], m[3][q]));
        }
        for (int r = 0; r < 2; r++) {
            vf first, second;
            interleave(add(h[r][0], add(h[r][1], h[r][2])), sub(h[r][1], add(h[r][2], h[r][3])), first, second);
            float * p = to + j*ldc + r*width;
            store(p, first, 2*tiles);
            store(p + LANES, second, 2*tiles - LANES);
        }
    }
}

template <class E>
static void winograd(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * w = op->src[0];
    const int64_t channels = w->ne[2], outputs = w->ne[3], units = units_of<E>(channels), ldu = row_units<E>(channels);
    enum : int { ROWS = E::ROWS };
    const int64_t ldc = op->nb[2]/sizeof(float), all = (op->ne[0]/2 + LANES - 1)/LANES*(op->ne[1]/2)*op->ne[3];
    uint32_t * kernels = (uint32_t *) (((uintptr_t) params->wdata + 63)/64*64);
    transform_kernels<E>({ (const char *) w->data, (int64_t) w->nb[3], w->type }, channels, outputs, share(params, outputs), kernels, ldu);
    ggml_barrier(params->threadpool);       // every thread must reach it, even after an abort
    uint32_t * tiles = buffers().panels.get<uint32_t>(POSITIONS*units*PANEL);
    float    * sums  = buffers().sums.get<float>(POSITIONS*ROWS*PANEL);
    const Range mine = share(params, all, VECTORS);
    for (int64_t b = mine.first; b < mine.last; b += VECTORS) {
        Tiles at[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            at[v] = tiles_of(op, b + v);
            transform_image<E>(convolution_of(op, at[v].image), at[v], v, tiles);
        }
        for (int64_t o = 0; o < outputs; o += ROWS) {
            if (aborted()) return;
            const int rows = (int) std::min<int64_t>(ROWS, outputs - o);
            for (int q = 0; q < POSITIONS; q++)
                micro_rows<E, VECTORS>(rows, tiles + q*units*PANEL, kernels + (q*outputs + o)*ldu, ldu, units, sums + q*ROWS*PANEL, PANEL, PANEL, false);
            for (int v = 0; v < VECTORS && b + v < mine.last; v++) {
                float * out = (float *) ((char *) op->data + at[v].image*op->nb[3]) + o*ldc + 2*at[v].ty*op->ne[0] + 2*at[v].tx;
                transform_sums<E>(sums, v, rows, out, ldc, op->ne[0], op->ne[0]/2 - at[v].tx);
            }
        }
    }
}

void run_winograd(const ggml_compute_params * params, ggml_tensor * op) { SDK_CALL(winograd, params, op); }

size_t winograd_bytes(const ggml_tensor * op) {
    const int64_t channels = op->src[0]->ne[2], outputs = op->src[0]->ne[3];
    return 64 + POSITIONS*outputs*(SDK_CALL(row_units, channels))*sizeof(uint32_t);
}

bool takes_winograd(const ggml_tensor * op) {
    const ggml_tensor * w = op->src[0], * x = op->src[1];
    const int32_t * p = op->op_params;
    for (int i = 0; i < 6; i++) if (p[i] != 1) return false;      // step, padding and gap
    return w->ne[0] == 3 && w->ne[1] == 3 && x->ne[0] % 2 == 0 && x->ne[1] % 2 == 0
        && x->ne[0] >= 2*LANES && x->ne[0]*x->ne[1] >= 1024         // enough tiles
        && w->ne[2] % 16 == 0 && w->ne[2] <= 640                    // the tiles fit in the cache
        && w->ne[3] >= 32 && takes_convolution(op);
}

}  // namespace sdk
