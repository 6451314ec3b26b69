// The C functions that the adapter calls (native/kernels.py) and the switch that the check uses.
#pragma once
#include "host.h"

#define SDK_EXPORT __attribute__((visibility("default")))

namespace sdk {

// All operations to the kernels, or all to ggml.
void enable(bool wanted);

// Operations that the kernels have computed.
int64_t taken();

}  // namespace sdk
