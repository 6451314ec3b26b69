// CONV_2D as a matrix product whose pixels are packed directly from the image (implicit GEMM).
//
// The lanes are output pixels in row order. k runs over input channels, kernel rows and kernel
// columns, which is the order of the weights in memory.
#include "image.h"

namespace sdk {

enum : int { TAPS_MOST = 64 };     // maximum number of a kernel's elements (taps), 8 by 8

// A run of lanes within one output row, with the pixels that each tap reads for it.
struct Segment {
    vm mask[TAPS_MOST];
    int64_t at[TAPS_MOST];         // offset of lane 0's pixel from the channel's first pixel
};

static int segments_of(const Convolution & c, int64_t first, int64_t lanes, Segment * to) {
    int count = 0;
    for (int64_t lane = 0; lane < lanes; count++) {
        const int64_t y0 = (first + lane)/c.out_width, x0 = (first + lane) % c.out_width, length = std::min(lanes - lane, c.out_width - x0);
        for (int64_t t = 0; t < c.kernel_width*c.kernel_height; t++) {
            const int64_t y = y0*c.step_y + t/c.kernel_width*c.gap_y - c.pad_y, x = x0*c.step_x + t % c.kernel_width*c.gap_x - c.pad_x;
            // The lanes l for which 0 <= x + l*step < width.
            const int64_t begin = x >= 0 ? 0 : (-x + c.step_x - 1)/c.step_x, end = std::min(length, x < c.width ? (c.width - x + c.step_x - 1)/c.step_x : 0);
            const bool inside = y >= 0 && y < c.height && begin < end;
            to[count].mask[t] = inside ? range((int) (lane + begin), (int) (lane + end)) : low(0);
            to[count].at[t] = y*c.row + x - lane*c.step_x;
        }
        lane += length;
    }
    return count;
}

// Packs all taps of whole channels, for lanes within one output row whose pixels are contiguous.
template <class E, int TAPS>
static void pack_row_of_pixels(const float * channel, int64_t plane, const Segment & s, int64_t count, int64_t stride, uint32_t * to) {
    for (int64_t k = 0; k < count; k += E::PER*TAPS, channel += E::PER*plane) {
        for (int t = 1; t < E::PER*TAPS; t += 3)   // prefetch for the next panel
            _mm_prefetch((const char *) (channel + t/TAPS*plane + s.at[t % TAPS] + PANEL), _MM_HINT_T0);
#pragma GCC unroll 9
        for (int t = 0; t < E::PER*TAPS; t += E::PER, to += stride) {
            const int u = t + E::PER - 1;
            istore(to, E::zip(load_if(channel + t/TAPS*plane + s.at[t % TAPS], s.mask[t % TAPS]),
                              load_if(channel + u/TAPS*plane + s.at[u % TAPS], s.mask[u % TAPS])));
        }
    }
}

// Packs pixels of any shape, one tap at a time.
template <class E>
static void pack_any_pixels(const Convolution & c, const float * channel, int tap, const Segment * s, int segments, int64_t count, int64_t stride, uint32_t * to) {
    const int taps = (int) (c.kernel_width*c.kernel_height);
    const vi steps = multiples(c.step_x);
    const auto next = [&] {
        vf r = zero();
        for (int i = 0; i < segments; i++) {
            const vm m = s[i].mask[tap];
            if (!any(m)) continue;
            const float * at = channel + s[i].at[tap];
            r = blend(m, r, c.step_x == 1 ? load_if(at, m) : gather_if(at, steps, m));
        }
        if (++tap == taps) { tap = 0; channel += c.plane; }
        return r;
    };
    for (int64_t k = 0; k < count; k += E::PER, to += stride) {
        const vf even = next();
        istore(to, E::zip(even, E::PER == 2 && k + 1 < count ? next() : zero()));
    }
}

template <class E>
static void pack_pixels(const Convolution & c, int64_t first, int64_t m, int V, int64_t k0, int64_t count, uint32_t * to) {
    const int taps = (int) (c.kernel_width*c.kernel_height), tap = (int) (k0 % taps);
    const float * channel = c.image + k0/taps*c.plane;
    for (int v = 0; v < V; v++, to += LANES) {
        Segment s[LANES];
        const int segments = segments_of(c, first + v*LANES, std::min<int64_t>(LANES, m - v*LANES), s);
        const bool whole = segments == 1 && c.step_x == 1 && tap == 0 && count % (E::PER*taps) == 0;
        if (whole && taps == 9)      pack_row_of_pixels<E, 9>(channel, c.plane, s[0], count, V*LANES, to);
        else if (whole && taps == 1) pack_row_of_pixels<E, 1>(channel, c.plane, s[0], count, V*LANES, to);
        else                         pack_any_pixels<E>(c, channel, tap, s, segments, count, V*LANES, to);
        for (int64_t u = (count + E::PER - 1)/E::PER; u % LANES; u++) istore(to + u*V*LANES, izero());
    }
}

template <class E>
static void convolution(const ggml_compute_params * params, ggml_tensor * op) {
    const ggml_tensor * w = op->src[0];
    const int64_t taps = w->ne[0]*w->ne[1], k = taps*w->ne[2], pixels = op->ne[0]*op->ne[1];
    const Rows b = { (const char *) w->data, (int64_t) w->nb[3], w->type };
    const Part part = part_of(pixels, w->ne[3], E::ROWS, params->ith, params->nth);
    // Blocks of 3x3 kernels, the most common ones, contain whole pairs of channels.
    const int64_t step = taps == 9 ? 18 : 32;
    for (int64_t i = 0; i < op->ne[3]; i++) {
        const Convolution c = convolution_of(op, i);
        nest<E>(part, k, depth_of<E>(k, pixels, step), (float *) ((char *) op->data + i*op->nb[3]), op->nb[2]/sizeof(float),
            [&](int64_t m, int64_t rows, int V, int64_t k0, int64_t count, uint32_t * to) { pack_pixels<E>(c, m, rows, V, k0, count, to); },
            [&](int64_t n, int rows, int64_t k0, int64_t count, uint32_t * to, int64_t ldb) { pack_rows<E>(b, n, rows, k0, count, to, ldb); });
    }
}

void run_convolution(const ggml_compute_params * params, ggml_tensor * op) { SDK_CALL(convolution, params, op); }

bool takes_convolution(const ggml_tensor * op) {
    const ggml_tensor * w = op->src[0], * x = op->src[1];
    return x->type == GGML_TYPE_F32 && op->type == GGML_TYPE_F32 && (w->type == GGML_TYPE_F16 || w->type == GGML_TYPE_F32)
        && dense(w) && w->nb[1] == w->ne[0]*w->nb[0] && w->nb[2] == w->ne[1]*w->nb[1] && w->nb[3] == w->ne[2]*w->nb[2]
        && x->nb[0] == sizeof(float) && w->ne[0]*w->ne[1] <= TAPS_MOST
        && op->nb[0] == sizeof(float) && op->nb[1] == op->ne[0]*op->nb[0];
}

}  // namespace sdk
