// The image and the parameters of one CONV_2D.
#pragma once
#include "pack.h"

namespace sdk {

struct Convolution {
    const float * image;
    int64_t width, height, channels, out_width, out_height, kernel_width, kernel_height;
    int64_t plane, row;            // floats from channel to channel and from row to row
    int step_x, step_y, pad_x, pad_y, gap_x, gap_y;
};

// Returns the convolution of image `i` of the batch.
inline Convolution convolution_of(const ggml_tensor * op, int64_t i) {
    const ggml_tensor * w = op->src[0], * x = op->src[1];
    const int32_t * p = op->op_params;
    return { (const float *) ((const char *) x->data + i*x->nb[3]), x->ne[0], x->ne[1], x->ne[2], op->ne[0], op->ne[1],
             w->ne[0], w->ne[1], (int64_t) (x->nb[2]/sizeof(float)), (int64_t) (x->nb[1]/sizeof(float)),
             p[0], p[1], p[2], p[3], p[4], p[5] };
}

}  // namespace sdk
