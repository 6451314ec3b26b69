// The export macro of the C functions that native/kernels.py calls, and functions for check.cpp.
#pragma once
#include "host.h"

#define SDK_EXPORT __attribute__((visibility("default")))

namespace sdk {

// Enables the kernels for all operations, or leaves all operations to ggml.
void enable(bool wanted);

// Returns the number of operations that the kernels have computed.
int64_t taken();

// Returns the number of multiply-adds of an operation.
int64_t multiply_adds(const ggml_tensor * op);

// Returns the number of multiply-adds that the kernels have computed.
int64_t computed();

}  // namespace sdk
